"""NVIDIA device evidence: an SPDM 1.1 measurement exchange, signed by the device."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from trustfabric.domain.evidence import der
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.certificate import (
    Certificate,
    parse_certificate,
    pem_bodies,
)
from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.documents import (
    base64_bytes,
    only_keys,
    read_object,
    text,
)
from trustfabric.domain.evidence.model import (
    _AUTHENTICATOR,
    Authenticated,
    Code,
    EvidenceKind,
    Reject,
)

_CHECK = "spdm"
_MAX_REPORT = 16 * 1024
_SPDM_1_1 = 0x11
_GET_MEASUREMENTS, _MEASUREMENTS = 0xE0, 0x60
_NONCE = 32
_SCALAR = 48
_DMTF = 1
_LEAF_FWID = "2.23.133.5.4.1"
_FWID_SIZE = 48
_OPAQUE_FWID, _OPAQUE_DRIVER, _OPAQUE_VBIOS = 20, 3, 6
_CHAIN = range(2, 9)
_SWITCHES = "LS"
"""Names of switches begin so; they state no firmware id in the exchange."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaEvidence:
    """One exchange as it came, and the device's chain, leaf first."""

    signed: bytes
    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    r: int
    s: int
    chain: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaClaims:
    """What the device vouches for."""

    device: str
    identity: str
    """SHA-256, hexadecimal, of the key that the device was born with: whatever firmware
    it runs, it is the same, and no other device's."""
    nonce: bytes
    measurements: Mapping[int, bytes]
    driver: str
    vbios: str


def parse_document(raw: bytes) -> NvidiaEvidence:
    """Read `{"kind": "nvidia-gpu", "report", "chain"}`; the chain is PEM text."""
    check = "document"
    members = read_object(raw, check)
    only_keys(members, check, frozenset({"kind", "report", "chain"}))
    if text(members, "kind", check) != EvidenceKind.NVIDIA_GPU:
        raise Reject(Code.MALFORMED, "kind", "not the kind that was asked for")
    chain = text(members, "chain", check).encode()
    return parse(base64_bytes(members, "report", check), chain)


def parse(report: bytes, chain: bytes) -> NvidiaEvidence:
    if len(report) > _MAX_REPORT:
        raise Reject(Code.MALFORMED, _CHECK, f"{len(report)} bytes")
    cursor = Cursor(report, _CHECK, "little")
    _require_head(cursor, _GET_MEASUREMENTS)
    cursor.take(2)
    nonce = cursor.take(_NONCE)
    cursor.u8()  # slot
    _require_head(cursor, _MEASUREMENTS)
    cursor.take(2)
    count, length = cursor.u8(), cursor.u24()
    measurements = _measurements(cursor.take(length), count)
    cursor.take(_NONCE)  # the device's own
    opaque = _opaque(cursor.take(cursor.u16()))
    signed = report[: cursor.offset]
    r = int.from_bytes(cursor.take(_SCALAR), "big")
    s = int.from_bytes(cursor.take(_SCALAR), "big")
    if cursor.remaining > 1:
        raise cursor.malformed("bytes after the signature")
    cursor.zeros(cursor.remaining, "the byte that some agents add")
    return NvidiaEvidence(
        signed=signed,
        nonce=nonce,
        measurements=measurements,
        opaque=opaque,
        r=r,
        s=s,
        chain=tuple(
            parse_certificate(body, "chain") for body in pem_bodies(chain, "chain")
        ),
    )


def _require_head(cursor: Cursor, code: int) -> None:
    if (version := cursor.u8()) != _SPDM_1_1:
        raise Reject(Code.UNSUPPORTED, _CHECK, f"SPDM version {version:#x}")
    if cursor.u8() != code:
        raise cursor.malformed(f"not the message {code:#x}")


def _measurements(record: bytes, count: int) -> Mapping[int, bytes]:
    blocks: dict[int, bytes] = {}
    cursor = Cursor(record, _CHECK, "little")
    for _ in range(count):
        index, specification = cursor.u8(), cursor.u8()
        block = Cursor(cursor.take(cursor.u16()), _CHECK, "little")
        if specification != _DMTF or index in blocks:
            raise cursor.malformed(f"measurement block {index}")
        block.u8()  # type
        blocks[index] = block.take(block.u16())
        block.end()
    cursor.end()
    return blocks


def _opaque(data: bytes) -> Mapping[int, bytes]:
    fields: dict[int, bytes] = {}
    cursor = Cursor(data, "opaque", "little")
    while cursor.remaining:
        kind = cursor.u16()
        if kind in fields:
            raise cursor.malformed(f"field {kind} twice")
        fields[kind] = cursor.take(cursor.u16())
    return fields


def authenticate(
    evidence: NvidiaEvidence, anchors: Anchors, now: datetime
) -> Authenticated[NvidiaClaims]:
    if anchors.nvidia is None:
        raise Reject(Code.NO_REFERENCE_VALUES, "chain", "no root for NVIDIA")
    root = parse_certificate(anchors.nvidia, "root")
    _require_chain(evidence.chain, root, now)
    leaf = evidence.chain[0]
    _require_signed(evidence, leaf)
    _require_firmware(evidence, leaf)
    return Authenticated(
        kind=EvidenceKind.NVIDIA_GPU,
        claims=NvidiaClaims(
            device=leaf.subject_cn,
            identity=_identity(evidence.chain),
            nonce=evidence.nonce,
            measurements=evidence.measurements,
            driver=_printable(evidence.opaque.get(_OPAQUE_DRIVER, b"")),
            vbios=evidence.opaque.get(_OPAQUE_VBIOS, b"").hex(),
        ),
        region_sha256=hashlib.sha256(evidence.signed).hexdigest(),
        endorsements={"leaf_sha256": leaf.sha256, "root_sha256": root.sha256},
        endorsed_until=min(each.not_after for each in evidence.chain),
        token=_AUTHENTICATOR,
    )


def _identity(chain: Sequence[Certificate]) -> str:
    """Name the device: the leaf's key is made anew for each firmware by its issuer."""
    own = chain[1] if len(chain) > len(("leaf", "root")) else chain[0]
    return hashlib.sha256(own.spki).hexdigest()


def _require_chain(
    chain: Sequence[Certificate], root: Certificate, now: datetime
) -> None:
    if len(chain) not in _CHAIN:
        raise Reject(
            Code.CHAIN_INVALID,
            "chain",
            "length",
            expected=f"{_CHAIN[0]} to {_CHAIN[-1]}",
            actual=str(len(chain)),
        )
    if chain[-1].der != root.der:
        raise Reject(
            Code.CHAIN_INVALID,
            "chain",
            "not our root",
            expected=root.subject_cn,
            actual=chain[-1].subject_cn,
        )
    for certificate, issuer in zip(chain, (*chain[1:], root), strict=True):
        certificate.require_issued_by(issuer, "chain")
    for certificate in chain:
        certificate.require_in_date(now, "chain")


def _require_signed(evidence: NvidiaEvidence, leaf: Certificate) -> None:
    key = leaf.key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Reject(Code.UNSUPPORTED, "chain", "the device's key is not on a curve")
    try:
        signature = encode_dss_signature(evidence.r, evidence.s)
        key.verify(signature, evidence.signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        raise Reject(
            Code.SIGNATURE_INVALID, "signature", "not signed by the device's key"
        ) from None


def _require_firmware(evidence: NvidiaEvidence, leaf: Certificate) -> None:
    """Refuse a key that was derived for other firmware than now runs."""
    extension = leaf.extensions.get(_LEAF_FWID)
    if extension is None:
        raise Reject(Code.UNSUPPORTED, "firmware", "the leaf states no firmware id")
    endorsed = der.whole(extension, der.SEQUENCE, "firmware")[-_FWID_SIZE:]
    running = evidence.opaque.get(_OPAQUE_FWID)
    if running is None and leaf.subject_cn.startswith(_SWITCHES):
        return
    if running != endorsed:
        raise Reject(
            Code.ENDORSEMENT_MISMATCH,
            "firmware",
            "the leaf is about other firmware",
            expected=endorsed.hex(),
            actual=(running or b"").hex(),
        )


def _printable(data: bytes) -> str:
    text = data.rstrip(b"\0").decode("ascii", "replace")
    return text if text.isprintable() else ""
