"""Keys that were enrolled for an attester: what its evidence is authenticated with."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from trustfabric.domain.evidence.documents import base64_bytes, only_keys, text
from trustfabric.domain.evidence.model import Code, JsonValue, Reject
from trustfabric.domain.evidence.tpm2_public import TpmPublic, parse_public

AttestationKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

SOFTWARE = frozenset({"swtpm"})
"""Endorsers that vouch for a program, not for hardware."""

_CHECK = "enrolled-key"
_MIN_RSA_BITS = 2048
_MAX_PEM = 8192
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_JWK_CURVES: dict[str, type[ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
}


@dataclass(frozen=True, slots=True)
class EnrolledKey:
    """The public half of an attestation key, and who vouched for it at enrolment."""

    spki: bytes
    """DER SubjectPublicKeyInfo."""
    endorser: str
    tpmt_public: bytes | None = None
    """The TPM's own description of the key, where it was enrolled with one."""

    @classmethod
    def from_pem(cls, pem: bytes, endorser: str) -> "EnrolledKey":
        try:
            key = load_pem_public_key(pem[:_MAX_PEM])
        except (ValueError, UnsupportedAlgorithm):
            raise Reject(Code.MALFORMED, _CHECK, "not a PEM public key") from None
        return cls(_spki(_usable(key)), endorser)

    @classmethod
    def from_der(cls, spki: bytes, endorser: str) -> "EnrolledKey":
        key = cls(spki, endorser)
        return cls(_spki(key.load()), endorser)

    @classmethod
    def from_tpmt(cls, tpmt_public: bytes, endorser: str) -> "EnrolledKey":
        """Enrol what the TPM described; one that could sign a forgery is refused."""
        public = parse_public(tpmt_public)
        public.require_attestation_key()
        return cls(_spki(_usable(public.key)), endorser, tpmt_public)

    @classmethod
    def from_jwk(cls, members: Mapping[str, object], endorser: str) -> "EnrolledKey":
        """Enrol a public JWK: RSA, or on a NIST curve."""
        try:
            key = _jwk(members)
        except ValueError:
            raise Reject(Code.MALFORMED, _CHECK, "not a JWK") from None
        return cls(_spki(_usable(key)), endorser)

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> "EnrolledKey":
        only_keys(
            document,
            _CHECK,
            frozenset({"endorser", "spki"}),
            frozenset({"tpmt_public"}),
        )
        endorser = text(document, "endorser", _CHECK)
        if document.get("tpmt_public") is not None:
            enrolled = cls.from_tpmt(
                base64_bytes(document, "tpmt_public", _CHECK), endorser
            )
        else:
            enrolled = cls.from_der(base64_bytes(document, "spki", _CHECK), endorser)
        if enrolled.spki != base64_bytes(document, "spki", _CHECK):
            raise Reject(Code.MALFORMED, _CHECK, "the two forms are different keys")
        return enrolled

    def document(self) -> dict[str, JsonValue]:
        return {
            "endorser": self.endorser,
            "spki": base64.b64encode(self.spki).decode(),
            "tpmt_public": (
                None
                if self.tpmt_public is None
                else base64.b64encode(self.tpmt_public).decode()
            ),
        }

    @property
    def key_id(self) -> str:
        return hashlib.sha256(self.spki).hexdigest()

    @property
    def software(self) -> bool:
        return self.endorser in SOFTWARE

    def load(self) -> AttestationKey:
        try:
            key = load_der_public_key(self.spki)
        except (ValueError, UnsupportedAlgorithm):
            raise Reject(Code.MALFORMED, _CHECK, "not a public key") from None
        return _usable(key)

    def described(self) -> TpmPublic | None:
        return None if self.tpmt_public is None else parse_public(self.tpmt_public)


def _usable(key: object) -> AttestationKey:
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _MIN_RSA_BITS:
            raise Reject(Code.UNSUPPORTED, _CHECK, f"RSA of {key.key_size} bits")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return key
    raise Reject(Code.UNSUPPORTED, _CHECK, "neither RSA nor a NIST curve")


def _spki(key: AttestationKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _jwk(members: Mapping[str, object]) -> AttestationKey:
    if members.get("kty") == "RSA":
        modulus, exponent = _base64url(members, "n"), _base64url(members, "e")
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    curve = _JWK_CURVES.get(text(members, "crv", _CHECK))
    if members.get("kty") != "EC" or curve is None:
        raise Reject(Code.UNSUPPORTED, _CHECK, "a JWK of another kind")
    x, y = _base64url(members, "x"), _base64url(members, "y")
    return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()


def _base64url(members: Mapping[str, object], key: str) -> int:
    word = text(members, key, _CHECK)
    padded = word + "=" * (-len(word) % 4)
    return int.from_bytes(
        base64.b64decode(padded, altchars=b"-_", validate=True), "big"
    )
