"""NVIDIA device evidence, from a device of our own."""

import base64
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import AppraisalPolicy, Kinds, NvidiaPolicy
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import Code, EvidenceKind

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NONCE = bytes(range(32))
FWID = b"\xf1" * 48
BLOCKS = {1: b"\x01" * 48, 2: b"\x02" * 48}
FWID_OID = x509.ObjectIdentifier("2.23.133.5.4.1")


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


ROOT_KEY, CA_KEY, DEVICE_KEY = key(), key(), key()


def certificate(
    subject: str,
    subject_key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool = True,
    fwid: bytes | None = None,
    after: timedelta = timedelta(days=9),
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(subject_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=9))
        .not_valid_after(NOW + after)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
    )
    if fwid is not None:
        value = bytes((0x30, 2 + len(fwid), 0x04, len(fwid))) + fwid
        builder = builder.add_extension(
            x509.UnrecognizedExtension(FWID_OID, value), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA384())


ROOT = certificate("root", ROOT_KEY, "root", ROOT_KEY)
CA = certificate("ca", CA_KEY, "root", ROOT_KEY)
LEAF = certificate("GH100", DEVICE_KEY, "ca", CA_KEY, authority=False, fwid=FWID)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    version: int = 0x11
    answer: int = 0x60
    blocks: int | None = None
    opaque: bytes = b"\x14\0\x30\0" + FWID + b"\x03\0\x04\x00535\0"
    end: bytes = b""

    def report(self) -> bytes:
        record = b"".join(
            bytes((index, 1))
            + (len(value) + 3).to_bytes(2, "little")
            + b"\x01"
            + len(value).to_bytes(2, "little")
            + value
            for index, value in BLOCKS.items()
        )
        count = len(BLOCKS) if self.blocks is None else self.blocks
        signed = b"".join(
            (
                bytes((self.version, 0xE0, 1, 0xFF)),
                NONCE,
                b"\0",
                bytes((self.version, self.answer, 0, 0, count)),
                len(record).to_bytes(3, "little"),
                record,
                bytes(32),
                len(self.opaque).to_bytes(2, "little"),
                self.opaque,
            )
        )
        numbers = decode_dss_signature(
            DEVICE_KEY.sign(signed, ec.ECDSA(hashes.SHA384()))
        )
        return signed + b"".join(n.to_bytes(48, "big") for n in numbers) + self.end


def judge(
    exchange: Exchange | None = None,
    chain: tuple[x509.Certificate, ...] = (LEAF, CA, ROOT),
    *,
    anchors: Anchors | None = None,
    nonce: bytes = NONCE,
    **policy: Any,
) -> Appraisal:
    document = {
        "kind": "nvidia-gpu",
        "report": base64.b64encode((exchange or Exchange()).report()).decode(),
        "chain": b"".join(each.public_bytes(Encoding.PEM) for each in chain).decode(),
    }
    section = NvidiaPolicy(**{"measurements": {1: (BLOCKS[1].hex(),)}, **policy})
    return verify(
        EvidenceKind.NVIDIA_GPU,
        json.dumps(document).encode(),
        expected=Expected(binding=nonce),
        anchors=anchors or Anchors(nvidia=ROOT.public_bytes(Encoding.DER)),
        policy=AppraisalPolicy(id="test", version=1, kinds=Kinds(nvidia_gpu=section)),
        now=NOW,
    )


def test_a_device_with_known_measurements_is_trusted() -> None:
    appraisal = judge()

    assert appraisal.code is Code.OK
    assert (appraisal.claims["device"], appraisal.claims["driver"]) == ("GH100", "535")


def test_one_trailing_zero_is_tolerated_and_no_more() -> None:
    assert judge(Exchange(end=b"\0")).accepted
    assert judge(Exchange(end=b"\x01")).code is Code.MALFORMED
    assert judge(Exchange(end=b"\0\0")).code is Code.MALFORMED


@pytest.mark.parametrize(
    ("measurements", "code"),
    [
        ({1: ("ff" * 48,)}, Code.MEASUREMENT_UNKNOWN),
        ({9: ("ff" * 48,)}, Code.POLICY_VIOLATION),
        ({}, Code.NO_REFERENCE_VALUES),
    ],
)
def test_measurements_are_compared_with_what_is_allowed(
    measurements: dict[int, tuple[str, ...]], code: Code
) -> None:
    assert judge(measurements=measurements).code is code


@pytest.mark.parametrize(
    ("exchange", "code"),
    [
        (Exchange(version=0x12), Code.UNSUPPORTED),
        (Exchange(answer=0x7F), Code.MALFORMED),
        (Exchange(blocks=1), Code.MALFORMED),
        (Exchange(blocks=3), Code.MALFORMED),
        (Exchange(opaque=b"\x14\0\x30\0" + bytes(48)), Code.ENDORSEMENT_MISMATCH),
        (Exchange(opaque=b""), Code.ENDORSEMENT_MISMATCH),
        (Exchange(opaque=b"\x03\0\0\0" * 2), Code.MALFORMED),
    ],
)
def test_an_exchange_of_another_shape_is_refused(
    exchange: Exchange, code: Code
) -> None:
    assert judge(exchange).code is code


def test_a_switch_states_no_firmware_in_the_exchange() -> None:
    switch = certificate("LS_10", DEVICE_KEY, "ca", CA_KEY, authority=False, fwid=FWID)

    assert judge(Exchange(opaque=b""), (switch, CA, ROOT)).accepted


def test_a_leaf_without_a_firmware_id_is_unsupported() -> None:
    newer = certificate("GB100", DEVICE_KEY, "ca", CA_KEY, authority=False)

    assert judge(chain=(newer, CA, ROOT)).code is Code.UNSUPPORTED


OTHER = certificate("root", CA_KEY, "root", CA_KEY)


@pytest.mark.parametrize(
    ("chain", "code"),
    [
        ((ROOT,), Code.CHAIN_INVALID),
        ((LEAF, CA), Code.CHAIN_INVALID),
        ((LEAF, ROOT), Code.CHAIN_INVALID),
        ((LEAF, CA, OTHER), Code.CHAIN_INVALID),
        ((LEAF, CA, ROOT, ROOT, ROOT, ROOT, ROOT, ROOT, ROOT), Code.CHAIN_INVALID),
        ((), Code.MALFORMED),
    ],
    ids=["root", "no-root", "no-ca", "other-root", "long", "none"],
)
def test_the_chain_ends_at_our_root(
    chain: tuple[x509.Certificate, ...], code: Code
) -> None:
    assert judge(chain=chain).code is code


def test_a_device_may_not_sign_certificates() -> None:
    child = certificate("child", DEVICE_KEY, "GH100", DEVICE_KEY, fwid=FWID)

    assert judge(chain=(child, LEAF, CA, ROOT)).code is Code.CHAIN_INVALID


def test_a_chain_out_of_date_gives_no_verdict() -> None:
    old = certificate(
        "GH100", DEVICE_KEY, "ca", CA_KEY, fwid=FWID, after=timedelta(days=-1)
    )

    assert judge(chain=(old, CA, ROOT)).code is Code.EXPIRED


def test_another_nonce_and_a_missing_root_are_refused() -> None:
    assert judge(nonce=bytes(32)).code is Code.NONCE_MISMATCH
    assert judge(anchors=Anchors()).code is Code.NO_REFERENCE_VALUES
