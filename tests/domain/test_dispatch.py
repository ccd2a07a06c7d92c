"""What is decided about a quarantined instance, case by case."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.domain.test_playbooks import a_playbook
from trustfabric.domain.dispatch import DISPATCHER, Distrusted, remedy
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.playbooks import Playbook
from trustfabric.domain.trust import Signal, Tag

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FOUND = Distrusted(
    instance_id=InstanceId(2),
    owner_id=OwnerId(7),
    version=3,
    attempts=0,
    held=False,
    active_run=None,
    active_run_waits=False,
    history_id=9,
    reason="attestation:pcr-changed",
)


@pytest.mark.parametrize(
    ("changes", "playbook", "signal", "tag"),
    [
        ({}, a_playbook(), Signal.RUN_STAGED, Tag.PENDING_APPROVAL),
        (
            {},
            a_playbook(approval_required=False),
            Signal.RUN_STAGED,
            Tag.AWAITING_EXECUTOR,
        ),
        ({}, None, Signal.ANNOTATED, Tag.NO_PLAYBOOK),
        ({"attempts": 3}, a_playbook(), Signal.ANNOTATED, Tag.ATTEMPTS_EXHAUSTED),
        ({"held": True, "attempts": 3}, None, Signal.ANNOTATED, Tag.HELD),
        (
            {"active_run": RunId(1), "held": True},
            None,
            Signal.RUN_STAGED,
            Tag.AWAITING_EXECUTOR,
        ),
        (
            {"active_run": RunId(1), "active_run_waits": True},
            a_playbook(),
            Signal.RUN_STAGED,
            Tag.PENDING_APPROVAL,
        ),
    ],
)
def test_each_case_has_one_answer(
    changes: dict[str, Any], playbook: Playbook | None, signal: Signal, tag: Tag
) -> None:
    found = replace(FOUND, **changes)

    decided = remedy(found, playbook, max_attempts=3, now=NOON)

    assert (decided.change.signal, decided.change.tag) == (signal, tag)
    assert decided.change.actor == DISPATCHER
    stages = signal is Signal.RUN_STAGED and found.active_run is None
    assert (decided.run is not None) == stages


def test_a_staged_run_says_what_it_is_for() -> None:
    run = remedy(FOUND, a_playbook(), max_attempts=3, now=NOON).run

    assert run is not None
    assert run.order.metadata == {
        "trigger": {"history_id": 9, "transition_reason": "attestation:pcr-changed"}
    }
    assert run.order.requested_by == DISPATCHER
