"""Signing of attestation results (ES256), with a key that a file holds."""

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from trustfabric.domain.evidence.model import JsonValue
from trustfabric.errors import UnavailableError

ALGORITHM = "ES256"
_SIZE = 32
_MAX_FILE = 8192


@dataclass(frozen=True, slots=True)
class Signer:
    """One key pair; it never shows its private half."""

    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_pem(cls, pem: bytes) -> "Signer":
        """Take a key on P-256. ValueError."""
        key = load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            raise ValueError("not a private key on P-256")  # noqa: TRY004
        return cls(key)

    @property
    def jwk(self) -> dict[str, str]:
        """The public half, as a JWKS lists it."""
        return {**self._members(), "use": "sig", "alg": ALGORITHM, "kid": self.kid}

    @property
    def kid(self) -> str:
        """RFC 7638: the digest of the key itself, so no two keys share a name."""
        canonical = json.dumps(self._members(), sort_keys=True, separators=(",", ":"))
        return _base64url(hashlib.sha256(canonical.encode()).digest())

    def sign(self, claims: Mapping[str, JsonValue]) -> str:
        return jwt.encode(dict(claims), self._key, ALGORITHM, {"kid": self.kid})

    def _members(self) -> dict[str, str]:
        numbers = self._key.public_key().public_numbers()
        return {
            "crv": "P-256",
            "kty": "EC",
            "x": _base64url(numbers.x.to_bytes(_SIZE, "big")),
            "y": _base64url(numbers.y.to_bytes(_SIZE, "big")),
        }


@dataclass(frozen=True, slots=True)
class KeyFile:
    """Where the private half is kept; read anew each time, so it can be rotated."""

    path: Path

    def signer(self) -> Signer:
        """Return what signs now. UnavailableError where the file is no key."""
        try:
            with self.path.open("rb") as file:
                return Signer.from_pem(file.read(_MAX_FILE))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "damaged"
            raise UnavailableError(
                f"the key of attestation results can't be used: {reason}"
            ) from None


def new_key() -> str:
    """Return a new private key as PEM."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    return pem.decode("ascii")


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
