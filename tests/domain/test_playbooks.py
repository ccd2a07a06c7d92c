"""Playbooks: what is refused when one is saved, who may save it, what is pinned."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from trustfabric.domain.ids import OwnerId, PlaybookId
from trustfabric.domain.playbooks import (
    Author,
    Playbook,
    PlaybookDraft,
    PlaybookEdit,
    check_author,
    check_playbook,
    content_sha256,
    edited,
    snapshot_of,
    still_runs,
)
from trustfabric.domain.specs import ExecutorType, OnLost, on_lost, read_shell
from trustfabric.errors import ForbiddenError, InvalidError

ALICE, BOB = OwnerId(7), OwnerId(8)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def a_playbook(**changes: Any) -> Playbook:
    playbook = Playbook(
        id=PlaybookId(1),
        key="fix",
        display_name="Fix it",
        description="how",
        executor_type=ExecutorType.SHELL,
        owner_id=ALICE,
        approval_required=True,
        sla_duration_s=60,
        metadata={"command": "true"},
        version=3,
        created_at=NOON,
        updated_at=NOON,
    )
    return replace(playbook, **changes)


def a_draft(metadata: Mapping[str, Any], **changes: Any) -> PlaybookDraft:
    draft = PlaybookDraft(
        key="fix",
        display_name="Fix it",
        executor_type=ExecutorType.SHELL,
        owner_id=ALICE,
        metadata=metadata,
    )
    return replace(draft, **changes)


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({}, "command or script"),
        ({"command": "a", "script": "b"}, "command or script"),
        ({"command": []}, "metadata.command"),
        ({"command": " "}, "metadata.command"),
        ({"command": 5}, "metadata.command"),
        ({"script": ""}, "metadata.script"),
        ({"command": "a", "args": "b"}, "metadata.args"),
        ({"command": "a", "args": ["b", 5]}, r"metadata.args\[1\]"),
        ({"command": "a", "args": ["b\0"]}, r"metadata.args\[0\]"),
        ({"command": "a", "args": ["secret:db"]}, r"metadata.args\[0\]: a secret"),
        ({"command": "a", "env": ["b"]}, "metadata.env"),
        ({"command": "a", "env": {"B": 1}}, "metadata.env.B"),
        ({"command": "a", "env": {"B=": "1"}}, "metadata.env"),
        ({"command": "a", "env": {"TRUSTFABRIC_TOKEN": "x"}}, "TRUSTFABRIC_"),
        ({"command": "a", "cwd": "tmp"}, "metadata.cwd"),
        ({"command": "a", "timeout_seconds": 0}, "metadata.timeout_seconds"),
        ({"command": "a", "timeout_seconds": True}, "metadata.timeout_seconds"),
        ({"command": "a", "kill_grace_seconds": "5"}, "metadata.kill_grace_seconds"),
        ({"command": "a", "on_lost": "shrug"}, "metadata.on_lost"),
        ({"command": "a", "on_lost": ["fail"]}, "metadata.on_lost"),
        ({"command": "a", "retry_limit": -1}, "metadata.retry_limit"),
        ({"command": "a", "retry_limit": 1.5}, "metadata.retry_limit"),
    ],
)
def test_shell_metadata_that_could_not_run_is_refused_by_name(
    metadata: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidError, match=field):
        check_playbook(a_draft(metadata))


@pytest.mark.parametrize(
    ("executor_type", "metadata", "field"),
    [
        (ExecutorType.ANSIBLE, {}, "playbook or project_dir"),
        (ExecutorType.ANSIBLE, {"playbook": "a"}, "list of plays"),
        (
            ExecutorType.ANSIBLE,
            {"playbook": [{"hosts": "all"}], "extra_vars": 1},
            "extra_vars",
        ),
        (ExecutorType.CLOUD_API, {"method": "GET"}, "metadata.url"),
        (ExecutorType.CLOUD_API, {"method": "GET", "url": "file:///x"}, "url"),
    ],
)
def test_other_executors_metadata_is_checked_too(
    executor_type: ExecutorType, metadata: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidError, match=field):
        check_playbook(a_draft(metadata, executor_type=executor_type))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"key": ""}, "playbook_key"),
        ({"key": "k" * 201}, "playbook_key"),
        ({"display_name": "\0"}, "display_name"),
        ({"display_name": "a\ud800"}, "display_name"),
        ({"description": "d" * 10_001}, "description"),
        ({"sla_duration_s": 0}, "sla_duration_seconds"),
    ],
)
def test_fields_that_could_not_be_stored_are_refused_by_name(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidError, match=field):
        check_playbook(a_draft({"command": "true"}, **changes))


def test_a_command_may_be_a_word_or_a_vector() -> None:
    assert read_shell({"command": "a b"}).command == ("a b",)
    assert read_shell({"command": ["a", "b"]}).command == ("a", "b")


def test_a_lost_run_fails_unless_its_playbook_says_otherwise() -> None:
    assert on_lost({}) is OnLost.FAIL
    assert on_lost({"on_lost": "retry"}) is OnLost.RETRY


def test_operators_write_their_own_cloud_playbooks_only() -> None:
    own = a_draft({}, executor_type=ExecutorType.CLOUD_API)

    check_author(Author(owner_id=ALICE), own)
    for refused in (
        replace(own, executor_type=ExecutorType.SHELL),
        replace(own, executor_type=ExecutorType.ANSIBLE),
        replace(own, owner_id=BOB),
        replace(own, owner_id=None),
    ):
        with pytest.raises(ForbiddenError):
            check_author(Author(owner_id=ALICE), refused)
        check_author(Author(owner_id=ALICE, is_admin=True), refused)


def test_an_edit_keeps_what_it_does_not_mention_and_clears_what_is_null() -> None:
    after = edited(a_playbook(), PlaybookEdit(description=None, sla_duration_s=None))

    assert after == a_playbook(description=None, sla_duration_s=None, version=4)


def test_an_edit_that_could_not_run_is_refused() -> None:
    with pytest.raises(InvalidError):
        edited(a_playbook(), PlaybookEdit(metadata=None))


def test_the_digest_is_of_what_will_run_and_nothing_else() -> None:
    pinned = snapshot_of(a_playbook())
    renamed = snapshot_of(a_playbook(display_name="Other", version=4))
    changed = snapshot_of(a_playbook(metadata={"command": "false"}))

    assert content_sha256(pinned, {"a": 1}) == content_sha256(renamed, {"a": 1})
    assert content_sha256(pinned, {"a": 1}) != content_sha256(changed, {"a": 1})
    assert content_sha256(pinned, {"a": 1}) != content_sha256(pinned, {"a": 2})
    assert still_runs(a_playbook(version=9), pinned)
    assert not still_runs(a_playbook(metadata={"command": "false"}), pinned)
