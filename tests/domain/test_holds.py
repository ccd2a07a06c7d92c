"""Holds: what may be asked for, and whether one is in force."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.holds import (
    LONGEST,
    USUAL,
    Hold,
    HoldEventKind,
    HoldOrder,
    HoldScope,
    HoldState,
    check_order,
    check_release,
)
from trustfabric.domain.ids import HoldId, IncidentId, InstanceId, OwnerId
from trustfabric.errors import ForbiddenError, InvalidError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def an_order(**changes: Any) -> HoldOrder:
    order = HoldOrder(
        scope=HoldScope.OWNER,
        reason="maintenance",
        until=NOON + HOUR,
        by="user:7",
        caller=OwnerId(7),
    )
    return replace(order, **changes)


def a_hold(**changes: Any) -> Hold:
    hold = Hold(
        id=HoldId(1),
        scope=HoldScope.OWNER,
        instance_id=None,
        owner_id=OwnerId(7),
        whose=OwnerId(7),
        reason="maintenance",
        by="user:7",
        until=NOON + HOUR,
        incident_id=None,
        needs_admin=False,
        created_at=NOON,
    )
    return replace(hold, **changes)


def test_an_owners_hold_is_the_callers_own() -> None:
    assert check_order(an_order(), NOON).owner_id == 7


def test_a_hold_without_an_end_gets_the_usual_one() -> None:
    assert check_order(an_order(until=None), NOON).until == NOON + USUAL


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scope": HoldScope.INSTANCE}, "runtime_vm_instance_id"),
        ({"instance_id": InstanceId(3)}, "runtime_vm_instance_id"),
        (
            {
                "scope": HoldScope.INSTANCE,
                "instance_id": InstanceId(3),
                "owner_id": OwnerId(7),
            },
            "owner_id",
        ),
        ({"until": NOON}, "until"),
        ({"until": NOON + LONGEST + timedelta(seconds=1)}, "until"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidError, match=f"^{field}"):
        check_order(an_order(**changes), NOON)


@pytest.mark.parametrize("changes", [{"scope": HoldScope.ALL}, {"owner_id": 8}])
def test_only_an_admin_holds_more_than_their_own(changes: dict[str, Any]) -> None:
    with pytest.raises(ForbiddenError):
        check_order(an_order(**changes), NOON)

    order = an_order(**changes, is_admin=True)
    assert check_order(order, NOON).scope is order.scope


@given(st.integers(-7200, 7200))
def test_a_hold_is_in_force_until_its_end(seconds: int) -> None:
    now = NOON + timedelta(seconds=seconds)
    state = a_hold().state(now)

    assert (state is HoldState.IN_FORCE) == (now < NOON + HOUR)
    assert a_hold(released_at=NOON).state(now) is HoldState.RELEASED
    assert a_hold(until=None).state(now) is HoldState.IN_FORCE


def test_the_breakers_hold_is_not_released_like_a_persons() -> None:
    with pytest.raises(ForbiddenError, match="breaker/release"):
        check_release(a_hold(incident_id=IncidentId(1)), is_admin=True)


def test_an_admins_hold_is_released_by_admins_only() -> None:
    hold = a_hold(needs_admin=True)

    with pytest.raises(ForbiddenError):
        check_release(hold, is_admin=False)
    check_release(hold, is_admin=True)
    check_release(a_hold(), is_admin=False)


def test_what_ends_a_hold_lets_go() -> None:
    assert {kind for kind in HoldEventKind if kind.lets_go} == {
        HoldEventKind.RELEASED,
        HoldEventKind.EXPIRED,
        HoldEventKind.BREAKER_RELEASED,
    }
