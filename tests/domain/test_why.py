"""Why: a reason for whatever is in an instance's way, and none where nothing is."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.failures import FailureReason
from trustfabric.domain.holds import BREAKER, Hold, HoldScope
from trustfabric.domain.ids import (
    AttestationId,
    HistoryId,
    HoldId,
    IncidentId,
    InstanceId,
    OwnerId,
    RunId,
    ServerId,
)
from trustfabric.domain.placement import (
    Accelerator,
    ActiveRun,
    Failure,
    HeldBy,
    Situation,
    Trust,
    decide,
)
from trustfabric.domain.reasons import About, Entry, Facts, Question, Rules, Verdict
from trustfabric.domain.runs import ApprovalState, Run, RunStatus
from trustfabric.domain.storms import Cause, Incident
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Snapshot, Tag
from trustfabric.domain.why import Explanation, explain

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AGO = NOON - timedelta(minutes=5)
SOON = NOON + timedelta(minutes=5)
RULES = Rules()
RUN = RunId(42)


def a_snapshot(**changes: Any) -> Snapshot:
    row = Snapshot(
        instance_id=InstanceId(4),
        instance_name="vm-4",
        server_id=ServerId(3),
        server_name="web",
        owner_id=OwnerId(7),
        attestation_status=AttestationStatus.TRUSTED,
        lifecycle=Lifecycle.RESTORED,
        remediation_state=Tag.NONE,
        remediation_attempts=0,
        freshness_deadline=SOON,
        provenance_ref="attestation:tpm:4",
        provenance=None,
        version=5,
        updated_at=AGO,
    )
    return replace(row, **changes)


def a_run(**changes: Any) -> Run:
    run = Run(
        id=RUN,
        instance_id=InstanceId(4),
        instance_name="vm-4",
        server_id=ServerId(3),
        owner_id=OwnerId(7),
        playbook="fix",
        playbook_id=None,
        status=RunStatus.PENDING,
        approval_required=True,
        approval_state=ApprovalState.PENDING,
        approval_decided_at=None,
        approval_decided_by=None,
        approval_notes=None,
        requested_by="actor:dispatcher",
        assigned_owner_id=None,
        sla_deadline=None,
        automation_payload=None,
        metadata={},
        playbook_snapshot={"executor_type": "shell", "metadata": {}},
        content_sha256="0" * 64,
        priority=100,
        not_before=None,
        result=None,
        failure_reason=None,
        last_error=None,
        attempt=0,
        queued_at=AGO,
        started_at=None,
        completed_at=None,
        cancelled_at=None,
        cancellation_reason=None,
        lease_owner=None,
        lease_epoch=0,
        lease_expires_at=None,
        version=1,
        created_at=AGO,
        updated_at=AGO,
    )
    return replace(run, **changes)


def a_hold(**changes: Any) -> Hold:
    hold = Hold(
        id=HoldId(9),
        scope=HoldScope.OWNER,
        instance_id=None,
        owner_id=OwnerId(7),
        whose=OwnerId(7),
        reason="maintenance",
        by="user:7",
        until=SOON,
        incident_id=None,
        needs_admin=False,
        created_at=AGO,
    )
    return replace(hold, **changes)


BREAKERS = a_hold(by=BREAKER, until=None, incident_id=IncidentId(2))
INCIDENT = Incident(
    id=IncidentId(2),
    scope=HoldScope.OWNER,
    owner_id=OwnerId(7),
    cause=Cause.SHARE,
    quarantined=30,
    living=50,
    limits={"window_seconds": 600.0},
    common=[
        {
            "trait": "image",
            "value": "bad",
            "affected": 30,
            "affected_total": 30,
            "rest": 0,
            "rest_total": 20,
        }
    ],
    affected=[],
    counted_since=AGO,
    opened_at=AGO,
    opened_by="runtime:here",
    updated_at=AGO,
)


def situation_of(row: Snapshot, run: Run | None, **parts: Any) -> Situation:
    """Return what the gate reads where these are the rows."""
    active = None
    if run is not None:
        waits = run.approval_state is ApprovalState.PENDING
        active = ActiveRun(run.id, run.status, waits)
    trust = Trust(
        status=row.attestation_status,
        lifecycle=row.lifecycle,
        previous_lifecycle=None,
        remediation_state=row.remediation_state,
        remediation_attempts=row.remediation_attempts,
        freshness_deadline=row.freshness_deadline,
        provenance_ref=row.provenance_ref,
        event_id=HistoryId(1),
        reason="because",
    )
    return Situation(
        server_id=row.server_id,
        trust=trust,
        active_run=active,
        **{"running": True, **parts},
    )


def facts_of(
    row: Snapshot,
    run: Run | None = None,
    holds: tuple[Hold, ...] = (),
    **parts: Any,
) -> Facts:
    gate = {
        name: parts.pop(name)
        for name in ("failure", "accelerators", "released_at")
        if name in parts
    }
    people = [hold for hold in holds if not hold.is_breakers]
    situation = situation_of(
        row,
        run,
        holds=sorted({hold.scope for hold in people}),
        held_by=[HeldBy(hold.scope, hold.by, hold.until) for hold in people],
        terminated_at=parts.get("terminated_at"),
        **gate,
    )
    entry = Entry(HistoryId(12), AGO, "evidence refused", "actor:attestation")
    return Facts(
        **{
            "snapshot": row,
            "terminated_at": None,
            "newest": row.instance_id,
            "lifecycle_by": entry,
            "status_by": entry,
            "decision": decide(situation, NOON),
            "run": run,
            "holds": holds,
            "incidents": [INCIDENT],
            "playbook_executor": "shell",
            **parts,
        }
    )


def told(facts: Facts, rules: Rules = RULES) -> Explanation:
    return explain(facts, rules, NOON)


def codes(facts: Facts, about: About, rules: Rules = RULES) -> list[str]:
    return [one.code for one in told(facts, rules).reasons if one.about is about]


QUARANTINED = a_snapshot(
    lifecycle=Lifecycle.QUARANTINED,
    attestation_status=AttestationStatus.UNTRUSTED,
    freshness_deadline=None,
    remediation_state=Tag.INVESTIGATE,
)


def test_of_a_trusted_instance_there_is_nothing_to_say() -> None:
    explanation = told(facts_of(a_snapshot()))

    assert explanation == Explanation(trusted=True, placeable=True, reasons=())


def test_a_refused_verdict_is_told_with_its_failed_checks() -> None:
    verdict = Verdict(AttestationId(8), "tpm", "untrusted", AGO, ["pcr 8 differs"])

    explanation = told(facts_of(QUARANTINED, verdict=verdict))

    (reason,) = [
        one for one in explanation.reasons if one.code == "attestation-untrusted"
    ]
    assert reason.source == "attestation:8"
    assert reason.text.endswith("pcr 8 differs")
    assert reason.fact["failed_checks"] == ["pcr 8 differs"]
    assert reason.since == AGO
    assert reason.next[0].request == "POST /api/servers/3/vm/attest"


def test_an_open_challenge_is_a_fact_of_what_is_pending() -> None:
    row = a_snapshot(
        lifecycle=Lifecycle.SUSPECT,
        attestation_status=AttestationStatus.PENDING,
        freshness_deadline=None,
    )

    reasons = told(facts_of(row, question=Question(AGO, SOON))).reasons

    (pending,) = [one for one in reasons if one.code == "attestation-pending"]
    assert pending.fact["challenged_at"] == AGO
    assert pending.until == SOON


def test_stale_evidence_is_told_since_its_deadline() -> None:
    explanation = told(facts_of(a_snapshot(freshness_deadline=AGO)))

    assert not explanation.trusted
    assert not explanation.placeable
    assert [(one.code, one.since) for one in explanation.reasons] == [
        ("evidence-stale", AGO),
        ("gate-evidence-stale", AGO),
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "approval-missing"),
        ({"approval_state": ApprovalState.AUTO_APPROVED}, "run-queued"),
        (
            {
                "approval_state": ApprovalState.AUTO_APPROVED,
                "not_before": SOON,
                "failure_reason": FailureReason.TIMEOUT,
            },
            "retry-scheduled",
        ),
        (
            {
                "approval_state": ApprovalState.AUTO_APPROVED,
                "not_before": SOON,
                "failure_reason": FailureReason.EXECUTOR_UNAVAILABLE,
            },
            "executor-unavailable",
        ),
        (
            {
                "approval_state": ApprovalState.APPROVED,
                "status": RunStatus.RUNNING,
                "lease_owner": "there",
                "lease_expires_at": SOON,
            },
            "run-running",
        ),
    ],
)
def test_an_active_run_is_told_as_far_as_it_is(
    changes: dict[str, Any], code: str
) -> None:
    row = replace(QUARANTINED, lifecycle=Lifecycle.REMEDIATING)
    facts = facts_of(row, a_run(**changes))

    assert codes(facts, About.REMEDIATION) == [code]
    assert "gate-active-run" in codes(facts, About.PLACEMENT)


def test_a_lease_is_told_with_its_holder_and_end() -> None:
    run = a_run(
        status=RunStatus.RUNNING,
        approval_state=ApprovalState.APPROVED,
        lease_owner="there",
        lease_expires_at=SOON,
    )
    row = replace(QUARANTINED, lifecycle=Lifecycle.REMEDIATING)

    (reason,) = [
        one for one in told(facts_of(row, run)).reasons if one.code == "run-running"
    ]

    assert not reason.blocks
    assert reason.until == SOON
    assert reason.fact["lease_owner"] == "there"


def test_no_executor_is_told_where_the_executors_are_known() -> None:
    run = a_run(approval_state=ApprovalState.AUTO_APPROVED)
    facts = facts_of(replace(QUARANTINED, lifecycle=Lifecycle.REMEDIATING), run)

    rules = replace(RULES, executors=frozenset({"ansible"}))

    assert codes(facts, About.REMEDIATION, rules) == ["executor-unavailable"]


@pytest.mark.parametrize(
    ("row", "parts", "code"),
    [
        ({}, {}, "run-due"),
        ({}, {"playbook_executor": None}, "no-playbook"),
        ({"remediation_attempts": 3}, {}, "attempts-exhausted"),
        ({"remediation_state": Tag.UNVERIFIED}, {}, "run-unverified"),
        (
            {},
            {"lifecycle_by": Entry(HistoryId(1), AGO, "run 42 failed", "run:42", 42)},
            "run-failed",
        ),
    ],
)
def test_a_quarantine_without_a_run_says_what_it_waits_for(
    row: dict[str, Any], parts: dict[str, Any], code: str
) -> None:
    facts = facts_of(replace(QUARANTINED, **row), **parts)

    assert codes(facts, About.REMEDIATION) == [code]


def test_a_hold_is_told_with_who_and_until_to_both() -> None:
    facts = facts_of(a_snapshot(), holds=(a_hold(),))

    explanation = told(facts)

    assert explanation.trusted
    assert not explanation.placeable
    assert [(one.about, one.code) for one in explanation.reasons] == [
        (About.REMEDIATION, "hold"),
        (About.PLACEMENT, "gate-held"),
    ]
    for reason in explanation.reasons:
        assert reason.source == "hold:9"
        assert reason.until == SOON
        assert "user:7" in reason.text
        assert reason.next[0].command == "mcpctl trust release-hold 9"


@pytest.mark.parametrize("name", ["gpu-0", "0000:65:00.0"])
def test_an_accelerator_is_told_by_its_whole_name(name: str) -> None:
    facts = facts_of(a_snapshot(), accelerators=(Accelerator(name, "untrusted", ()),))

    (reason,) = told(facts).reasons

    assert reason.code == "gate-accelerator"
    assert reason.text == f"accelerator {name} is untrusted, which does not pass"


def test_the_breaker_is_told_and_stands_in_no_launchs_way() -> None:
    facts = facts_of(a_snapshot(), holds=(BREAKERS,))

    explanation = told(facts)

    assert explanation.placeable
    (reason,) = explanation.reasons
    assert reason.code == "breaker-open"
    assert "image bad" in reason.text


@pytest.mark.parametrize(
    ("changes", "spared"),
    [
        ({}, False),
        ({"requested_by": "user:7"}, True),
        (
            {
                "approval_state": ApprovalState.APPROVED,
                "approval_decided_at": AGO + timedelta(seconds=1),
            },
            True,
        ),
        (
            {
                "approval_state": ApprovalState.APPROVED,
                "approval_decided_at": AGO - timedelta(seconds=1),
            },
            False,
        ),
    ],
)
def test_the_breaker_is_no_reason_for_what_somebody_asked_for(
    changes: dict[str, Any], *, spared: bool
) -> None:
    row = replace(QUARANTINED, lifecycle=Lifecycle.REMEDIATING)
    facts = facts_of(row, a_run(**changes), holds=(BREAKERS,))

    assert ("breaker-open" not in codes(facts, About.REMEDIATION)) == spared


def test_what_was_removed_is_gone_and_says_who_may_let_its_server_go() -> None:
    explanation = told(facts_of(QUARANTINED, terminated_at=AGO))

    assert [one.code for one in explanation.reasons] == [
        "terminated",
        "gate-lifecycle-quarantined",
    ]
    assert explanation.reasons[1].next[0].command.startswith("mcpctl servers release 3")


def test_a_deleted_server_is_not_placed() -> None:
    explanation = told(facts_of(a_snapshot(), decision=None))

    assert not explanation.placeable
    assert codes(facts_of(a_snapshot(), decision=None), About.PLACEMENT) == [
        "server-deleted"
    ]


rows = st.builds(
    a_snapshot,
    attestation_status=st.sampled_from(AttestationStatus),
    lifecycle=st.sampled_from(Lifecycle),
    remediation_state=st.sampled_from(Tag),
    remediation_attempts=st.integers(0, 4),
    freshness_deadline=st.none() | st.sampled_from([AGO, SOON]),
)
runs_ = st.none() | st.builds(
    a_run,
    status=st.sampled_from([RunStatus.PENDING, RunStatus.RUNNING]),
    approval_state=st.sampled_from(
        [ApprovalState.PENDING, ApprovalState.APPROVED, ApprovalState.AUTO_APPROVED]
    ),
    requested_by=st.sampled_from(["user:7", "actor:dispatcher"]),
    not_before=st.none() | st.just(SOON),
    sla_deadline=st.none() | st.just(AGO),
    lease_owner=st.just("there"),
    lease_expires_at=st.just(SOON),
)
parts_ = st.fixed_dictionaries(
    {},
    optional={
        "failure": st.builds(Failure, st.sampled_from(FailureReason), st.just(AGO)),
        "accelerators": st.lists(
            st.builds(
                Accelerator,
                st.just("gpu-0"),
                st.sampled_from(["trusted", "suspect"]),
                st.just(("why",)),
            ),
            max_size=2,
        ),
        "last_run": st.just(a_run(status=RunStatus.FAILED, completed_at=AGO)),
        "terminated_at": st.just(AGO),
        "released_at": st.sampled_from([AGO - timedelta(hours=1), NOON]),
        "newest": st.sampled_from([InstanceId(4), InstanceId(5)]),
        "playbook_executor": st.none(),
    },
)
holds_ = st.lists(st.sampled_from([a_hold(), BREAKERS]), max_size=2).map(tuple)


@given(rows, runs_, holds_, parts_)
def test_reasons_agree_with_the_gate_and_with_trust(
    row: Snapshot, run: Run | None, holds: tuple[Hold, ...], parts: dict[str, Any]
) -> None:
    facts = facts_of(row, run, holds, **parts)
    assert facts.decision is not None

    explanation = told(facts)

    by_about = {
        about: [one for one in explanation.reasons if one.about is about]
        for about in About
    }
    blocked = any(one.blocks for one in by_about[About.PLACEMENT])
    assert blocked is not facts.decision.allowed
    assert explanation.placeable is facts.decision.allowed
    trusted = (
        row.lifecycle is Lifecycle.RESTORED
        and row.attestation_status is AttestationStatus.TRUSTED
        and row.freshness_deadline != AGO
        and facts.terminated_at is None
    )
    assert explanation.trusted is trusted
    assert bool(by_about[About.TRUST]) is not trusted
    distrusted = row.lifecycle in {Lifecycle.QUARANTINED, Lifecycle.REMEDIATING}
    if distrusted and facts.terminated_at is None:
        assert by_about[About.REMEDIATION]
    for reason in explanation.reasons:
        assert reason.text
        assert ":" in reason.source
        assert reason.code == reason.code.lower()
