"""The certificates that a host hands its SEV-SNP guest: a table by GUID."""

from typing import Final
from uuid import UUID

from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.model import Code, Reject

_CHECK = "certificate-table"
_MAX = 64 * 1024
_MAX_ENTRIES = 64
_ENTRY = 24
_NAMES: Final = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "VCEK",
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "VLEK",
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ASK",
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ARK",
}


def parse_table(raw: bytes) -> dict[str, bytes]:
    """Return what is in it by name: VCEK, VLEK, ASK, ARK; others are left out.

    A host that has no certificates hands over nothing, or zeros.
    """
    if len(raw) > _MAX:
        raise Reject(Code.MALFORMED, _CHECK, f"{len(raw)} bytes")
    cursor = Cursor(raw, _CHECK, "little")
    found: dict[str, bytes] = {}
    for _ in range(_MAX_ENTRIES):
        if cursor.remaining < _ENTRY:
            return found
        guid, offset, length = cursor.take(16), cursor.u32(), cursor.u32()
        if not any(guid):
            return found
        if offset + length > len(raw):
            raise cursor.malformed("an entry beyond the end")
        name = _name(guid)
        if name is not None:
            found[name] = raw[offset : offset + length]
    raise cursor.malformed("without an end")


def _name(guid: bytes) -> str | None:
    """Tools write GUIDs in either order of bytes."""
    return _NAMES.get(UUID(bytes=guid)) or _NAMES.get(UUID(bytes_le=guid))
