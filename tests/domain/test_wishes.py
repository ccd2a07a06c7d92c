"""What people may ask of the lifecycle, and what they may not claim."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.test_trust import LATER, NOON, QUIET, a_row
from trustfabric.domain.trust import (
    AttestationStatus,
    Lifecycle,
    Signal,
    Snapshot,
    Tag,
    advance,
)
from trustfabric.domain.wishes import Wish, by_hand, order
from trustfabric.errors import ForbiddenError, IllegalTransitionError, InvalidError

A = AttestationStatus
L = Lifecycle
S = Signal


def a_wish(
    lifecycle: Lifecycle, status: AttestationStatus = A.UNTRUSTED, **parts: Any
) -> Wish:
    return Wish(
        lifecycle=lifecycle,
        status=status,
        **{"actor": "user:7", "is_admin": False, **parts},
    )


@pytest.mark.parametrize("state", Lifecycle)
def test_anybody_may_quarantine(state: Lifecycle) -> None:
    change = order(a_row(state), a_wish(L.QUARANTINED), NOON)

    assert change.signal is S.QUARANTINED_BY_HAND
    assert change.actor == "user:7"
    assert change.reason == "manual"


def test_a_release_needs_a_reason() -> None:
    quarantined = a_row(L.QUARANTINED)

    with pytest.raises(InvalidError, match="reason"):
        order(quarantined, a_wish(L.SUSPECT), NOON)
    assert (
        order(quarantined, a_wish(L.SUSPECT, reason="seen"), NOON).signal is S.RELEASED
    )


def test_a_release_makes_no_claim() -> None:
    quarantined = a_row(
        L.QUARANTINED, attestation_status=A.TRUSTED, freshness_deadline=LATER
    )

    change = order(quarantined, a_wish(L.SUSPECT, A.TRUSTED, reason="seen"), NOON)
    row = advance(quarantined, QUIET, change, NOON)

    assert row.lifecycle is L.SUSPECT
    assert row.attestation_status is A.UNKNOWN
    assert row.freshness_deadline is None


@pytest.mark.parametrize("state", Lifecycle)
@pytest.mark.parametrize("target", Lifecycle)
def test_people_make_the_moves_that_are_theirs_and_no_other(
    state: Lifecycle, target: Lifecycle
) -> None:
    before = a_row(state)
    wish = a_wish(target, before.attestation_status, reason="seen")

    if target in by_hand(state):
        change = order(before, wish, NOON)
        assert advance(before, QUIET, change, NOON).lifecycle is target
        return

    with pytest.raises(IllegalTransitionError) as refused:
        order(before, wish, NOON)
    assert refused.value.facts["current_lifecycle_state"] == state
    assert refused.value.facts["allowed"] == sorted(by_hand(state))


@pytest.mark.parametrize("state", Lifecycle)
@pytest.mark.parametrize("target", Lifecycle)
def test_nobody_declares_trust(state: Lifecycle, target: Lifecycle) -> None:
    before = a_row(state, attestation_status=A.UNKNOWN, freshness_deadline=None)

    with pytest.raises(IllegalTransitionError):
        order(before, a_wish(target, A.TRUSTED, reason="trust me"), NOON)


@pytest.mark.parametrize("state", Lifecycle)
def test_nobody_extends_freshness(state: Lifecycle) -> None:
    before = a_row(state)
    wish = a_wish(state, before.attestation_status, deadline=LATER)

    with pytest.raises(IllegalTransitionError):
        order(before, wish, NOON)


def test_freshness_may_be_cut_short() -> None:
    before = a_row(L.RESTORED, freshness_deadline=LATER)

    change = order(before, a_wish(L.RESTORED, A.TRUSTED, deadline=NOON), NOON)

    assert advance(before, QUIET, change, NOON).freshness_deadline == NOON


def test_a_note_does_not_change_the_status() -> None:
    with pytest.raises(IllegalTransitionError):
        order(a_row(L.SUSPECT), a_wish(L.SUSPECT, A.UNKNOWN), NOON)


@pytest.mark.parametrize(
    "ref",
    [
        "attestation:tpm:7",
        " Attestation:tpm:7",
        "operator-override",
        "OPERATOR-OVERRIDE",
    ],
)
def test_nothing_by_hand_refers_to_evidence_or_to_an_override(ref: str) -> None:
    with pytest.raises(IllegalTransitionError):
        order(
            a_row(L.SUSPECT),
            a_wish(L.SUSPECT, provenance_ref=ref, provenance={"kind": "tpm"}),
            NOON,
        )


@pytest.mark.parametrize("said", ["attestation:tpm:7", "operator-override"])
def test_what_evidence_or_an_override_said_stays_as_it_was_said(said: str) -> None:
    before = a_row(L.SUSPECT, provenance_ref=said, provenance={"kind": "tpm"})
    other = {"kind": "amd-sev-snp"}

    with pytest.raises(IllegalTransitionError, match="a provenance_ref of its own"):
        order(before, a_wish(L.SUSPECT, provenance=other), NOON)

    wish = a_wish(L.SUSPECT, provenance_ref="ticket:7", provenance=other)
    row = advance(before, QUIET, order(before, wish, NOON), NOON)
    assert (row.provenance_ref, row.provenance) == ("ticket:7", other)


OVERRIDE = {"override": True, "is_admin": True, "reason": "seen", "deadline": LATER}


@pytest.mark.parametrize("state", Lifecycle)
def test_an_admin_overrides_with_a_reason_and_an_end(state: Lifecycle) -> None:
    before = a_row(state)

    change = order(before, a_wish(L.RESTORED, A.TRUSTED, **OVERRIDE), NOON)
    row = advance(before, QUIET, change, NOON)

    assert row.lifecycle is L.RESTORED
    assert row.attestation_status is A.TRUSTED
    assert row.freshness_deadline == LATER
    assert row.provenance_ref == "operator-override"
    assert row.provenance == {"kind": "operator-override", "by": "user:7"}


@pytest.mark.parametrize(
    ("lacking", "error"),
    [
        ({"is_admin": False}, ForbiddenError),
        ({"reason": None}, InvalidError),
        ({"reason": ""}, InvalidError),
        ({"deadline": None}, InvalidError),
        ({"deadline": NOON}, InvalidError),
        ({"status": A.UNTRUSTED}, InvalidError),
        ({"provenance_ref": "ticket:7"}, InvalidError),
        ({"provenance": {"kind": "amd-sev-snp"}}, InvalidError),
    ],
)
def test_an_override_lacks_nothing(
    lacking: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        order(
            a_row(),
            a_wish(L.RESTORED, **{"status": A.TRUSTED, **OVERRIDE, **lacking}),
            NOON,
        )


@pytest.mark.parametrize("target", sorted(set(Lifecycle) - {L.RESTORED}))
def test_an_override_only_restores(target: Lifecycle) -> None:
    with pytest.raises(InvalidError):
        order(a_row(), a_wish(target, A.TRUSTED, **OVERRIDE), NOON)


# --- whatever is wished -----------------------------------------------------------

wishes_ = st.builds(
    Wish,
    lifecycle=st.sampled_from(Lifecycle),
    status=st.sampled_from(AttestationStatus),
    actor=st.just("user:7"),
    is_admin=st.booleans(),
    override=st.just(False),
    reason=st.none() | st.just("seen"),
    tag=st.none() | st.sampled_from(Tag),
    attempts=st.none() | st.integers(0, 9),
    deadline=st.none() | st.sampled_from([NOON, LATER]),
)
rows_ = st.builds(
    a_row,
    st.sampled_from(Lifecycle),
    attestation_status=st.sampled_from(AttestationStatus),
    freshness_deadline=st.none() | st.just(NOON),
)


@given(rows_, wishes_)
def test_no_wish_short_of_an_override_adds_trust(row: Snapshot, wish: Wish) -> None:
    try:
        changed = advance(row, QUIET, order(row, wish, NOON), NOON)
    except (IllegalTransitionError, InvalidError):
        return

    if changed.attestation_status is A.TRUSTED:
        assert row.attestation_status is A.TRUSTED
    assert changed.lifecycle is row.lifecycle or changed.lifecycle is not L.RESTORED
    if changed.freshness_deadline is not None:
        assert row.freshness_deadline is not None
        assert changed.freshness_deadline <= row.freshness_deadline
