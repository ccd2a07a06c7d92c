"""Clocks, backoff and intensity."""

import asyncio
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervision.actors import Count, Counter, Do, TellDo, children, started
from trustfabric.supervision import (
    Address,
    AskTimeoutError,
    Backoff,
    ManualClock,
    Runtime,
    SystemClock,
)
from trustfabric.supervision.deadletters import DeadLetters
from trustfabric.supervision.intensity import Intensity

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_a_manual_clock_fires_in_order_each_at_its_own_time() -> None:
    clock, fired = ManualClock(NOON), list[tuple[str, float]]()
    clock.call_at(2.0, lambda: fired.append(("b", clock.monotonic())))
    clock.call_at(1.0, lambda: fired.append(("a", clock.monotonic())))
    clock.call_at(1.5, lambda: fired.append(("no", clock.monotonic()))).cancel()
    clock.call_at(9.0, lambda: fired.append(("later", clock.monotonic())))

    clock.advance(5.0)

    assert fired == [("a", 1.0), ("b", 2.0)]
    assert clock.now() == NOON + timedelta(seconds=5)


async def test_the_system_clock_calls_back() -> None:
    clock, fired = SystemClock(), asyncio.Event()

    clock.call_at(clock.monotonic() + 0.001, fired.set)
    await fired.wait()

    assert clock.now().tzinfo is UTC


def test_the_first_restart_is_at_once_and_the_rest_wait_longer_to_a_bound() -> None:
    backoff = Backoff(min_s=1.0, max_s=5.0, factor=2.0, jitter=0.0)

    waits = [backoff.delay_s(attempt, Random(1)) for attempt in (0, 1, 2, 3, 4, 99_999)]

    assert waits == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize(("min_s", "wait_s"), [(0.0, 0.0), (0.1, 5.0)])
def test_no_factor_takes_a_wait_over_its_bound(min_s: float, wait_s: float) -> None:
    backoff = Backoff(min_s=min_s, max_s=5.0, factor=1e9, jitter=0.0)

    assert backoff.delay_s(99_999, Random(1)) == wait_s


@given(st.integers(1, 50), st.integers())
def test_chance_adds_its_share_at_most(attempt: int, seed: int) -> None:
    plain = Backoff(jitter=0.0).delay_s(attempt, Random(seed))

    wait = Backoff(jitter=0.5).delay_s(attempt, Random(seed))

    assert plain <= wait <= plain * 1.5


@given(st.lists(st.floats(0.0, 3.0), max_size=30), st.integers(0, 5))
def test_intensity_allows_its_limit_in_any_window(
    gaps: list[float], limit: int
) -> None:
    intensity, now, times = Intensity(limit, 5.0), 0.0, list[float]()
    for gap in gaps:
        now += gap
        times.append(now)
        recent = [t for t in times if t > now - 5.0]
        assert intensity.allows(now) is (len(recent) <= limit)


async def test_a_timer_can_be_cancelled() -> None:
    a, clock = Address[Counter]("a"), ManualClock()
    runtime = await started(Runtime(clock=clock), *children(a))
    ran: list[str] = []

    timer = await a.ask(
        Do(lambda actor: actor.after(1.0, TellDo(lambda _: ran.append("late")))),
        within_s=1.0,
    )
    await a.ask(
        Do(lambda actor: actor.after(1.0, TellDo(lambda _: ran.append("kept")))),
        within_s=1.0,
    )
    timer.cancel()
    clock.advance(2.0)
    await runtime.quiet()

    assert ran == ["kept"]
    await runtime.stop()


async def test_actors_read_time_and_chance_from_their_runtime() -> None:
    a = Address[Counter]("a")
    runtime = await started(
        Runtime(clock=ManualClock(NOON), random=Random(5)), *children(a)
    )

    seen = await a.ask(
        Do(lambda actor: (actor.now(), actor.monotonic(), actor.random.random())),
        within_s=1.0,
    )

    assert seen == (NOON, 0.0, Random(5).random())
    await runtime.stop()


async def test_a_deadline_passes_by_the_runtimes_clock() -> None:
    a, clock = Address[Counter]("a"), ManualClock()
    runtime = await started(Runtime(clock=clock), *children(a))
    a.tell(TellDo(lambda actor: actor.sleep(10.0)))
    asked = asyncio.ensure_future(a.ask(Count(), within_s=5.0))
    await runtime.quiet()

    clock.advance(6.0)

    with pytest.raises(AskTimeoutError):
        await asked
    clock.advance(4.0)
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


def test_dead_letters_of_ever_new_paths_take_no_more_room() -> None:
    letters = DeadLetters(ManualClock(NOON), paths=3)

    letters.add("root/often", "x", "mailbox full")
    for n in range(100):
        letters.add(f"root/many/{n}", "x", "ended: killed")
        letters.add("root/often", "x", "mailbox full")

    assert letters.by_path() == {
        "root/many/98": 1,
        "root/many/99": 1,
        "root/often": 101,
    }
    assert letters.by_reason() == {"mailbox full": 101, "ended: killed": 100}
    assert letters.total == 201


def test_dead_letters_are_counted_in_full_and_sampled() -> None:
    letters = DeadLetters(ManualClock(NOON), keep=2)

    for n in range(5):
        letters.add("root/a", n, "mailbox full")
    letters.add("root/b", "x", "not running")

    assert letters.total == 6
    assert letters.by_path() == {"root/a": 5, "root/b": 1}
    assert letters.by_reason() == {"mailbox full": 5, "not running": 1}
    assert [letter.message for letter in letters.recent()] == [4, "x"]
    assert letters.recent("root/b")[0].at == NOON
