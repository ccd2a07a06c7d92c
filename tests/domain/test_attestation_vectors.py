"""Every vector of the shipped set is judged as it says, with no network at all."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from trustfabric.domain.attestation.cases import judge_document
from trustfabric.domain.evidence.packaged import packaged_anchors

DEV = Path(__file__).parents[1] / "data" / "vectors" / "dev"
DOCUMENT = (DEV / "index.json").read_bytes()
CASES: Mapping[str, Any] = {case["id"]: case for case in json.loads(DOCUMENT)["cases"]}


def read(name: str) -> bytes:
    return (DEV / name).read_bytes()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a verification opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("no_network")
def test_the_case_is_judged_as_the_set_says(name: str) -> None:
    expected = CASES[name]["expect"]

    (answer,) = judge_document(DOCUMENT, read, packaged_anchors(), only=name)

    assert answer["accept"] is expected["accept"], answer
    assert answer["code"] in {expected["code"], *expected.get("codes_allowed", [])}
    assert (answer["status"], answer["tier"]) == (expected["status"], expected["tier"])


def test_the_set_is_whole() -> None:
    assert len(CASES) == 79


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if not case["expect"]["accept"]]
)
def test_a_refused_case_names_a_failed_check(name: str) -> None:
    (answer,) = judge_document(DOCUMENT, read, packaged_anchors(), only=name)

    checks = answer["checks"]
    assert isinstance(checks, list)
    failed = [check for check in checks if check["result"] == "fail"]
    assert failed
    assert all(check["expected"] or check["actual"] for check in failed)
