"""The lifecycle of trust, pair by pair, and what no sequence of events can reach."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.ids import AttestationId, InstanceId, OwnerId, RunId, ServerId
from trustfabric.domain.trust import (
    PROVENANCE_REF_LIMIT,
    TRANSITIONS,
    AttestationStatus,
    Change,
    Facts,
    Lifecycle,
    Signal,
    Snapshot,
    Tag,
    advance,
    asks_facts,
    is_stale,
)
from trustfabric.errors import IllegalTransitionError

S = Signal
L = Lifecycle
A = AttestationStatus

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(seconds=300)
QUIET = Facts(active_run=None, last_run_ended_at=None, running=True)

MOVES = {
    (L.SUSPECT, S.TRUSTED_VERDICT): L.RESTORED,
    (L.SUSPECT, S.UNTRUSTED_VERDICT): L.QUARANTINED,
    (L.SUSPECT, S.RUN_STARTED): L.REMEDIATING,
    (L.SUSPECT, S.RUN_RESUMED): L.REMEDIATING,
    (L.SUSPECT, S.QUARANTINED_BY_HAND): L.QUARANTINED,
    (L.SUSPECT, S.OVERRIDDEN): L.RESTORED,
    (L.QUARANTINED, S.RUN_STAGED): L.REMEDIATING,
    (L.QUARANTINED, S.RUN_STARTED): L.REMEDIATING,
    (L.QUARANTINED, S.RUN_RESUMED): L.REMEDIATING,
    (L.QUARANTINED, S.RELEASED): L.SUSPECT,
    (L.QUARANTINED, S.QUARANTINED_BY_HAND): L.QUARANTINED,
    (L.QUARANTINED, S.OVERRIDDEN): L.RESTORED,
    (L.REMEDIATING, S.TRUSTED_VERDICT): L.RESTORED,
    (L.REMEDIATING, S.UNTRUSTED_VERDICT): L.QUARANTINED,
    (L.REMEDIATING, S.RUN_STARTED): L.REMEDIATING,
    (L.REMEDIATING, S.RUN_RESUMED): L.REMEDIATING,
    (L.REMEDIATING, S.RUN_COMPLETED): L.REMEDIATING,
    (L.REMEDIATING, S.RUN_ENDED): L.QUARANTINED,
    (L.REMEDIATING, S.UNVERIFIED): L.QUARANTINED,
    (L.REMEDIATING, S.QUARANTINED_BY_HAND): L.QUARANTINED,
    (L.REMEDIATING, S.OVERRIDDEN): L.RESTORED,
    (L.RESTORED, S.UNTRUSTED_VERDICT): L.QUARANTINED,
    (L.RESTORED, S.BOOTED): L.SUSPECT,
    (L.RESTORED, S.CRASHED): L.SUSPECT,
    (L.RESTORED, S.VANISHED): L.SUSPECT,
    (L.RESTORED, S.EXPIRED): L.SUSPECT,
    (L.RESTORED, S.RUN_STARTED): L.REMEDIATING,
    (L.RESTORED, S.RUN_RESUMED): L.REMEDIATING,
    (L.RESTORED, S.QUARANTINED_BY_HAND): L.QUARANTINED,
    (L.RESTORED, S.OVERRIDDEN): L.RESTORED,
}
"""Contract §2, written out a second time."""

REFUSED = {
    (L.SUSPECT, S.RUN_COMPLETED),
    (L.SUSPECT, S.UNVERIFIED),
    (L.SUSPECT, S.RELEASED),
    (L.QUARANTINED, S.RUN_COMPLETED),
    (L.QUARANTINED, S.UNVERIFIED),
    (L.REMEDIATING, S.RELEASED),
    (L.RESTORED, S.RUN_COMPLETED),
    (L.RESTORED, S.UNVERIFIED),
    (L.RESTORED, S.RELEASED),
}
PAIRS = [(state, signal) for state in Lifecycle for signal in Signal]

ORDER_OF_TRUST = [L.QUARANTINED, L.REMEDIATING, L.SUSPECT, L.RESTORED]
POWER = [S.BOOTED, S.CRASHED, S.VANISHED, S.EXPIRED]
VERDICTS = [S.TRUSTED_VERDICT, S.UNTRUSTED_VERDICT, S.UNKNOWN_VERDICT]


def a_row(lifecycle: Lifecycle = L.SUSPECT, **changes: Any) -> Snapshot:
    trusted = lifecycle is L.RESTORED
    row = Snapshot(
        instance_id=InstanceId(1),
        instance_name="vm-1",
        server_id=ServerId(2),
        server_name="web",
        owner_id=OwnerId(7),
        attestation_status=A.TRUSTED if trusted else A.UNTRUSTED,
        lifecycle=lifecycle,
        remediation_state=Tag.NONE,
        remediation_attempts=2,
        freshness_deadline=NOON if trusted else None,
        provenance_ref="attestation:tpm:4",
        provenance={"kind": "tpm"},
        version=5,
        updated_at=NOON - timedelta(hours=1),
    )
    return replace(row, **changes)


def a_change(signal: Signal, **parts: Any) -> Change:
    parts = {"actor": "actor:test", "reason": "because", **parts}
    if signal is S.TRUSTED_VERDICT:
        parts = {"deadline": LATER, **parts}
    if signal in VERDICTS:
        parts = {"challenge_issued_at": NOON, **parts}
    return Change(signal=signal, **parts)


def after(
    signal: Signal,
    lifecycle: Lifecycle = L.SUSPECT,
    facts: Facts = QUIET,
    row: dict[str, Any] | None = None,
    **parts: Any,
) -> Snapshot:
    before = a_row(lifecycle, **(row or {}))
    return advance(before, facts, a_change(signal, **parts), NOON)


# --- the table -----------------------------------------------------------------


def test_the_table_is_the_contract_s() -> None:
    written = {
        (state, signal): target
        for state, targets in TRANSITIONS.items()
        for signal, target in targets.items()
    }
    assert written == MOVES


@pytest.mark.parametrize(("state", "signal"), PAIRS)
def test_each_pair_moves_stays_or_is_refused(state: Lifecycle, signal: Signal) -> None:
    if (state, signal) in REFUSED:
        with pytest.raises(IllegalTransitionError) as refused:
            after(signal, state)
        assert refused.value.facts["current_lifecycle_state"] == state
        return

    moved = after(signal, state)

    assert moved.lifecycle is MOVES.get((state, signal), state)


@pytest.mark.parametrize(("state", "signal"), PAIRS)
def test_a_change_raises_the_version_by_one_or_is_none(
    state: Lifecycle, signal: Signal
) -> None:
    if (state, signal) in REFUSED:
        return
    before = a_row(state)
    moved = advance(before, QUIET, a_change(signal), NOON)

    if moved is before:
        assert signal in POWER
    else:
        assert moved.version == before.version + 1
        assert moved.updated_at == NOON


# --- verdicts ------------------------------------------------------------------


def test_a_trusted_verdict_restores_and_starts_afresh() -> None:
    row = after(
        S.TRUSTED_VERDICT,
        provenance_ref="attestation:tpm:9",
        provenance={"kind": "tpm", "id": 9},
        attestation_id=AttestationId(9),
    )

    assert row.attestation_status is A.TRUSTED
    assert row.freshness_deadline == LATER
    assert row.remediation_attempts == 0
    assert row.remediation_state is Tag.NONE
    assert row.provenance_ref == "attestation:tpm:9"
    assert row.provenance == {"kind": "tpm", "id": 9}


def test_an_untrusted_verdict_quarantines_and_clears_the_deadline() -> None:
    row = after(S.UNTRUSTED_VERDICT, L.RESTORED)

    assert row.lifecycle is L.QUARANTINED
    assert row.attestation_status is A.UNTRUSTED
    assert row.freshness_deadline is None
    assert row.remediation_state is Tag.INVESTIGATE
    assert row.remediation_attempts == 2


@pytest.mark.parametrize("state", Lifecycle)
def test_an_unknown_verdict_moves_nothing(state: Lifecycle) -> None:
    assert after(S.UNKNOWN_VERDICT, state).lifecycle is state


def test_an_unknown_verdict_leaves_a_restored_one_s_standing_as_it_was() -> None:
    row = after(S.UNKNOWN_VERDICT, L.RESTORED, provenance_ref="attestation:tpm:9")

    assert row.attestation_status is A.TRUSTED
    assert row.freshness_deadline == NOON
    assert row.remediation_state is Tag.MONITOR


def test_an_unknown_verdict_is_the_first_answer_a_pending_one_gets() -> None:
    row = after(S.UNKNOWN_VERDICT, row={"attestation_status": A.PENDING})

    assert row.attestation_status is A.UNKNOWN


def test_a_verdict_on_a_quarantined_one_is_noted_beside_its_repair() -> None:
    row = after(
        S.TRUSTED_VERDICT, L.QUARANTINED, row={"remediation_state": Tag.NO_PLAYBOOK}
    )

    assert row.lifecycle is L.QUARANTINED
    assert row.attestation_status is A.TRUSTED
    assert row.remediation_state is Tag.NO_PLAYBOOK


@pytest.mark.parametrize("signal", [S.TRUSTED_VERDICT, S.UNTRUSTED_VERDICT])
@pytest.mark.parametrize(
    ("run", "ended", "issued", "answers"),
    [
        (None, None, NOON, True),
        (None, NOON - timedelta(seconds=1), NOON, True),
        (None, NOON, NOON, False),
        (None, NOON + timedelta(seconds=1), NOON, False),
        (None, NOON - timedelta(seconds=1), None, False),
        (RunId(3), None, NOON, False),
        (RunId(3), NOON - timedelta(seconds=1), NOON, False),
    ],
)
def test_only_a_challenge_issued_after_the_run_judges_its_repair(
    signal: Signal,
    run: RunId | None,
    ended: datetime | None,
    issued: datetime | None,
    answers: bool,  # noqa: FBT001
) -> None:
    facts = Facts(active_run=run, last_run_ended_at=ended, running=True)

    row = after(signal, L.REMEDIATING, facts, challenge_issued_at=issued)

    moved = MOVES[L.REMEDIATING, signal]
    assert row.lifecycle is (moved if answers else L.REMEDIATING)
    assert row.version == 6


# --- boots, crashes and decay ----------------------------------------------------


@pytest.mark.parametrize("signal", POWER)
def test_what_was_trusted_before_it_is_unknown_after_it(signal: Signal) -> None:
    row = after(signal, L.RESTORED)

    assert row.lifecycle is L.SUSPECT
    assert row.attestation_status is A.UNKNOWN
    assert row.freshness_deadline is None


@pytest.mark.parametrize("signal", POWER)
def test_it_says_nothing_where_there_is_nothing_to_lose(signal: Signal) -> None:
    before = a_row(L.QUARANTINED)

    assert advance(before, QUIET, a_change(signal), NOON) is before


@pytest.mark.parametrize("signal", POWER)
@pytest.mark.parametrize("state", Lifecycle)
@pytest.mark.parametrize("status", AttestationStatus)
def test_it_never_improves_anything(
    state: Lifecycle, signal: Signal, status: AttestationStatus
) -> None:
    row = after(
        signal, state, row={"attestation_status": status, "freshness_deadline": NOON}
    )

    assert ORDER_OF_TRUST.index(row.lifecycle) <= ORDER_OF_TRUST.index(state)
    assert row.attestation_status in {status, A.UNKNOWN}
    assert row.attestation_status is not A.TRUSTED


@pytest.mark.parametrize(
    ("deadline", "running", "decays"),
    [
        (NOON, True, True),
        (NOON - timedelta(days=1), True, True),
        (NOON + timedelta(microseconds=1), True, False),
        (NOON, False, False),
        (None, True, False),
    ],
)
def test_only_a_running_one_whose_time_is_up_decays(
    deadline: datetime | None,
    running: bool,  # noqa: FBT001
    decays: bool,  # noqa: FBT001
) -> None:
    facts = replace(QUIET, running=running)

    row = after(S.EXPIRED, L.RESTORED, facts, {"freshness_deadline": deadline})

    assert row.lifecycle is (L.SUSPECT if decays else L.RESTORED)
    assert is_stale(deadline, NOON) is (deadline is not None and deadline <= NOON)


# --- what runs and people leave --------------------------------------------------


def test_an_attempt_is_counted_when_its_run_starts() -> None:
    assert after(S.RUN_STARTED, L.QUARANTINED).remediation_attempts == 3
    assert after(S.RUN_RESUMED, L.REMEDIATING).remediation_attempts == 2


@pytest.mark.parametrize("signal", sorted(set(Signal) - {S.TRUSTED_VERDICT}))
def test_nothing_but_a_trusted_verdict_takes_attempts_back(signal: Signal) -> None:
    for state in Lifecycle:
        if (state, signal) not in REFUSED:
            assert after(signal, state).remediation_attempts >= 2


@pytest.mark.parametrize(
    ("signal", "state", "tag"),
    [
        (S.RUN_APPROVED, L.REMEDIATING, Tag.AWAITING_EXECUTOR),
        (S.RUN_STARTED, L.REMEDIATING, Tag.AUTOMATION_RUNNING),
        (S.RUN_RESUMED, L.REMEDIATING, Tag.AUTOMATION_RUNNING),
        (S.RUN_COMPLETED, L.REMEDIATING, Tag.AUTOMATION_COMPLETE),
        (S.UNVERIFIED, L.REMEDIATING, Tag.UNVERIFIED),
        (S.RELEASED, L.QUARANTINED, Tag.MONITOR),
    ],
)
def test_a_signal_leaves_its_tag(signal: Signal, state: Lifecycle, tag: Tag) -> None:
    assert after(signal, state).remediation_state is tag
    named = after(signal, state, tag=Tag.HELD)
    assert named.remediation_state is Tag.HELD


def test_what_is_not_mentioned_stays() -> None:
    before = a_row(L.RESTORED)

    row = advance(before, QUIET, a_change(S.ANNOTATED), LATER)

    assert row == replace(before, version=6, updated_at=LATER)


def test_texts_are_capped() -> None:
    row = after(S.ANNOTATED, provenance_ref="p" * 1000)

    assert row.provenance_ref == "p" * PROVENANCE_REF_LIMIT


@pytest.mark.parametrize("tag", Tag)
def test_a_tag_is_read_with_and_without_its_prefix(tag: Tag) -> None:
    assert Tag.read(tag) is tag
    assert Tag.read(f" {tag.removeprefix('remediation:').upper()} ") is tag


def test_an_unknown_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="remediation:cured"):
        Tag.read("cured")


# --- whatever happens, in whatever order -----------------------------------------

facts_ = st.builds(
    Facts,
    active_run=st.none() | st.just(RunId(3)),
    last_run_ended_at=st.none()
    | st.just(NOON - timedelta(seconds=9))
    | st.just(NOON + timedelta(seconds=9)),
    running=st.booleans(),
)
changes_ = st.builds(
    a_change,
    st.sampled_from(Signal),
    status=st.none() | st.sampled_from(AttestationStatus),
    attempts=st.none() | st.integers(0, 9),
    deadline=st.sampled_from([NOON - timedelta(seconds=1), LATER]),
)
stories = st.lists(st.tuples(facts_, changes_), max_size=30)


def told(
    story: list[tuple[Facts, Change]], row: Snapshot
) -> list[tuple[Snapshot, Change, Snapshot]]:
    """Return each accepted change with the row before and after it."""
    steps = []
    for facts, change in story:
        try:
            changed = advance(row, facts, change, NOON)
        except IllegalTransitionError:
            continue
        if changed is not row:
            steps.append((row, change, changed))
        row = changed
    return steps


def a_new_row() -> Snapshot:
    return a_row(
        attestation_status=A.PENDING, remediation_attempts=0, provenance=None, version=1
    )


def outcome(row: Snapshot, facts: Facts, change: Change) -> Snapshot | None:
    try:
        return advance(row, facts, change, NOON)
    except IllegalTransitionError:
        return None


@given(st.sampled_from(Lifecycle), changes_, facts_, facts_)
def test_where_no_facts_are_asked_for_they_change_nothing(
    state: Lifecycle, change: Change, some: Facts, others: Facts
) -> None:
    row = a_row(state)

    if not asks_facts(row, change):
        assert outcome(row, some, change) == outcome(row, others, change)


@given(stories)
def test_the_version_counts_the_accepted_changes(
    story: list[tuple[Facts, Change]],
) -> None:
    steps = told(story, a_new_row())

    assert [row.version for _, _, row in steps] == list(range(2, len(steps) + 2))


@given(stories)
def test_trust_comes_from_evidence_or_an_override_alone(
    story: list[tuple[Facts, Change]],
) -> None:
    for before, change, row in told(story, a_new_row()):
        if row.attestation_status is A.TRUSTED is not before.attestation_status:
            assert change.signal in {S.TRUSTED_VERDICT, S.OVERRIDDEN}
        if row.lifecycle is L.RESTORED is not before.lifecycle:
            assert change.signal in {S.TRUSTED_VERDICT, S.OVERRIDDEN}


@given(stories)
def test_a_deadline_belongs_to_trust(story: list[tuple[Facts, Change]]) -> None:
    for _, _, row in told(story, a_new_row()):
        assert (row.freshness_deadline is None) or row.attestation_status is A.TRUSTED
        assert (row.lifecycle is not L.RESTORED) or row.attestation_status is A.TRUSTED


@given(st.lists(st.tuples(facts_, changes_.filter(lambda c: c.signal in VERDICTS))))
def test_verdicts_alone_never_free_a_quarantined_one(
    story: list[tuple[Facts, Change]],
) -> None:
    for _, _, row in told(story, a_row(L.QUARANTINED)):
        assert row.lifecycle is L.QUARANTINED


@given(stories)
def test_nothing_that_happens_frees_one_without_a_person_or_a_run(
    story: list[tuple[Facts, Change]],
) -> None:
    for before, change, row in told(story, a_new_row()):
        if before.lifecycle is L.QUARANTINED is not row.lifecycle:
            assert change.signal in {
                S.RUN_STAGED,
                S.RUN_STARTED,
                S.RUN_RESUMED,
                S.RELEASED,
                S.OVERRIDDEN,
            }
