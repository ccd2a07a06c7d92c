"""TPMT_SIGNATURE, and whether one holds under a key."""

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.keys import AttestationKey
from trustfabric.domain.evidence.model import Code, Reject
from trustfabric.domain.evidence.tpm2_public import (
    ALG_ECDSA,
    ALG_NULL,
    ALG_RSAPSS,
    ALG_RSASSA,
    HASHES,
    TpmPublic,
)

_CHECK = "signature"
_MAX = 1100
_MAX_RSA = 512
_MAX_SCALAR = 66
_HASH_OBJECTS: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


@dataclass(frozen=True, slots=True)
class TpmSignature:
    """A scheme, its hash, and one (RSA) or two (ECDSA: r, s) numbers."""

    scheme: int
    hash: str
    parts: tuple[bytes, ...]


def parse_signature(raw: bytes) -> TpmSignature:
    if len(raw) > _MAX:
        raise Reject(Code.MALFORMED, _CHECK, f"{len(raw)} bytes")
    cursor = Cursor(raw, _CHECK)
    scheme = cursor.u16()
    if scheme not in (ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA):
        raise Reject(Code.UNSUPPORTED, _CHECK, f"scheme {scheme:#06x}")
    name = HASHES.get(number := cursor.u16())
    if name is None:
        raise Reject(Code.UNSUPPORTED, _CHECK, f"hash {number:#06x}")
    if scheme == ALG_ECDSA:
        parts: tuple[bytes, ...] = (
            cursor.sized(_MAX_SCALAR),
            cursor.sized(_MAX_SCALAR),
        )
    else:
        parts = (cursor.sized(_MAX_RSA),)
    cursor.end()
    return TpmSignature(scheme, name, parts)


def bare_rsassa(raw: bytes, digest: str = "sha256") -> TpmSignature:
    """Azure's form: the number alone, without scheme and hash."""
    if not raw or len(raw) > _MAX_RSA or digest not in _HASH_OBJECTS:
        raise Reject(Code.MALFORMED, _CHECK, f"{len(raw)} bytes, {digest}")
    return TpmSignature(ALG_RSASSA, digest, (raw,))


def fits(signature: TpmSignature, public: TpmPublic | None) -> bool:
    """Whether the key may sign so, where its TPM said how it signs."""
    if public is None or public.scheme == ALG_NULL:
        return True
    return (signature.scheme, signature.hash) == (public.scheme, public.scheme_hash)


def verifies(signature: TpmSignature, key: AttestationKey, data: bytes) -> bool:
    algorithm = _HASH_OBJECTS[signature.hash]
    try:
        if isinstance(key, rsa.RSAPublicKey):
            return _rsa(signature, key, data, algorithm)
        if signature.scheme != ALG_ECDSA:
            return False
        r, s = (int.from_bytes(part, "big") for part in signature.parts)
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(algorithm))
    except (InvalidSignature, ValueError):
        return False
    return True


def _rsa(
    signature: TpmSignature,
    key: rsa.RSAPublicKey,
    data: bytes,
    algorithm: hashes.HashAlgorithm,
) -> bool:
    if signature.scheme == ALG_RSASSA:
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    elif signature.scheme == ALG_RSAPSS:
        scheme = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
    else:
        return False
    key.verify(signature.parts[0], data, scheme, algorithm)
    return True
