"""The gate: each note in its place, and which of them keep a VM down."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import HistoryId, RunId, ServerId
from trustfabric.domain.placement import (
    Accelerator,
    ActiveRun,
    Decision,
    Failure,
    Situation,
    Trust,
    decide,
    kind_of,
    policy_notes,
)
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.trust import AttestationStatus, Lifecycle

A = AttestationStatus
L = Lifecycle

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SOON = NOON + timedelta(seconds=300)
RUN = RunId(42)
TRUSTED = Trust(
    status=A.TRUSTED,
    lifecycle=L.RESTORED,
    previous_lifecycle=L.SUSPECT,
    remediation_state="remediation:none",
    remediation_attempts=0,
    freshness_deadline=SOON,
    provenance_ref="attestation:tpm:4",
    event_id=HistoryId(9),
    reason="all checks passed",
)


def a_situation(trust: dict[str, Any] | None = None, **parts: Any) -> Situation:
    return Situation(
        server_id=ServerId(3),
        trust=replace(TRUSTED, **(trust or {})),
        **{"running": True, **parts},
    )


def refusing(decision: Decision, note: str) -> None:
    assert note in decision.notes
    assert not decision.allowed


def test_a_server_that_never_had_an_instance_may_launch() -> None:
    decision = decide(Situation(server_id=ServerId(3), trust=None), NOON)

    assert decision == Decision(allowed=True, notes=(), stale=False)


def test_a_trusted_one_may_launch_and_is_described() -> None:
    decision = decide(a_situation(), NOON)

    assert decision.allowed
    assert decision.notes == (
        "trust:attestation:trusted",
        "trust:lifecycle:restored",
        "trust:freshness-deadline:2026-01-01T12:05:00Z",
        "trust:remediation-state:remediation:none",
        "trust:provenance:attestation:tpm:4",
    )


def test_all_notes_come_in_the_contract_s_order() -> None:
    situation = a_situation(
        {
            "status": A.UNTRUSTED,
            "lifecycle": L.REMEDIATING,
            "remediation_state": "remediation:pending-approval",
            "remediation_attempts": 2,
            "freshness_deadline": NOON,
        },
        active_run=ActiveRun(RUN, "pending", awaits_approval=True),
        failure=Failure("timeout", NOON - timedelta(hours=1)),
        holds=("all", "owner"),
        accelerators=(
            Accelerator("gpu0", "untrusted", ("firmware old", "no report")),
            Accelerator("gpu1", "attested", ("fine",)),
            Accelerator("gpu2", "pending", ()),
        ),
    )

    decision = decide(situation, NOON)

    assert decision.notes == (
        "trust:attestation:untrusted",
        "trust:lifecycle:remediating",
        "trust:freshness-expired:2026-01-01T12:00:00Z",
        "trust:remediation-state:remediation:pending-approval",
        "trust:remediation-attempts:2",
        "trust:provenance:attestation:tpm:4",
        "policy_hook:remediation_gate=active-run:42:pending",
        "remediation:awaiting-approval:42",
        "policy_hook:remediation_gate=failure:timeout:transient",
        "remediation:last-failure-at:timeout:2026-01-01T11:00:00Z",
        "policy_hook:remediation_gate=held:all",
        "policy_hook:remediation_gate=held:owner",
        "policy_hook:accelerator_gate=gpu0:untrusted",
        "firmware old",
        "no report",
        "policy_hook:accelerator_gate=gpu2:pending",
    )


# --- lifecycle -------------------------------------------------------------------


@pytest.mark.parametrize("state", Lifecycle)
def test_a_distrusted_lifecycle_blocks(state: Lifecycle) -> None:
    decision = decide(a_situation({"lifecycle": state}), NOON)

    assert decision.allowed is (state in {L.SUSPECT, L.RESTORED})
    assert f"trust:lifecycle:{state}" in decision.notes


@pytest.mark.parametrize("status", AttestationStatus)
def test_the_status_alone_blocks_nothing(status: AttestationStatus) -> None:
    assert decide(a_situation({"status": status}), NOON).allowed


@pytest.mark.parametrize("state", [L.QUARANTINED, L.REMEDIATING])
@pytest.mark.parametrize(
    ("ended", "released", "allowed"),
    [
        (None, None, False),
        (None, NOON, False),
        (NOON, None, False),
        (NOON, NOON - timedelta(seconds=1), False),
        (NOON, NOON, False),
        (NOON, NOON + timedelta(seconds=1), True),
    ],
)
def test_one_that_ended_distrusted_needs_a_later_release(
    state: Lifecycle,
    ended: datetime | None,
    released: datetime | None,
    allowed: bool,  # noqa: FBT001
) -> None:
    situation = a_situation(
        {"lifecycle": state},
        terminated_at=ended,
        released_at=released,
        running=ended is None,
    )

    assert decide(situation, SOON).allowed is allowed


def test_one_that_ended_trusted_leaves_no_trace() -> None:
    situation = a_situation(
        {"freshness_deadline": NOON},
        terminated_at=NOON,
        running=False,
        failure=Failure("execution-failure", NOON),
    )

    assert decide(situation, SOON).allowed


# --- freshness -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deadline", "running", "allowed"),
    [
        (NOON, True, False),
        (NOON - timedelta(days=1), True, False),
        (NOON + timedelta(microseconds=1), True, True),
        (NOON, False, True),
        (None, True, True),
    ],
)
def test_only_a_running_one_is_stale(
    deadline: datetime | None,
    running: bool,  # noqa: FBT001
    allowed: bool,  # noqa: FBT001
) -> None:
    situation = a_situation({"freshness_deadline": deadline}, running=running)

    decision = decide(situation, NOON)

    assert decision.allowed is allowed
    assert decision.stale is not allowed


def test_what_a_refused_server_waits_for() -> None:
    distrusted = a_situation({"lifecycle": L.QUARANTINED})
    both = a_situation({"lifecycle": L.QUARANTINED, "freshness_deadline": NOON})

    assert decide(distrusted, NOON).status is ServerStatus.PENDING_REMEDIATION
    assert decide(both, NOON).status is ServerStatus.PENDING_ATTESTATION


# --- runs and their failures -----------------------------------------------------


@pytest.mark.parametrize("status", ["pending", "running"])
def test_an_active_run_blocks(status: str) -> None:
    run = ActiveRun(RUN, status, awaits_approval=False)

    decision = decide(a_situation(active_run=run), NOON)

    refusing(decision, f"policy_hook:remediation_gate=active-run:42:{status}")
    assert "remediation:awaiting-approval:42" not in decision.notes


CLASSES = {
    FailureReason.EXECUTION_FAILURE: "structural",
    FailureReason.POLICY_DENIED: "structural",
    FailureReason.PLAYBOOK_BUG: "structural",
    FailureReason.TRANSIENT_INFRASTRUCTURE: "transient",
    FailureReason.EXECUTOR_UNAVAILABLE: "transient",
    FailureReason.DEPENDENCY_UNAVAILABLE: "transient",
    FailureReason.TIMEOUT: "transient",
    FailureReason.CANCELLED: "cancelled",
    FailureReason.APPROVAL_EXPIRED: "cancelled",
    FailureReason.QUEUE_EXPIRED: "cancelled",
    "gremlins": "structural",
}


@pytest.mark.parametrize("reason", [*FailureReason, "gremlins"])
def test_a_failure_blocks_unless_somebody_called_it_off(reason: str) -> None:
    decision = decide(a_situation(failure=Failure(reason, NOON)), NOON)

    kind = CLASSES[reason]
    assert f"policy_hook:remediation_gate=failure:{reason}:{kind}" in decision.notes
    assert decision.allowed is (kind == "cancelled")


REPAIRED: dict[str, Any] = {
    "trust": {"status": A.UNTRUSTED, "lifecycle": L.REMEDIATING},
    "active_run": ActiveRun(RUN, "running", awaits_approval=False),
    "failure": Failure("execution-failure", NOON),
}


def test_the_run_that_repairs_is_not_in_its_own_way() -> None:
    situation = a_situation(**REPAIRED)

    assert decide(situation, NOON, for_run=RUN).allowed
    assert (
        decide(situation, NOON, for_run=RUN).notes
        == decide(situation, NOON, for_run=None).notes
    )


@pytest.mark.parametrize("other", [None, RunId(41)])
def test_nobody_else_may_pass_for_it(other: RunId | None) -> None:
    assert not decide(a_situation(**REPAIRED), NOON, for_run=other).allowed


def test_a_run_that_is_over_has_no_say() -> None:
    situation = a_situation({"lifecycle": L.QUARANTINED})

    assert not decide(situation, NOON, for_run=RUN).allowed


@pytest.mark.parametrize(
    "more",
    [
        {"holds": ("instance",)},
        {"accelerators": (Accelerator("gpu0", "untrusted", ()),)},
    ],
)
def test_a_repair_does_not_pass_holds_and_hardware(more: dict[str, Any]) -> None:
    situation = a_situation(**REPAIRED, **more)

    assert not decide(situation, NOON, for_run=RUN).allowed


# --- holds and accelerators ------------------------------------------------------


@pytest.mark.parametrize("scope", ["all", "owner", "instance"])
def test_a_hold_blocks(scope: str) -> None:
    decision = decide(a_situation(holds=(scope,)), NOON)

    refusing(decision, f"policy_hook:remediation_gate=held:{scope}")


@pytest.mark.parametrize("posture", ["trusted", "attested"])
def test_a_good_accelerator_is_not_mentioned(posture: str) -> None:
    decision = decide(
        a_situation(accelerators=(Accelerator("gpu0", posture, ("why",)),)), NOON
    )

    assert decision.allowed
    assert not any("gpu0" in note or note == "why" for note in decision.notes)


@given(st.text(min_size=1, max_size=64))
def test_any_other_posture_blocks(posture: str) -> None:
    decision = decide(
        a_situation(accelerators=(Accelerator("gpu0", posture, ()),)), NOON
    )

    assert decision.allowed is (posture in {"trusted", "attested"})


# --- the policy engine's notes ---------------------------------------------------


def test_the_policy_engine_tells_the_latest_event() -> None:
    situation = a_situation({"remediation_attempts": 1})

    assert policy_notes(situation) == (
        "vm:trust-event:9:trusted",
        "vm:trust-reason:all checks passed",
        "vm:trust-lifecycle:restored",
        "vm:trust-previous-lifecycle:suspect",
        "vm:trust-remediation-attempts:1",
        "vm:trust-freshness-deadline:2026-01-01T12:05:00Z",
        "vm:trust-provenance:attestation:tpm:4",
    )


def test_the_policy_engine_leaves_out_what_is_not_there() -> None:
    situation = a_situation(
        {"previous_lifecycle": None, "freshness_deadline": None, "provenance_ref": None}
    )

    assert policy_notes(situation) == (
        "vm:trust-event:9:trusted",
        "vm:trust-reason:all checks passed",
        "vm:trust-lifecycle:restored",
        "vm:trust-remediation-attempts:0",
    )
    assert policy_notes(replace(situation, trust=None)) == ()


# --- whatever else holds -----------------------------------------------------------

TIMES = st.sampled_from([NOON - timedelta(hours=1), NOON, SOON, None])
SITUATIONS = st.builds(
    Situation,
    server_id=st.just(ServerId(3)),
    trust=st.none()
    | st.builds(
        Trust,
        status=st.sampled_from(A),
        lifecycle=st.sampled_from(L),
        previous_lifecycle=st.none() | st.sampled_from(L),
        remediation_state=st.just("remediation:none"),
        remediation_attempts=st.integers(0, 5),
        freshness_deadline=TIMES,
        provenance_ref=st.none() | st.just("attestation:tpm:4"),
        event_id=st.just(HistoryId(9)),
        reason=st.just("why"),
    ),
    running=st.booleans(),
    terminated_at=TIMES,
    released_at=TIMES,
    active_run=st.none()
    | st.builds(
        ActiveRun,
        st.sampled_from([RUN, RunId(41)]),
        st.sampled_from(["pending", "running"]),
        st.booleans(),
    ),
    failure=st.none()
    | st.builds(Failure, st.sampled_from([*FailureReason, "gremlins"]), st.just(NOON)),
    holds=st.lists(st.sampled_from(["all", "owner", "instance"]), unique=True),
    accelerators=st.lists(
        st.builds(
            Accelerator,
            st.sampled_from(["gpu0", "gpu1"]),
            st.sampled_from(["trusted", "attested", "untrusted", "?"]),
            st.just(()),
        ),
        max_size=2,
    ),
)


def worse(situation: Situation) -> list[Situation]:
    """Return what the situation is with one bad fact more, each on its own."""
    more = [
        replace(situation, holds=[*situation.holds, "all"]),
        replace(
            situation,
            accelerators=[
                *situation.accelerators,
                Accelerator("gpu9", "untrusted", ()),
            ],
        ),
        replace(situation, failure=Failure("execution-failure", NOON)),
        replace(situation, released_at=None),
    ]
    if situation.active_run is None:
        run = ActiveRun(RunId(99), "pending", awaits_approval=True)
        more.append(replace(situation, active_run=run))
    trust = situation.trust
    if trust is not None:
        bad = [
            replace(trust, lifecycle=L.QUARANTINED),
            replace(trust, lifecycle=L.REMEDIATING),
            replace(trust, status=A.UNTRUSTED),
            replace(trust, freshness_deadline=NOON),
            replace(trust, remediation_attempts=trust.remediation_attempts + 1),
        ]
        more += [replace(situation, trust=each) for each in bad]
    return more


@given(SITUATIONS, st.sampled_from([None, RUN]))
def test_a_bad_fact_more_never_opens_the_gate(
    situation: Situation, run: RunId | None
) -> None:
    if decide(situation, NOON, for_run=run).allowed:
        return

    for each in worse(situation):
        assert not decide(each, NOON, for_run=run).allowed, each


@given(SITUATIONS, st.sampled_from([None, RUN]))
def test_it_refuses_exactly_for_the_notes_that_it_names(
    situation: Situation, run: RunId | None
) -> None:
    decision = decide(situation, NOON, for_run=run)

    assert decision.allowed is (decision.blocking == ())
    assert set(decision.blocking) <= set(decision.notes)
    assert decision == decide(situation, NOON, for_run=run)


@given(SITUATIONS)
def test_notes_refuse_by_a_closed_set_of_kinds(situation: Situation) -> None:
    kinds = {kind_of(note) for note in decide(situation, NOON).blocking}

    assert kinds <= {
        "lifecycle:quarantined",
        "lifecycle:remediating",
        "freshness-expired",
        "active-run",
        "failure:structural",
        "failure:transient",
        "held:all",
        "held:owner",
        "held:instance",
        "accelerator",
    }


@pytest.mark.parametrize(
    ("note", "kind"),
    [
        ("trust:lifecycle:quarantined", "lifecycle:quarantined"),
        ("trust:freshness-expired:2026-01-01T12:00:00Z", "freshness-expired"),
        ("policy_hook:remediation_gate=active-run:42:pending", "active-run"),
        ("policy_hook:remediation_gate=failure:timeout:transient", "failure:transient"),
        ("policy_hook:remediation_gate=held:owner", "held:owner"),
        ("policy_hook:accelerator_gate=gpu:0:odd:untrusted", "accelerator"),
        ("something:new", "other"),
    ],
)
def test_a_kind_has_no_particulars(note: str, kind: str) -> None:
    assert kind_of(note) == kind
