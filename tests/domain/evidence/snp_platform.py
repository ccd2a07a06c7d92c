"""An AMD platform of our own: roots, chips, reports of any version and product."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from trustfabric.domain.evidence.anchors import AmdRoots, Anchors

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
YEAR = timedelta(days=365)
REPORT_DATA = bytes(range(64))
MEASUREMENT = b"\x4d" * 48
CPUIDS = {"Milan": (0x19, 0x01), "Genoa": (0x19, 0x11), "Turin": (0x1A, 0x02)}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
ARC = "1.3.6.1.4.1.3704.1."


@dataclass(frozen=True)
class Versions:
    fmc: int = 1
    bl: int = 10
    tee: int = 2
    snp: int = 23
    ucode: int = 200

    def raw(self, product: str) -> bytes:
        if product == "Turin":
            return bytes((self.fmc, self.bl, self.tee, self.snp, 0, 0, 0, self.ucode))
        return bytes((self.bl, self.tee, 0, 0, 0, 0, self.snp, self.ucode))

    def spls(self, product: str) -> Iterable[tuple[str, int]]:
        yield from (("3.1", self.bl), ("3.2", self.tee), ("3.3", self.snp))
        yield "3.8", self.ucode
        if product == "Turin":
            yield "3.9", self.fmc


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def integer(number: int) -> bytes:
    body = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return bytes((2, len(body))) + body


@cache
def rsa_key(_role: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One product's authority and one chip of it."""

    product: str = "Milan"
    authority: str = "own"
    chip_key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )
    versions: Versions = field(default_factory=Versions)

    @property
    def chip_id(self) -> bytes:
        return b"\xc1" * (8 if self.product == "Turin" else 64)

    def authority_key(self, role: str) -> rsa.RSAPrivateKey:
        return rsa_key(f"{self.authority} {role}")

    def authority_certificate(self, role: str, *, serial: int = 100) -> bytes:
        """`ark`, `ask` or `asvk`."""
        names = {
            "ark": f"ARK-{self.product}",
            "ask": f"SEV-{self.product}",
            "asvk": f"SEV-VLEK-{self.product}",
        }
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name(names[role]))
            .issuer_name(name(names["ark"]))
            .public_key(self.authority_key(role).public_key())
            .serial_number(serial)
            .not_valid_before(NOW - YEAR)
            .not_valid_after(NOW + YEAR)
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .sign(self.authority_key("ark"), hashes.SHA384(), rsa_padding=PSS)
        )
        return certificate.public_bytes(Encoding.DER)

    def leaf(
        self,
        *,
        signer: str = "VCEK",
        wrapped: bool = False,
        changes: Mapping[str, bytes | None] | None = None,
        after: timedelta = YEAR,
    ) -> bytes:
        """The certificate of the chip's key; `changes` by extension, None: left out."""
        issuer, role = ("SEV-VLEK-", "asvk") if signer == "VLEK" else ("SEV-", "ask")
        product = f"{self.product}-B0".encode()
        extensions: dict[str, bytes | None] = {
            "1": integer(0),
            "2": bytes((0x16, len(product))) + product,
            **{arc: integer(spl) for arc, spl in self.versions.spls(self.product)},
        }
        if signer == "VLEK":
            extensions["5"] = b"\x16\x05cloud"
        else:
            prefix = bytes((4, len(self.chip_id))) if wrapped else b""
            extensions["4"] = prefix + self.chip_id
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(f"SEV-{signer}"))
            .issuer_name(name(issuer + self.product))
            .public_key(self.chip_key.public_key())
            .serial_number(1)
            .not_valid_before(NOW - YEAR)
            .not_valid_after(NOW + after)
        )
        for arc, value in (extensions | dict(changes or {})).items():
            if value is not None:
                oid = x509.ObjectIdentifier(ARC + arc)
                builder = builder.add_extension(
                    x509.UnrecognizedExtension(oid, value), critical=False
                )
        certificate = builder.sign(
            self.authority_key(role), hashes.SHA384(), rsa_padding=PSS
        )
        return certificate.public_bytes(Encoding.DER)

    def crl(
        self, *serials: int, next_update: datetime = NOW + YEAR, role: str = "ark"
    ) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(f"ARK-{self.product}"))
            .last_update(NOW - YEAR)
            .next_update(next_update)
        )
        for serial in serials:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(NOW - YEAR)
                .build()
            )
        signed = builder.sign(
            self.authority_key(role), hashes.SHA384(), rsa_padding=PSS
        )
        return signed.public_bytes(Encoding.DER)

    def anchors(self, crl: bytes | None = None) -> Anchors:
        roots = AmdRoots(
            ark=self.authority_certificate("ark"),
            intermediates=(
                self.authority_certificate("ask", serial=101),
                self.authority_certificate("asvk", serial=102),
            ),
            crl=crl,
        )
        return Anchors(amd={self.product: roots})

    def report(
        self,
        *,
        version: int = 3,
        policy: int = 0x3_0000,
        vmpl: int = 0,
        flags: int = 0,
        product: str | None = None,
        committed: Versions | None = None,
        changes: Mapping[int, bytes] | None = None,
        unsigned: Mapping[int, bytes] | None = None,
    ) -> bytes:
        """`changes` are signed, `unsigned` are made afterwards; both by offset."""
        report = bytearray(0x4A0)
        tcb = self.versions.raw(self.product)
        fields = {
            0x000: version.to_bytes(4, "little"),
            0x008: policy.to_bytes(8, "little"),
            0x030: vmpl.to_bytes(4, "little"),
            0x034: (1).to_bytes(4, "little"),
            0x038: tcb,
            0x048: flags.to_bytes(4, "little"),
            0x050: REPORT_DATA,
            0x090: MEASUREMENT,
            0x140: b"\x1d" * 32,
            0x180: tcb,
            0x1A0: self.chip_id,
            0x1E0: (committed or self.versions).raw(self.product),
            0x1F0: tcb,
        }
        if version >= 3:
            fields[0x188] = bytes((*CPUIDS[product or self.product], 1))
        for offset, value in (fields | dict(changes or {})).items():
            report[offset : offset + len(value)] = value
        signature = self.chip_key.sign(bytes(report[:0x2A0]), ec.ECDSA(hashes.SHA384()))
        for offset, number in zip(
            (0x2A0, 0x2E8), decode_dss_signature(signature), strict=True
        ):
            report[offset : offset + 48] = number.to_bytes(48, "little")
        for offset, value in (unsigned or {}).items():
            report[offset : offset + len(value)] = value
        return bytes(report)
