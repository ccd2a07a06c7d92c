"""TPMT_PUBLIC: how a TPM describes one of its keys."""

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.model import Code, Reject

_CHECK = "ak-public"
_MAX = 1024

HASHES: Final = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
"""TPM_ALG_ID to hash; SHA-1 is left out on purpose."""

ALG_RSA: Final = 0x0001
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAPSS: Final = 0x0016
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023

FIXED_TPM: Final = 0x0000_0002
FIXED_PARENT: Final = 0x0000_0010
RESTRICTED: Final = 0x0001_0000
DECRYPT: Final = 0x0002_0000
SIGN: Final = 0x0004_0000

_REQUIRED = {
    "fixedTPM": FIXED_TPM,
    "fixedParent": FIXED_PARENT,
    "restricted": RESTRICTED,
    "sign": SIGN,
}
_CURVES: dict[int, type[ec.EllipticCurve]] = {
    0x0003: ec.SECP256R1,
    0x0004: ec.SECP384R1,
    0x0005: ec.SECP521R1,
}
_DEFAULT_EXPONENT = 65537


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPublic:
    """One key: its attributes, its name, and the key itself."""

    attributes: int
    scheme: int
    """ALG_NULL where the key may sign with any scheme."""
    scheme_hash: str | None
    name: bytes
    """nameAlg and digest of the description: what the TPM calls the key."""
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    def require_attestation_key(self) -> None:
        """Refuse a key that signs whatever it is given, or that can leave its TPM."""
        for word, bit in _REQUIRED.items():
            if not self.attributes & bit:
                raise Reject(
                    Code.ENDORSEMENT_MISMATCH, _CHECK, f"attribute {word} is off"
                )
        if self.attributes & DECRYPT:
            raise Reject(Code.ENDORSEMENT_MISMATCH, _CHECK, "attribute decrypt is on")


def parse_public(raw: bytes) -> TpmPublic:
    if len(raw) > _MAX:
        raise Reject(Code.MALFORMED, _CHECK, f"{len(raw)} bytes")
    cursor = Cursor(raw, _CHECK)
    kind = cursor.u16()
    name_hash = HASHES.get(name_alg := cursor.u16())
    if kind not in (ALG_RSA, ALG_ECC) or name_hash is None:
        raise Reject(Code.UNSUPPORTED, _CHECK, f"type {kind:#x}, name {name_alg:#x}")
    attributes = cursor.u32()
    cursor.sized(64)  # authPolicy
    if cursor.u16() != ALG_NULL:  # the symmetric cipher of a storage key
        cursor.take(4)
    scheme, scheme_hash = cursor.u16(), None
    if scheme != ALG_NULL:
        scheme_hash = HASHES.get(cursor.u16(), "unsupported")
    key = _rsa(cursor) if kind == ALG_RSA else _ecc(cursor)
    cursor.end()
    return TpmPublic(
        attributes=attributes,
        scheme=scheme,
        scheme_hash=scheme_hash,
        name=name_alg.to_bytes(2, "big") + hashlib.new(name_hash, raw).digest(),
        key=key,
    )


def _rsa(cursor: Cursor) -> rsa.RSAPublicKey:
    bits, exponent = cursor.u16(), cursor.u32() or _DEFAULT_EXPONENT
    modulus = int.from_bytes(cursor.sized(512), "big")
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError as error:
        raise cursor.malformed(str(error)) from None
    if key.key_size != bits:
        raise cursor.malformed(f"a modulus of {key.key_size} bits, not {bits}")
    return key


def _ecc(cursor: Cursor) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(number := cursor.u16())
    if curve is None:
        raise Reject(Code.UNSUPPORTED, _CHECK, f"curve {number:#x}")
    if cursor.u16() != ALG_NULL:  # the key derivation scheme
        cursor.u16()
    x = int.from_bytes(cursor.sized(66), "big")
    y = int.from_bytes(cursor.sized(66), "big")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    except ValueError:
        raise cursor.malformed("the point is not on the curve") from None
