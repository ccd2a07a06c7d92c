"""X.509 certificates: read by ourselves, since AMD gives its chips the serial number 0.

`cryptography` warns of such certificates today and will refuse them; it still does
all the arithmetic.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from trustfabric.domain.evidence import der
from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.model import Code, Reject

SKEW = timedelta(seconds=60)
"""How far clocks may differ; for certificate dates only."""

_MAX = 8192
_REMEMBERED = 256
"""Certificates and keys: a fleet's hosts send theirs again with every report."""

_BASIC_CONSTRAINTS = "2.5.29.19"
_IS_AUTHORITY = b"\x01\x01\xff"
_COMMON_NAME = "2.5.4.3"
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_PEM = b"-----BEGIN CERTIFICATE-----"

_PSS_PARAMETERS = (
    "a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
"""SHA-384, MGF1 with SHA-384, 48 bytes of salt."""
_PSS_SHA384 = (
    f"304106092a864886f70d01010a3034{_PSS_PARAMETERS}",
    f"304606092a864886f70d01010a3039{_PSS_PARAMETERS}a303020101",
)
"""Both encodings that AMD uses."""
_ECDSA_SHA384 = "300a06082a8648ce3d040303"
_ECDSA_SHA256 = "300a06082a8648ce3d040302"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What is used of one certificate. Nothing in it is verified yet."""

    der: bytes
    tbs: bytes
    algorithm: str
    """The AlgorithmIdentifier, hexadecimal."""
    signature: bytes
    serial: int
    issuer: bytes
    subject: bytes
    """Names in DER: they are compared as bytes."""
    not_before: datetime
    not_after: datetime
    spki: bytes
    extensions: Mapping[str, bytes]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.der).hexdigest()

    @property
    def subject_cn(self) -> str:
        return common_name(self.subject)

    @property
    def issuer_cn(self) -> str:
        return common_name(self.issuer)

    def key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        return _key(self.spki)

    def require_issued_by(self, issuer: "Certificate", check: str) -> None:
        """Refuse it unless `issuer`, being an authority, signed it."""
        issuer.require_authority(check)
        if self.issuer != issuer.subject:
            raise Reject(
                Code.CHAIN_INVALID,
                check,
                "another issuer",
                expected=issuer.subject_cn,
                actual=self.issuer_cn,
            )
        _require_signed(issuer.spki, issuer.subject_cn, self.der, check)

    def require_authority(self, check: str) -> None:
        """Refuse it as an issuer unless it was made to be one."""
        constraints = self.extensions.get(_BASIC_CONSTRAINTS, b"")
        if not constraints.startswith(b"\x30") or _IS_AUTHORITY not in constraints[:5]:
            raise Reject(
                Code.CHAIN_INVALID, check, f"{self.subject_cn} may not sign others"
            )

    def require_in_date(self, now: datetime, check: str) -> None:
        if not self.not_before - SKEW <= now <= _later(self.not_after):
            raise Reject(
                Code.EXPIRED,
                check,
                "out of date",
                expected=f"{self.not_before:%F} to {self.not_after:%F}",
                actual=f"{now:%F}",
            )


def _later(moment: datetime) -> datetime:
    """Add the skew, but not beyond the end of time that some certificates name."""
    return moment if moment.year == MAXYEAR else moment + SKEW


def require_pss_signature(
    issuer: Certificate, signature: bytes, data: bytes, check: str
) -> None:
    """Refuse what AMD's scheme doesn't verify, whatever it says of its own scheme."""
    _verify(issuer.key(), issuer.subject_cn, _PSS_SHA384[0], (signature, data), check)


def _verify(
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    issuer: str,
    algorithm: str,
    signed: tuple[bytes, bytes],
    check: str,
) -> None:
    signature, data = signed
    try:
        if algorithm in _PSS_SHA384 and isinstance(key, rsa.RSAPublicKey):
            scheme = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
            key.verify(signature, data, scheme, hashes.SHA384())
        elif algorithm == _ECDSA_SHA384 and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA384()))
        elif algorithm == _ECDSA_SHA256 and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        else:
            raise Reject(Code.CHAIN_INVALID, check, "an algorithm that we refuse")
    except (InvalidSignature, ValueError):
        raise Reject(Code.CHAIN_INVALID, check, f"not signed by {issuer}") from None


@lru_cache(maxsize=_REMEMBERED)
def _require_signed(issuer_spki: bytes, issuer: str, der: bytes, check: str) -> None:
    """Remember which certificates a key signed; dates are looked at each time."""
    certificate = parse_certificate(der, check)
    _verify(
        _key(issuer_spki),
        issuer,
        certificate.algorithm,
        (certificate.signature, certificate.tbs),
        check,
    )


@lru_cache(maxsize=_REMEMBERED)
def _key(spki: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        raise Reject(Code.MALFORMED, "certificate", "its key can't be read") from None
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return key
    raise Reject(Code.UNSUPPORTED, "certificate", "neither an RSA nor an EC key")


@lru_cache(maxsize=_REMEMBERED)
def parse_certificate(data: bytes, check: str) -> Certificate:
    """Read one certificate, DER or PEM."""
    if len(data) > _MAX:
        raise Reject(Code.MALFORMED, check, f"{len(data)} bytes")
    if data.lstrip().startswith(_PEM):
        return parse_certificate(pem_bodies(data, check)[0], check)
    outer = Cursor(der.whole(data, der.SEQUENCE, check), check)
    tbs = der.expect(outer, der.SEQUENCE)
    algorithm = der.expect(outer, der.SEQUENCE).encoded
    signature = _bits(der.expect(outer, der.BIT_STRING).content, check)
    outer.end()
    inner = Cursor(tbs.content, check)
    if der.expect(inner, _VERSION).content != b"\x02\x01\x02":
        raise inner.malformed("not version 3")
    serial = der.expect(inner, der.INTEGER).content
    if der.expect(inner, der.SEQUENCE).encoded != algorithm:
        raise inner.malformed("two different algorithms")
    issuer = der.expect(inner, der.SEQUENCE).encoded
    validity = Cursor(der.expect(inner, der.SEQUENCE).content, check)
    not_before, not_after = _time(validity), _time(validity)
    validity.end()
    subject = der.expect(inner, der.SEQUENCE).encoded
    spki = der.expect(inner, der.SEQUENCE).encoded
    extensions = _extensions(inner, check)
    inner.end()
    return Certificate(
        der=data,
        tbs=tbs.encoded,
        algorithm=algorithm.hex(),
        signature=signature,
        serial=int.from_bytes(serial, "big", signed=True),
        issuer=issuer,
        subject=subject,
        not_before=not_before,
        not_after=not_after,
        spki=spki,
        extensions=extensions,
    )


def pem_bodies(data: bytes, check: str) -> list[bytes]:
    """Return the DER of each certificate of a PEM file, in its order."""
    bodies: list[bytes] = []
    for part in data.split(_PEM)[1:]:
        text = part.split(b"-----END CERTIFICATE-----")[0]
        try:
            bodies.append(base64.b64decode(b"".join(text.split()), validate=True))
        except ValueError:
            raise Reject(Code.MALFORMED, check, "not a PEM certificate") from None
    if not bodies:
        raise Reject(Code.MALFORMED, check, "no PEM certificate")
    return bodies


def common_name(name: bytes) -> str:
    """Return the last common name of a DER name, or nothing."""
    found = ""
    for attributes in der.elements(der.whole(name, der.SEQUENCE, "name"), "name"):
        for attribute in der.elements(attributes.content, "name"):
            pair = Cursor(attribute.content, "name")
            kind = der.oid(der.expect(pair, der.OID).content, "name")
            if kind == _COMMON_NAME:
                found = der.read(pair).content.decode("utf-8", "replace")
    return found


def _bits(content: bytes, check: str) -> bytes:
    cursor = Cursor(content, check)
    if cursor.u8() != 0:
        raise cursor.malformed("a signature with loose bits")
    return cursor.take(cursor.remaining)


def _time(cursor: Cursor) -> datetime:
    element = der.read(cursor)
    text = element.content.decode("ascii", "replace")
    try:
        if element.tag == der.GENERALIZED_TIME:
            return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
        if element.tag == der.UTC_TIME:
            century = "20" if text < "50" else "19"
            return datetime.strptime(century + text, "%Y%m%d%H%M%SZ").replace(
                tzinfo=UTC
            )
    except ValueError:
        raise cursor.malformed("not a time") from None
    raise cursor.malformed("no time where one is wanted")


def _extensions(inner: Cursor, check: str) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    content = der.whole(der.expect(inner, _EXTENSIONS).content, der.SEQUENCE, check)
    for extension in der.elements(content, check):
        parts = list(der.elements(extension.content, check))
        if len(parts) not in (2, 3) or parts[0].tag != der.OID:
            raise inner.malformed("an extension of another shape")
        name = der.oid(parts[0].content, check)
        if parts[-1].tag != der.OCTET_STRING or name in found:
            raise inner.malformed(f"extension {name}")
        found[name] = parts[-1].content
    return found
