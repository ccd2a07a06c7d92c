"""Documents of cases: what is wrong with one is told before anything is judged."""

import json
from typing import Any

import pytest

from tests.domain.test_attestation_vectors import CASES, DOCUMENT, read
from trustfabric.domain.attestation.cases import judge_document
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.errors import MalformedError

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
