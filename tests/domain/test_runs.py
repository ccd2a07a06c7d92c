"""Runs: which moves there are, who may approve, what follows from an end."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.test_playbooks import a_playbook
from trustfabric.domain.accelerators import Accelerator
from trustfabric.domain.approvals import Ruling, check_ruling
from trustfabric.domain.dispatch import pick
from trustfabric.domain.executors import ExitStatus, LogStream, RemediationLogEvent
from trustfabric.domain.failures import FailureClass, FailureReason, classification_of
from trustfabric.domain.ids import InstanceId, OwnerId, PlaybookId, RunId, ServerId
from trustfabric.domain.playbooks import content_sha256, snapshot_of
from trustfabric.domain.run_events import context, log_event, status_event
from trustfabric.domain.runs import (
    TRANSITIONS,
    ApprovalState,
    RetryPolicy,
    Run,
    RunOrder,
    RunSignal,
    RunStatus,
    advance,
    enqueue,
    outcome,
    outcome_of_lost,
)
from trustfabric.domain.trust import Signal, Tag
from trustfabric.errors import (
    ApprovalStaleError,
    ConflictError,
    SelfApprovalError,
    VersionConflictError,
    VersionRequiredError,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ALICE, BOB = OwnerId(7), OwnerId(8)


def a_run(**changes: Any) -> Run:
    snapshot = snapshot_of(a_playbook())
    run = Run(
        id=RunId(42),
        instance_id=InstanceId(2),
        instance_name="vm-2",
        server_id=ServerId(3),
        owner_id=ALICE,
        playbook="fix",
        playbook_id=PlaybookId(1),
        status=RunStatus.PENDING,
        approval_required=True,
        approval_state=ApprovalState.PENDING,
        approval_decided_at=None,
        approval_decided_by=None,
        approval_notes=None,
        requested_by="user:7",
        assigned_owner_id=ALICE,
        sla_deadline=None,
        automation_payload=None,
        metadata={},
        playbook_snapshot=snapshot,
        content_sha256=content_sha256(snapshot, None),
        priority=100,
        not_before=None,
        result=None,
        failure_reason=None,
        last_error=None,
        attempt=0,
        queued_at=NOON,
        started_at=None,
        completed_at=None,
        cancelled_at=None,
        cancellation_reason=None,
        lease_owner=None,
        lease_epoch=0,
        lease_expires_at=None,
        version=1,
        created_at=NOON,
        updated_at=NOON,
    )
    return replace(run, **changes)


def running(**changes: Any) -> Run:
    return a_run(**{"status": RunStatus.RUNNING, "attempt": 1, **changes})


def an_exit(reason: FailureReason | None) -> ExitStatus:
    return ExitStatus(code=1, message="x", failure_reason=reason, duration_s=1)


def a_ruling(**changes: Any) -> Ruling:
    return replace(Ruling(approve=True, by=BOB, expected_version=1), **changes)


@given(st.sampled_from(RunStatus), st.sampled_from(RunSignal))
def test_what_is_not_in_the_table_is_refused(
    status: RunStatus, signal: RunSignal
) -> None:
    target = TRANSITIONS[status].get(signal)
    if target is None:
        with pytest.raises(ConflictError):
            advance(a_run(status=status), signal)
    else:
        assert advance(a_run(status=status), signal) is target


def test_an_end_is_an_end() -> None:
    ends = [status for status in RunStatus if not status.active]

    assert all(TRANSITIONS[status] == {} for status in ends)


def test_the_playbook_decides_whether_a_person_has_to_agree() -> None:
    order = RunOrder(instance_id=InstanceId(2), requested_by="user:7")

    gated = enqueue(a_playbook(), order, NOON)
    free = enqueue(a_playbook(approval_required=False), order, NOON)

    assert (gated.approval_state, gated.tag) == (
        ApprovalState.PENDING,
        Tag.PENDING_APPROVAL,
    )
    assert (free.approval_state, free.tag) == (
        ApprovalState.AUTO_APPROVED,
        Tag.AWAITING_EXECUTOR,
    )
    assert gated.sla_deadline == NOON + timedelta(seconds=60)


def test_s7_the_requester_can_not_approve_unless_configured_so() -> None:
    own = a_ruling(by=ALICE)

    with pytest.raises(SelfApprovalError):
        check_ruling(a_run(), own, a_playbook())
    check_ruling(a_run(), own, a_playbook(), requester_may_approve=True)
    check_ruling(a_run(), replace(own, approve=False), a_playbook())
    check_ruling(a_run(requested_by="actor:dispatcher"), own, a_playbook())


def test_s8_consent_to_what_the_playbook_no_longer_says_is_stale() -> None:
    changed = a_playbook(metadata={"command": "false"}, version=4)

    with pytest.raises(ApprovalStaleError):
        check_ruling(a_run(), a_ruling(), changed)
    with pytest.raises(ApprovalStaleError):
        check_ruling(a_run(), a_ruling(content_sha256="0" * 64), a_playbook())
    check_ruling(a_run(), a_ruling(approve=False), changed)
    check_ruling(a_run(), a_ruling(), a_playbook(display_name="other", version=4))


def test_an_approval_names_the_version_it_saw() -> None:
    with pytest.raises(VersionRequiredError):
        check_ruling(a_run(), a_ruling(expected_version=None), a_playbook())
    with pytest.raises(VersionConflictError):
        check_ruling(a_run(version=2), a_ruling(), a_playbook())


@pytest.mark.parametrize("state", sorted(set(ApprovalState) - {ApprovalState.PENDING}))
def test_only_a_pending_approval_is_decided(state: ApprovalState) -> None:
    with pytest.raises(ConflictError):
        check_ruling(a_run(approval_state=state), a_ruling(), a_playbook())


def test_success_completes() -> None:
    decided = outcome(running(), an_exit(None), RetryPolicy(), NOON, 0.5)

    assert (decided.status, decided.signal) == (
        RunStatus.COMPLETED,
        Signal.RUN_COMPLETED,
    )


@given(
    st.sampled_from(FailureReason),
    st.integers(1, 10),
    st.floats(0, 1, allow_nan=False),
)
def test_only_transient_failures_are_tried_again_and_only_up_to_the_limit(
    reason: FailureReason, attempt: int, jitter: float
) -> None:
    policy = RetryPolicy(limit=5)

    decided = outcome(running(attempt=attempt), an_exit(reason), policy, NOON, jitter)

    kind = classification_of(reason)
    again = kind is FailureClass.TRANSIENT and attempt <= policy.limit
    assert (decided.status is RunStatus.PENDING) == again
    assert (decided.not_before is not None) == again
    if decided.not_before is not None:
        wait = (decided.not_before - NOON).total_seconds()
        assert policy.base_s / 2 <= wait <= policy.longest_s
    if kind is FailureClass.CANCELLED:
        assert decided.status is RunStatus.CANCELLED


def test_a_playbook_may_limit_retries_itself() -> None:
    spec = {"command": "true", "retry_limit": 0}
    run = running(playbook_snapshot=snapshot_of(a_playbook(metadata=spec)))

    decided = outcome(run, an_exit(FailureReason.TIMEOUT), RetryPolicy(), NOON, 0.5)

    assert (decided.status, decided.tag) == (RunStatus.FAILED, Tag.TRANSIENT_FAILURE)


def test_a_lost_run_ends_as_its_playbook_says() -> None:
    retry = a_playbook(metadata={"command": "true", "on_lost": "retry"})

    failed = outcome_of_lost(running(), RetryPolicy(), NOON, 0.5)
    retried = outcome_of_lost(
        running(playbook_snapshot=snapshot_of(retry)), RetryPolicy(), NOON, 0.5
    )
    stopped = outcome_of_lost(
        running(cancellation_reason="enough"), RetryPolicy(), NOON, 0.5
    )

    assert failed.status is RunStatus.FAILED
    assert failed.exit.failure_reason is FailureReason.TRANSIENT_INFRASTRUCTURE
    assert retried.status is RunStatus.PENDING
    assert stopped.status is RunStatus.CANCELLED


def test_no_owner_starves_another() -> None:
    ready = [a_run(id=RunId(n), owner_id=ALICE) for n in (1, 2, 3)]
    ready.append(a_run(id=RunId(4), owner_id=BOB))

    chosen = pick(ready, {ALICE: 1}, free=2, per_owner=2)

    assert [run.id for run in chosen] == [4, 1]


def test_a_long_queue_of_one_owner_keeps_nobody_waiting() -> None:
    ready = [a_run(id=RunId(n)) for n in range(1, 6)]
    ready += [a_run(id=RunId(n), owner_id=BOB) for n in (6, 7)]

    assert [run.id for run in pick(ready, {}, free=3, per_owner=9)] == [1, 6, 2]
    assert [run.id for run in pick(ready, {ALICE: 1}, free=2, per_owner=9)] == [6, 1]


def test_the_streams_data_is_the_contracts() -> None:
    run = running(
        metadata={
            "tag": "a::tenant-alpha",
            "tags": ["z", 5],
            "policy_feedback": ["told", "both"],
            "policy_gate": {
                "remediation_hooks": ["policy_hook:remediation_gate=told"],
                "accelerator_gates": [
                    {"accelerator_id": "gpu0", "hooks": ["h"], "reasons": ["r"]}
                ],
            },
            "accelerators": [
                {"id": "gpu0", "kind": "nvidia-h100", "posture": "trusted"},
                {"id": "gpu1", "kind": "nvidia-h100", "metadata": {"slot": 1}},
            ],
        },
        playbook_snapshot=snapshot_of(
            a_playbook(
                metadata={
                    "command": "true",
                    "scenario": "s",
                    "policy_feedback": ["first", "both"],
                }
            )
        ),
    )
    stored = Accelerator(
        accelerator_id="gpu0",
        accelerator_type="nvidia-h100",
        posture="quarantined",
        policy_feedback=("driver outdated", "told"),
    )

    data = context(run, [stored])

    assert data["manifest_tags"] == ["a::tenant-alpha", "s", "z"]
    assert data["policy_feedback"] == ["first", "both", "told", "driver outdated"]
    assert data["policy_gate"] == {
        "remediation_hooks": [
            "policy_hook:remediation_gate=told",
            "policy_hook:remediation_gate=active-run:42:running",
        ],
        "accelerator_gates": [
            {
                "accelerator_id": "gpu0",
                "hooks": ["h", "policy_hook:accelerator_gate=gpu0:quarantined"],
                "reasons": ["r", "driver outdated", "told"],
            }
        ],
    }
    assert [a["posture"] for a in data["accelerators"]] == ["quarantined", "unknown"]
    assert data["accelerators"][1]["metadata"] == {"slot": 1}
    assert data["manifest_metadata"] == {"tag": "a::tenant-alpha", "tags": ["z", 5]}


def test_an_event_says_what_happened() -> None:
    line = log_event(RemediationLogEvent(LogStream.STDERR, "oops"), NOON)
    status = status_event(a_run(), "queued", NOON)

    assert line.event == {
        "event": "log",
        "timestamp": "2026-01-01T12:00:00Z",
        "stream": "stderr",
        "message": "oops",
    }
    assert status.event["approval_state"] == "pending"
    assert status.event["previous_status"] is None
    left = status_event(a_run(), "again", NOON, was=RunStatus.RUNNING)
    assert left.event["previous_status"] == "running"
