"""Restarts: what boots again, and how long it waits when it crashes again and again."""

from datetime import UTC, datetime, timedelta

import pytest

from trustfabric.domain.restarts import (
    LONGEST_WAIT_S,
    RECENT,
    RestartPolicy,
    relaunch_wait,
)
from trustfabric.domain.vms import PowerState

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("policy", "relaunched"),
    [
        (RestartPolicy.ALWAYS, {PowerState.CRASHED, PowerState.STOPPED, None}),
        (RestartPolicy.ON_FAILURE, {PowerState.CRASHED, None}),
        (RestartPolicy.NEVER, set()),
    ],
)
def test_what_ended_boots_again_as_its_policy_says(
    policy: RestartPolicy, relaunched: set[PowerState | None]
) -> None:
    ends = (PowerState.CRASHED, PowerState.STOPPED, None)

    assert {end for end in ends if policy.relaunches(end)} == relaunched


def test_what_crashes_again_and_again_waits_longer_each_time() -> None:
    crashes: list[datetime] = []
    waits = []
    for n in range(12):
        crashes.append(after(n))
        waits.append(relaunch_wait(crashes, after(n)))

    assert waits[:5] == [0, 1, 2, 4, 8]
    assert waits[-1] == LONGEST_WAIT_S


def test_a_crash_of_long_ago_is_forgotten() -> None:
    now = T0 + RECENT + timedelta(seconds=10)

    assert relaunch_wait([after(0), after(1), after(2), now], now) == 0


def test_the_wait_passes() -> None:
    assert relaunch_wait([after(0), after(1)], after(1.5)) == 0.5
    assert relaunch_wait([after(0), after(1)], after(2)) == 0


def test_a_clock_that_was_set_back_makes_no_wait_longer() -> None:
    crashes = [after(3600), after(3601)]

    assert relaunch_wait(crashes, after(0)) == 1
