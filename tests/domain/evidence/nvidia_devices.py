"""NVIDIA devices of our own: a root, and any number of devices under it."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from trustfabric.domain.evidence.anchors import Anchors

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
FWID = b"\xf1" * 48
BLOCKS = {1: b"\x01" * 48, 2: b"\x02" * 48}
_FWID_OID = x509.ObjectIdentifier("2.23.133.5.4.1")
_EVER = datetime(9999, 12, 31, tzinfo=UTC)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def certificate(
    subject: str,
    subject_key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool = True,
    fwid: bytes | None = None,
    until: datetime = _EVER,
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(subject_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
    )
    if fwid is not None:
        value = bytes((0x30, 2 + len(fwid), 0x04, len(fwid))) + fwid
        builder = builder.add_extension(
            x509.UnrecognizedExtension(_FWID_OID, value), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA384())


ROOT_KEY = new_key()
ROOT = certificate("root", ROOT_KEY, "root", ROOT_KEY)
ANCHORS = Anchors(nvidia=ROOT.public_bytes(Encoding.DER))


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One SPDM exchange, before it is signed."""

    nonce: bytes = bytes(range(32))
    measured: Mapping[int, bytes] = field(default_factory=lambda: BLOCKS)
    version: int = 0x11
    answer: int = 0x60
    blocks: int | None = None
    opaque: bytes = b"\x14\0\x30\0" + FWID + b"\x03\0\x04\x00535\0"
    end: bytes = b""

    def signed(self) -> bytes:
        record = b"".join(
            bytes((index, 1))
            + (len(value) + 3).to_bytes(2, "little")
            + b"\x01"
            + len(value).to_bytes(2, "little")
            + value
            for index, value in self.measured.items()
        )
        count = len(self.measured) if self.blocks is None else self.blocks
        return b"".join(
            (
                bytes((self.version, 0xE0, 1, 0xFF)),
                self.nonce,
                b"\0",
                bytes((self.version, self.answer, 0, 0, count)),
                len(record).to_bytes(3, "little"),
                record,
                bytes(32),
                len(self.opaque).to_bytes(2, "little"),
                self.opaque,
            )
        )


def document(report: bytes, chain: Sequence[x509.Certificate]) -> bytes:
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in chain)
    report_text = base64.b64encode(report).decode()
    return json.dumps(
        {"kind": "nvidia-gpu", "report": report_text, "chain": pem.decode()}
    ).encode()


@dataclass
class Device:
    """A GPU: a key that it is born with, and one that its firmware was given."""

    born: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)

    def __post_init__(self) -> None:
        self._ca = certificate("GH100 BROM", self.born, "root", ROOT_KEY)
        self.flash(self.key)

    def flash(self, key: ec.EllipticCurvePrivateKey) -> None:
        """Load other firmware: the device is the same, its leaf is another."""
        self.key = key
        self._leaf = certificate(
            "GH100", key, "GH100 BROM", self.born, authority=False, fwid=FWID
        )

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        return (self._leaf, self._ca, ROOT)

    def report(self, exchange: Exchange) -> bytes:
        signed = exchange.signed()
        signature = self.key.sign(signed, ec.ECDSA(hashes.SHA384()))
        numbers = decode_dss_signature(signature)
        return signed + b"".join(n.to_bytes(48, "big") for n in numbers) + exchange.end

    def evidence(
        self, nonce: bytes, measured: Mapping[int, bytes] | None = None
    ) -> bytes:
        """Return the evidence document for a nonce."""
        exchange = Exchange(nonce=nonce, measured=measured or BLOCKS)
        return document(self.report(exchange), self.chain)
