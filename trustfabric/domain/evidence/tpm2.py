"""TPM 2.0 quotes: parsed, and authenticated with an enrolled attestation key."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Final

from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.documents import (
    as_object,
    base64_bytes,
    hex_bytes,
    only_keys,
    read_object,
    text,
)
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import (
    _AUTHENTICATOR,
    Authenticated,
    Code,
    EvidenceKind,
    Reject,
)
from trustfabric.domain.evidence.tpm2_public import HASHES
from trustfabric.domain.evidence.tpm2_signature import (
    TpmSignature,
    fits,
    parse_signature,
    verifies,
)

BANKS: Final = {name: number for number, name in HASHES.items()}
"""PCR banks that count, with their TPM_ALG_ID."""

PcrValues = Mapping[str, Mapping[int, bytes]]
"""Bank to index to value."""

_GENERATED = 0xFF544347
"""What a TPM puts in front of everything it signs by itself."""
_QUOTE = 0x8018
_WEAK_BANKS = {0x0004: "sha1"}
_MAX_ATTEST = 2048
_MAX_SELECTIONS = 16
_MAX_PCR = 31
_COUNTS = 2**32


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmClock:
    """How often and how long a TPM has run; neither can go back."""

    reset_count: int
    restart_count: int
    clock: int
    """Milliseconds, meaningful within one reset and restart count."""
    key_id: str | None = field(default=None, compare=False)
    """Of the key that vouched for it, where that is known: another TPM has another
    clock."""

    def resets_since(self, other: "TpmClock") -> int:
        """Return how often the TPM was reset since `other`; negative: before it."""
        resets = (self.reset_count - other.reset_count) % _COUNTS
        return resets if resets < _COUNTS // 2 else resets - _COUNTS

    def is_before(self, other: "TpmClock") -> bool:
        """Whether this was read earlier.

        A TPM adds a constant to the counts that keys of the owner show, so they
        may wrap around: what is nearer behind is earlier.
        """
        resets = self.resets_since(other)
        restarts = (self.restart_count - other.restart_count) % _COUNTS
        if resets:
            return resets < 0
        if restarts:
            return restarts >= _COUNTS // 2
        return self.clock < other.clock


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmQuote:
    """One quote as it came: nothing in it is believed yet."""

    attest: bytes
    """The signed region."""
    signature: TpmSignature
    extra_data: bytes
    qualified_signer: bytes
    clock: TpmClock
    firmware_version: int
    selected: tuple[tuple[str, int], ...]
    """Bank and index of each quoted register, in the quote's order."""
    pcr_digest: bytes
    values: tuple[bytes, ...]
    """What the registers are said to hold, in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmClaims:
    """What an enrolled key vouches for."""

    endorser: str
    software: bool
    key_id: str
    signature_hash: str
    extra_data: bytes
    clock: TpmClock
    firmware_version: int
    pcrs: PcrValues


def parse_document(raw: bytes) -> TpmQuote:
    """Read `{"kind": "tpm", "attest", "signature", "pcrs": {bank: {index: hex}}}`."""
    check = "document"
    members = read_object(raw, check)
    only_keys(members, check, frozenset({"kind", "attest", "signature", "pcrs"}))
    if text(members, "kind", check) != EvidenceKind.TPM:
        raise Reject(Code.MALFORMED, "kind", "not the kind that was asked for")
    return parse(
        base64_bytes(members, "attest", check),
        parse_signature(base64_bytes(members, "signature", check)),
        read_pcrs(members["pcrs"]),
    )


def write_document(attest: bytes, signature: bytes, pcrs: PcrValues) -> bytes:
    """Write what `parse_document` reads; `signature` is a TPMT_SIGNATURE."""
    return json.dumps(
        {
            "kind": EvidenceKind.TPM,
            "attest": base64.b64encode(attest).decode(),
            "signature": base64.b64encode(signature).decode(),
            "pcrs": {
                bank: {str(index): value.hex() for index, value in values.items()}
                for bank, values in pcrs.items()
            },
        },
        separators=(",", ":"),
    ).encode()


def read_pcrs(value: object) -> PcrValues:
    """Banks of register values, as documents hold them."""
    check = "pcrs"
    banks: dict[str, Mapping[int, bytes]] = {}
    for bank, values in as_object(value, check).items():
        size = hashlib.new(bank).digest_size if bank in BANKS else None
        if size is None:
            raise Reject(Code.UNSUPPORTED, "pcr-bank", f"bank {bank!r}")
        registers = {
            _index(index): hex_bytes(digest, check)
            for index, digest in as_object(values, check).items()
        }
        if any(len(digest) != size for digest in registers.values()):
            raise Reject(Code.MALFORMED, check, f"{bank} values have {size} bytes")
        banks[bank] = registers
    return banks


def _index(word: str) -> int:
    if not (word.isascii() and word.isdigit()) or word != str(int(word[:3])):
        raise Reject(Code.MALFORMED, "pcrs", f"{word!r} is no register")
    if (index := int(word)) > _MAX_PCR:
        raise Reject(Code.MALFORMED, "pcrs", f"register {index}")
    return index


def parse(attest: bytes, signature: TpmSignature, pcrs: PcrValues) -> TpmQuote:
    """Take a TPMS_ATTEST apart; registers that it doesn't quote are dropped."""
    if len(attest) > _MAX_ATTEST:
        raise Reject(Code.MALFORMED, "attest", f"{len(attest)} bytes")
    cursor = Cursor(attest, "attest")
    if (magic := cursor.u32()) != _GENERATED:
        raise Reject(
            Code.MALFORMED,
            "magic",
            "not made by a TPM",
            expected=f"{_GENERATED:08x}",
            actual=f"{magic:08x}",
        )
    if (kind := cursor.u16()) != _QUOTE:
        raise Reject(Code.MALFORMED, "attest", f"type {kind:#06x} is no quote")
    qualified_signer = cursor.sized(66)
    extra_data = cursor.sized(66)
    ticks, resets, restarts = cursor.u64(), cursor.u32(), cursor.u32()
    if cursor.u8() > 1:  # `safe`, a yes or no
        raise cursor.malformed("safe is neither yes nor no")
    firmware_version = cursor.u64()
    selected = _selection(cursor)
    pcr_digest = cursor.sized(64)
    cursor.end()
    return TpmQuote(
        attest=attest,
        signature=signature,
        extra_data=extra_data,
        qualified_signer=qualified_signer,
        clock=TpmClock(reset_count=resets, restart_count=restarts, clock=ticks),
        firmware_version=firmware_version,
        selected=selected,
        pcr_digest=pcr_digest,
        values=_values(selected, pcrs),
    )


def _selection(cursor: Cursor) -> tuple[tuple[str, int], ...]:
    selected: list[tuple[str, int]] = []
    if (count := cursor.u32()) > _MAX_SELECTIONS:
        raise cursor.malformed(f"{count} PCR selections")
    for _ in range(count):
        number, size = cursor.u16(), cursor.u8()
        mask = int.from_bytes(cursor.take(size), "little")
        if mask.bit_length() > _MAX_PCR + 1:
            raise cursor.malformed("a register beyond 31")
        bank = HASHES.get(number)
        if bank is None:
            name = _WEAK_BANKS.get(number, f"{number:#06x}")
            raise Reject(
                Code.UNSUPPORTED,
                "pcr-bank",
                "a bank that proves nothing",
                expected=" or ".join(BANKS),
                actual=name,
            )
        selected += [(bank, i) for i in range(_MAX_PCR + 1) if mask >> i & 1]
    return tuple(selected)


def _values(selected: Sequence[tuple[str, int]], pcrs: PcrValues) -> tuple[bytes, ...]:
    try:
        return tuple(pcrs[bank][index] for bank, index in selected)
    except KeyError:
        raise Reject(
            Code.MALFORMED, "pcrs", "a quoted register's value is missing"
        ) from None


def authenticate(
    quote: TpmQuote, keys: Sequence[EnrolledKey]
) -> Authenticated[TpmClaims]:
    """Believe a quote that one of the enrolled keys signed; the quote names none."""
    key = _signer(quote, keys)
    _match_digest(quote)
    pcrs: dict[str, dict[int, bytes]] = {}
    for (bank, index), value in zip(quote.selected, quote.values, strict=True):
        pcrs.setdefault(bank, {})[index] = value
    return Authenticated(
        kind=EvidenceKind.TPM,
        claims=TpmClaims(
            endorser=key.endorser,
            software=key.software,
            key_id=key.key_id,
            signature_hash=quote.signature.hash,
            extra_data=quote.extra_data,
            clock=quote.clock,
            firmware_version=quote.firmware_version,
            pcrs=pcrs,
        ),
        region_sha256=hashlib.sha256(quote.attest).hexdigest(),
        endorsements={
            "ak_sha256": key.key_id,
            "endorser": key.endorser,
            "described": key.tpmt_public is not None,
        },
        token=_AUTHENTICATOR,
    )


def _signer(quote: TpmQuote, keys: Sequence[EnrolledKey]) -> EnrolledKey:
    if not keys:
        raise Reject(Code.NO_REFERENCE_VALUES, "enrolled-key", "no key was enrolled")
    for key in keys:
        public = key.described()
        if public is not None:
            public.require_attestation_key()
        if not fits(quote.signature, public):
            continue
        if verifies(quote.signature, key.load(), quote.attest):
            return key
    raise Reject(
        Code.SIGNATURE_INVALID,
        "signature",
        "not signed by an enrolled key",
        expected=" or ".join(key.key_id[:16] for key in keys),
    )


def _match_digest(quote: TpmQuote) -> None:
    """Refuse values beside the quote that aren't those of its digest."""
    digest = hashlib.new(quote.signature.hash, b"".join(quote.values)).digest()
    if not compare_digest(digest, quote.pcr_digest):
        raise Reject(
            Code.MEASUREMENT_UNKNOWN,
            "pcr-digest",
            "the register values are not the quoted ones",
            expected=quote.pcr_digest.hex(),
            actual=digest.hex(),
        )
