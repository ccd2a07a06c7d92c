"""Documents of cases: what is wrong with one is told before anything is judged."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.domain.evidence.snp_platform import REPORT_DATA, Platform
from tests.domain.evidence.test_tpm2 import TPM as TPM_MAKER
from tests.domain.evidence.test_tpm2 import ZERO
from tests.domain.evidence.tpm_quotes import NONCE
from tests.domain.test_attestation_vectors import CASES, DEV, DOCUMENT, read
from trustfabric.domain.attestation.cases import judge_document
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.errors import MalformedError
from trustfabric.verify import verify_cases

ROOTS = DEV.parent / "roots"
TPM = CASES["tpm/swtpm-ecc/good"]
SNP = CASES["amd-sev-snp/milan-v2-trustee/good"]


def judge(*cases: Any) -> list[Any]:
    document = json.dumps({"cases": cases}).encode()
    return list(judge_document(document, read, packaged_anchors()))


def without(case: Any, key: str) -> Any:
    return {name: value for name, value in case.items() if name != key}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{",
        b'{"cases": {}}',
        b'{"cases": [1]}',
        b'{"cases": [{"kind": "tpm"}]}',
        b'{"cases": [{"id": "x"}]}',
        b'{"cases": [], "cases": []}',
        b"\xff",
    ],
)
def test_a_document_of_another_shape_is_malformed(document: bytes) -> None:
    with pytest.raises(MalformedError):
        list(judge_document(document, read, packaged_anchors()))


@pytest.mark.parametrize("key", ["attest", "signature", "ak", "pcrs", "nonce", "bank"])
def test_a_case_without_one_of_its_fields_is_malformed(key: str) -> None:
    with pytest.raises(MalformedError, match=TPM["id"]):
        judge(without(TPM, key))


def test_a_case_without_a_time_is_malformed_where_certificates_have_dates() -> None:
    with pytest.raises(MalformedError, match="now"):
        judge(without(SNP, "now"))


def test_a_missing_file_is_malformed() -> None:
    with pytest.raises(MalformedError, match=r"no-such\.bin"):
        judge(TPM | {"attest": "no-such.bin"})


def test_a_policy_with_a_wrong_value_is_malformed() -> None:
    with pytest.raises(MalformedError, match="max_vmpl"):
        judge(SNP | {"policy": SNP["policy"] | {"max_vmpl": "none"}})


def test_a_policy_in_words_that_nobody_knows_is_never_accepted() -> None:
    (answer,) = judge(SNP | {"policy": SNP["policy"] | {"phase_of_moon": "full"}})

    assert (answer["accept"], answer["code"]) == (False, "unsupported")


def test_a_kind_that_nobody_knows_is_never_accepted() -> None:
    (answer,) = judge(TPM | {"kind": "abacus"})

    assert (answer["accept"], answer["code"]) == (False, "unsupported")
    assert answer["status"] == "unknown"


def test_asking_for_a_case_that_is_not_there_is_malformed() -> None:
    with pytest.raises(MalformedError, match="nobody"):
        judge_document(DOCUMENT, read, packaged_anchors(), only="nobody")


def test_an_empty_document_has_no_answers() -> None:
    assert judge() == []


def test_a_document_on_disk_is_judged_with_its_files(tmp_path: Path) -> None:
    packaged = list(verify_cases(DEV / "index.json", only=SNP["id"]))
    given = list(verify_cases(DEV / "index.json", anchors=ROOTS, only=SNP["id"]))

    assert packaged == given
    assert packaged[0]["accept"] is True


def test_without_a_makers_root_its_evidence_is_not_accepted(tmp_path: Path) -> None:
    (tmp_path / "intel_sgx_root_ca.pem").write_bytes(
        (ROOTS / "intel_sgx_root_ca.pem").read_bytes()
    )

    (verdict,) = verify_cases(DEV / "index.json", anchors=tmp_path, only=SNP["id"])

    assert verdict["accept"] is False


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_folder_without_anchors_is_malformed(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "amd_milan_ark.pem").write_bytes(content)

    with pytest.raises(MalformedError):
        verify_cases(DEV / "index.json", anchors=tmp_path)


def test_a_document_that_is_not_there_is_malformed(tmp_path: Path) -> None:
    with pytest.raises(MalformedError):
        verify_cases(tmp_path / "none.json")


@pytest.mark.parametrize("form", ["der", "tpmt", "tpm2b"])
def test_an_attestation_key_comes_in_any_usual_form(form: str) -> None:
    attest = TPM_MAKER.attest(ZERO)
    public = TPM_MAKER.public()
    files = {
        "attest": attest,
        "signature": TPM_MAKER.sign(attest),
        "pcrs": json.dumps({i: value.hex() for i, value in ZERO.items()}).encode(),
        "der": TPM_MAKER.enrolled().spki,
        "tpmt": public,
        "tpm2b": len(public).to_bytes(2, "big") + public,
    }
    case = TPM | {
        "attest": "attest",
        "signature": "signature",
        "pcrs": "pcrs",
        "ak": form,
        "nonce": NONCE.hex(),
        "policy": {"require_pcrs": [0], "reference": {"0": ["00" * 32]}},
    }
    document = json.dumps({"cases": [case]}).encode()

    (verdict,) = judge_document(document, files.__getitem__, packaged_anchors())

    assert verdict["accept"] is True, verdict


def test_a_synthetic_platform_brings_its_own_roots() -> None:
    chip = Platform(product="Turin")
    files = {
        "x/report": chip.report(version=5),
        "x/leaf": chip.leaf(),
        "x/fake.ark.pem": chip.authority_certificate("ark"),
        "x/fake.ask.pem": chip.authority_certificate("ask"),
        "x/crl": chip.crl(),
    }

    def read_synthetic(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError(name)
        return files[name]

    case = SNP | {
        "report": "x/report",
        "leaf": "x/leaf",
        "crl": "x/crl",
        "anchor": "fake",
        "product": "Turin",
        "now": "2026-11-22T12:00:00Z",
        "policy": {"report_data": REPORT_DATA.hex(), "min_tcb": {"fmc": 1, "snp": 23}},
    }
    document = json.dumps({"cases": [case]}).encode()

    (verdict,) = judge_document(document, read_synthetic, packaged_anchors())

    assert verdict["accept"] is True, verdict
