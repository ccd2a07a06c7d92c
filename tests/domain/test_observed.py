"""Observe-only runs: they tell what they would have done, with secrets masked."""

from typing import Any

import pytest

from tests.domain.test_runs import a_run
from trustfabric.domain.observed import observe
from trustfabric.domain.rules import approvals_required, check_rules, is_observe_only
from trustfabric.domain.runs import Run
from trustfabric.errors import InvalidError


def observed(executor: str, metadata: dict[str, Any], **changes: Any) -> dict[str, Any]:
    run: Run = a_run(
        playbook_snapshot={"executor_type": executor, "metadata": metadata}, **changes
    )
    seen = observe(run)
    assert seen.exit.failure_reason is None
    assert len(seen.lines) == 1 + len(seen.exit.detail["would_have"])
    would: dict[str, Any] = seen.exit.detail["would_have"]
    return would


def test_of_a_program_its_argument_vector() -> None:
    would = observed(
        "shell",
        {
            "command": ["fix", "-v"],
            "args": ["a b"],
            "env": {"TOKEN": "literal", "OTHER": "secret:NAME", "HOME": "/"},
        },
        automation_payload={"password": "hunter2", "n": 1},
    )

    assert would["argv"] == ["fix", "-v", "a b"]
    assert would["env"] == {"TOKEN": "***", "OTHER": "secret:NAME", "HOME": "/"}
    assert would["parameters"] == {"password": "***", "n": 1}


def test_of_a_script_its_text() -> None:
    would = observed("shell", {"script": "echo hi", "args": ["x"]})

    assert (would["argv"], would["script"]) == (["./script", "x"], "echo hi")


def test_of_a_play_its_arguments() -> None:
    would = observed(
        "ansible", {"playbook": "site.yml", "limit": "web", "tags": ["a", "b"]}
    )

    assert would["argv"] == [
        "ansible-playbook",
        "--limit=web",
        "--tags=a,b",
        "site.yml",
    ]


def test_of_an_api_its_requests() -> None:
    would = observed(
        "cloud_api",
        {
            "method": "POST",
            "url": "https://user:word@cloud.example/x",
            "headers": {"Authorization": "Bearer x", "Accept": "*/*"},
            "body": {"run": "${run_id}", "zone": "${payload/zone}"},
            "poll": {"url": "https://cloud.example/${response/id}"},
        },
        automation_payload={"zone": "west"},
    )

    assert would["requests"] == [
        {
            "method": "POST",
            "url": "https://***@cloud.example/x",
            "headers": {"Authorization": "***", "Accept": "*/*"},
            "body": {"run": 42, "zone": "west"},
        },
        {"method": "GET", "url": "https://cloud.example/${response/id}"},
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        {"observe_only": "yes"},
        {"approvals_required": 0},
        {"approvals_required": 11},
        {"approvals_required": True},
        {"approvals_required": "2"},
        {"parameters": []},
    ],
)
def test_rules_that_make_no_sense_are_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        check_rules(metadata, approval_required=True)


def test_rules_have_defaults() -> None:
    check_rules({}, approval_required=False)
    assert approvals_required({}) == 1
    assert is_observe_only({}) is False
    with pytest.raises(InvalidError, match="approval_required"):
        check_rules({"approvals_required": 2}, approval_required=False)
