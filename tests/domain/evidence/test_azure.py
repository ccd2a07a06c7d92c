"""Azure's composite, from a processor and a TPM of our own."""

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.domain.evidence.snp_platform import NOW, Platform
from tests.domain.evidence.tpm_quotes import NONCE, RSASSA, FakeTpm
from tests.domain.test_attestation_vectors import CASES, read
from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import (
    AppraisalPolicy,
    AzurePolicy,
    Kinds,
    SnpPolicy,
    TdxPolicy,
    TpmPolicy,
)
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import Code, EvidenceKind
from trustfabric.domain.evidence.packaged import packaged_anchors

CHIP = Platform()
TPM = FakeTpm(key=rsa.generate_private_key(65537, 2048), scheme=RSASSA)
ZERO = {index: bytes(32) for index in range(9)}
PCRS = TpmPolicy(pcrs=dict.fromkeys(range(9), ("00" * 32,)))
POLICY = AzurePolicy(
    snp=SnpPolicy(measured=False), tdx=TdxPolicy(measured=False), tpm=PCRS
)
PARAVISOR = b"\x4d" * 48


def runtime_data(tpm: FakeTpm = TPM, **changes: Any) -> bytes:
    assert isinstance(tpm.key, rsa.RSAPrivateKey)
    key = RSAAlgorithm.to_jwk(tpm.key.public_key(), as_dict=True)
    document = {
        "keys": [key | {"kid": "HCLAkPub"}, key | {"kid": "HCLEkPub"}],
        "vm-configuration": {"secure-boot": True, "vmUniqueId": "id"},
    }
    return json.dumps(document | changes).encode()


def hcl(
    report: bytes, data: bytes, *, kind: int = 2, algorithm: int = 1, end: bytes = b""
) -> bytes:
    numbers = (len(data) + 20, 1, kind, algorithm, len(data))
    sizes = b"".join(number.to_bytes(4, "little") for number in numbers)
    return b"HCLA".ljust(32, b"\0") + report + sizes + data + end


def covering(data: bytes, digest: str = "sha256", **changes: Any) -> bytes:
    covered = hashlib.new(digest, data).digest().ljust(64, b"\0")
    return CHIP.report(changes={0x50: covered}, **changes)


def judge(
    wrapped: bytes,
    tpm: FakeTpm = TPM,
    *,
    nonce: bytes = NONCE,
    hardware: dict[str, bytes] | None = None,
    anchors: Anchors | None = None,
    policy: AzurePolicy = POLICY,
) -> Appraisal:
    attest = tpm.attest(ZERO, nonce=nonce)
    files = {
        "hcl": wrapped,
        "attest": attest,
        "signature": tpm.sign(attest)[6:],
        **(hardware or {"leaf": CHIP.leaf()}),
    }
    document = {
        "kind": "composite-azure-vtpm",
        "pcrs": {"sha256": {str(i): value.hex() for i, value in ZERO.items()}},
        **{name: base64.b64encode(raw).decode() for name, raw in files.items()},
    }
    return verify(
        EvidenceKind.COMPOSITE_AZURE_VTPM,
        json.dumps(document).encode(),
        expected=Expected(binding=NONCE),
        anchors=anchors or CHIP.anchors(),
        policy=AppraisalPolicy(
            id="test", version=1, kinds=Kinds(composite_azure_vtpm=policy)
        ),
        now=NOW,
    )


@pytest.mark.parametrize(
    ("number", "digest"), [(1, "sha256"), (2, "sha384"), (3, "sha512")]
)
def test_the_report_vouches_for_the_key_by_any_of_its_hashes(
    number: int, digest: str
) -> None:
    data = runtime_data()

    appraisal = judge(hcl(covering(data, digest), data, algorithm=number))

    assert appraisal.code is Code.OK, appraisal.notes()
    assert appraisal.claims["secure_boot"] is True


def test_a_key_that_the_report_does_not_cover_is_refused() -> None:
    other = replace(TPM, key=rsa.generate_private_key(65537, 2048))
    wrapped = hcl(covering(runtime_data()), runtime_data(other))

    assert judge(wrapped, other).code is Code.ENDORSEMENT_MISMATCH


def test_the_quote_of_another_key_is_refused() -> None:
    other = replace(TPM, key=rsa.generate_private_key(65537, 2048))
    data = runtime_data()

    assert judge(hcl(covering(data), data), other).code is Code.SIGNATURE_INVALID


def test_the_nonce_is_the_quotes() -> None:
    data = runtime_data()

    appraisal = judge(hcl(covering(data), data), nonce=bytes(32))

    assert appraisal.code is Code.NONCE_MISMATCH


def test_the_hardware_is_appraised_too() -> None:
    data = runtime_data()

    appraisal = judge(hcl(covering(data, policy=0x3_0000 | 1 << 19), data))

    assert appraisal.code is Code.DEBUG_ENABLED


@pytest.mark.parametrize(
    ("policy", "measurement", "code"),
    [
        (AzurePolicy(tpm=PCRS), PARAVISOR, Code.NO_REFERENCE_VALUES),
        (
            AzurePolicy(snp=SnpPolicy(measurements=(PARAVISOR.hex(),)), tpm=PCRS),
            PARAVISOR,
            Code.OK,
        ),
        (
            AzurePolicy(snp=SnpPolicy(measurements=(PARAVISOR.hex(),)), tpm=PCRS),
            bytes(48),
            Code.MEASUREMENT_UNKNOWN,
        ),
    ],
)
def test_a_guest_that_is_not_the_paravisor_vouches_for_no_tpm(
    policy: AzurePolicy, measurement: bytes, code: Code
) -> None:
    data = runtime_data()
    covered = hashlib.sha256(data).digest().ljust(64, b"\0")
    report = CHIP.report(changes={0x50: covered, 0x90: measurement})

    assert judge(hcl(report, data), policy=policy).code is code


@pytest.mark.parametrize(
    "changes",
    [
        {"keys": []},
        {"keys": "HCLAkPub"},
        {"keys": [{"kid": "HCLAkPub"}]},
        {"keys": [{"kid": "HCLAkPub", "kty": "RSA", "n": "A!", "e": "AQAB"}]},
        {"vm-configuration": 1},
    ],
)
def test_runtime_data_of_another_shape_is_malformed(changes: dict[str, Any]) -> None:
    data = runtime_data(**changes)

    appraisal = judge(hcl(covering(data), data))

    assert appraisal.code in {Code.MALFORMED, Code.UNSUPPORTED}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"kind": 9}, Code.UNSUPPORTED),
        ({"kind": 4}, Code.MALFORMED),
        ({"algorithm": 4}, Code.UNSUPPORTED),
        ({"end": b"\0" * 100}, Code.OK),
        ({"end": b"\0\x01"}, Code.MALFORMED),
    ],
)
def test_the_wrapping_is_read_strictly(changes: dict[str, Any], code: Code) -> None:
    data = runtime_data()

    assert judge(hcl(covering(data), data, **changes)).code is code


def test_a_trust_domain_vouches_for_its_key_only_if_it_covers_it() -> None:
    case = CASES["intel-tdx/v4-uptodate-phala/good"]
    anchors = Anchors(
        intel=packaged_anchors().intel, intel_collateral=read(case["collateral"])
    )
    wrapped = hcl(bytes(1184), runtime_data(), kind=4)
    attest = TPM.attest(ZERO)
    document = {
        "kind": "composite-azure-vtpm",
        "hcl": base64.b64encode(wrapped).decode(),
        "td_quote": base64.b64encode(read(case["quote"])).decode(),
        "attest": base64.b64encode(attest).decode(),
        "signature": base64.b64encode(TPM.sign(attest)[6:]).decode(),
        "pcrs": {"sha256": {str(i): value.hex() for i, value in ZERO.items()}},
    }

    appraisal = verify(
        EvidenceKind.COMPOSITE_AZURE_VTPM,
        json.dumps(document).encode(),
        expected=Expected(binding=NONCE),
        anchors=anchors,
        policy=AppraisalPolicy(id="test", version=1),
        now=NOW.replace(year=2025, month=6, day=20),
    )

    assert appraisal.code is Code.ENDORSEMENT_MISMATCH
    assert appraisal.checks[0].name == "runtime-data"
