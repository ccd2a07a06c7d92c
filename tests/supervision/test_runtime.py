import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.supervision.actors import (
    AskCrash,
    Bump,
    Count,
    Counter,
    Crash,
    Do,
    Gate,
    children,
    started,
    state,
)
from trustfabric.supervision import (
    Actor,
    ActorCrashedError,
    ActorDeadError,
    ActorKilledError,
    Address,
    AskTimeoutError,
    ChildSpec,
    Clock,
    DynamicAddress,
    DynamicSpec,
    MailboxFullError,
    ManualClock,
    Runtime,
    State,
    SupervisorSpec,
    SystemClock,
    scheduler,
)
from trustfabric.supervision.cell import Cell


async def test_an_ask_is_answered() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    assert await a.ask(Count(), within_s=1.0) == 1
    assert a.tell(Bump())
    assert await a.ask(Count(), within_s=1.0) == 3

    assert a.path == "root/a"
    await runtime.stop()


async def test_a_crash_is_told_to_the_asker_and_the_address_goes_on() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    await a.ask(Count(), within_s=1.0)
    with pytest.raises(ActorCrashedError) as caught:
        await a.ask(AskCrash(), within_s=1.0)

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_declared_answer_leaves_the_actor_alive() -> None:
    a = Address[Counter]("a")
    runtime = await started(
        Runtime(clock=ManualClock(), answers=(KeyError,)), *children(a)
    )

    await a.ask(Count(), within_s=1.0)
    with pytest.raises(KeyError):
        await a.ask(AskCrash(KeyError("none")), within_s=1.0)

    assert await a.ask(Count(), within_s=1.0) == 2
    await runtime.stop()


async def test_an_ask_out_of_time_is_told_so_and_its_work_is_skipped() -> None:
    a, clock, gate = Address[Counter]("a"), ManualClock(), Gate()
    runtime = await started(Runtime(clock=clock), *children(a))

    first = asyncio.ensure_future(a.ask(Do(gate), within_s=60.0))
    await gate.begun.wait()
    late = asyncio.ensure_future(a.ask(Count(), within_s=1.0))
    await runtime.quiet()
    clock.advance(2.0)
    with pytest.raises(AskTimeoutError):
        await late
    gate.go.set()

    assert await first == "passed"
    assert await a.ask(Count(), within_s=1.0) == 1
    assert runtime.counts().skipped == 1
    await runtime.stop()


async def test_a_killed_actors_asker_is_told_at_once_and_its_mail_survives() -> None:
    a, gate = Address[Counter]("a"), Gate()
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    held = asyncio.ensure_future(a.ask(Do(gate), within_s=60.0))
    await gate.begun.wait()
    a.tell(Bump())
    await runtime.kill("root/a")

    with pytest.raises(ActorKilledError):
        await held
    assert await a.ask(Count(), within_s=1.0) == 2
    (report,) = [r for r in runtime.report() if r.path == "root/a"]
    assert (report.epoch, report.restart_count) == (2, 1)
    assert report.restarts[0].reason == "chaos"
    await runtime.stop()


async def test_an_actor_that_has_stopped_is_dead_to_asks_and_tells() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    await runtime.stop()

    assert state(a) is State.DEAD
    assert not a.tell(Bump())
    with pytest.raises(ActorDeadError):
        await a.ask(Count(), within_s=1.0)
    assert runtime.dead_letters.total == 1
    assert await runtime.wait() == "stopped by its supervisor"


async def test_a_child_that_keeps_crashing_waits_ever_longer() -> None:
    a, clock = Address[Counter]("a"), ManualClock()
    runtime = await started(Runtime(clock=clock), *children(a))

    a.tell(Crash())
    a.tell(Crash())
    await runtime.quiet()
    assert state(a) is State.WAITING

    clock.advance(0.2)
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_what_an_actor_does_not_know_is_logged(events: list[Any]) -> None:
    runtime = await started(Runtime(clock=ManualClock()))
    loner = runtime.spawn(Actor)

    await loner.ask(Count(), within_s=1.0)
    await runtime.stop()

    assert [e["event"] for e in events] == ["actor.unexpected"]


async def test_mail_from_a_thread_after_the_end_is_refused() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))
    await runtime.stop()

    assert not await asyncio.to_thread(lambda: a.tell(Bump()))
    with pytest.raises(ActorDeadError):
        await asyncio.to_thread(lambda: a.ask(Count(), block=True, timeout=1.0))


async def test_a_deadline_on_the_loop_is_refused_outside_of_it() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    def elsewhere() -> int:
        return asyncio.run(a.ask(Count(), within_s=1.0))

    with pytest.raises(RuntimeError, match="root/a: ask with `block`"):
        await asyncio.to_thread(elsewhere)
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_an_actor_started_after_the_runtimes_end_is_dead() -> None:
    runtime = await started(Runtime(clock=ManualClock()))
    await runtime.stop()

    loner = runtime.spawn(Counter)

    assert state(loner) is State.DEAD
    assert not loner.tell(Bump())


def left_behind(clock: Clock) -> tuple[Runtime, Address[Counter]]:
    """Return a runtime whose loop was closed without a stop."""
    a, runtime = Address[Counter]("a"), Runtime(clock=clock, watchdog_s=0.01)

    async def main() -> None:
        await started(runtime, *children(a))

    asyncio.run(main())
    return runtime, a


def call(function: Callable[[], Any], *, in_thread: bool) -> list[Any]:
    """Return what a call gave or raised."""
    got: list[Any] = []

    def run() -> None:
        try:
            got.append(function())
        except Exception as error:  # noqa: BLE001
            got.append(error)

    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    return got


@pytest.mark.parametrize("in_thread", [True, False])
def test_mail_after_the_loop_was_closed_without_a_stop_is_refused(
    *, in_thread: bool
) -> None:
    runtime, a = left_behind(ManualClock())

    for _ in range(2):
        assert call(lambda: a.tell(Bump()), in_thread=in_thread) == [False]
    assert runtime.dead_letters.total == 2
    assert state(a) is State.DEAD


@pytest.mark.parametrize("in_thread", [True, False])
def test_an_ask_after_the_loop_was_closed_without_a_stop_is_refused(
    *, in_thread: bool
) -> None:
    _, a = left_behind(ManualClock())

    (error,) = call(lambda: a.ask(Count(), block=True), in_thread=in_thread)

    assert isinstance(error, ActorDeadError)


def test_a_kill_after_the_loop_was_closed_without_a_stop_finds_nobody() -> None:
    _, a = left_behind(ManualClock())

    assert call(a.kill, in_thread=True) == [False]
    assert state(a) is State.DEAD


def test_the_watchdog_sees_that_the_loop_was_closed_without_a_stop() -> None:
    runtime, a = left_behind(SystemClock())

    for thread in threading.enumerate():
        if thread.name == "supervision-watchdog":
            thread.join(10.0)
            assert not thread.is_alive()

    assert state(a) is State.DEAD
    assert runtime.holds == []


def test_actors_are_made_by_their_spec_only() -> None:
    with pytest.raises(RuntimeError, match="spec"):
        Counter()


@pytest.mark.parametrize("use", [Runtime.report, Runtime.wait, Runtime.quiet])
async def test_a_runtime_that_was_not_started_says_so(use: Any) -> None:
    runtime = Runtime()

    await runtime.stop()
    with pytest.raises(RuntimeError, match="not started"):
        await use(runtime)


async def test_two_addresses_of_one_name_in_different_places_are_apart() -> None:
    a, also_a = Address[Counter]("a"), Address[Counter]("a")
    inner = SupervisorSpec(name="inner", children=children(also_a))
    runtime = await started(Runtime(clock=ManualClock()), *children(a), inner)

    a.tell(Bump())
    await runtime.quiet()

    assert await also_a.ask(Count(), within_s=1.0) == 1
    assert (a.path, also_a.path) == ("root/a", "root/inner/a")
    await runtime.stop()


async def test_mail_from_threads_waits_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "INBOUND", 10)
    monkeypatch.setattr(scheduler, "INBOUND_BATCH", 3)
    a = Address[Counter]("a")
    runtime = await started(Runtime(), *children(a))
    told: list[bool] = []
    refused: list[BaseException] = []

    def flood() -> None:
        told.extend(a.tell(Bump()) for _ in range(15))
        try:
            a.ask(Count(), block=True, timeout=1.0)
        except MailboxFullError as error:
            refused.append(error)

    thread = threading.Thread(target=flood)
    thread.start()
    thread.join()  # the loop stands still meanwhile

    assert told == [True] * 10 + [False] * 5
    assert len(refused) == 1
    assert runtime.dead_letters.by_reason() == {"mailbox full": 5}
    while (await a.ask(Count(), within_s=5.0)) < 11:
        await asyncio.sleep(0)
    await runtime.stop()


async def test_a_stop_from_a_thread_finds_room_behind_a_flood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "INBOUND", 10)
    a = Address[Counter]("a")
    runtime = await started(Runtime(), *children(a))
    stops: list[Any] = []

    def flood() -> None:
        while a.tell(Bump()):
            pass
        stops.append(a.stop(block=False))

    thread = threading.Thread(target=flood)
    thread.start()
    thread.join()  # the loop stands still meanwhile

    assert await stops[0] is True
    await runtime.stop()


@pytest.mark.slow
async def test_nothing_is_left_of_a_hundred_thousand_actors() -> None:
    book = DynamicAddress[Counter]("many")
    runtime = await started(Runtime(), DynamicSpec(address=book))
    before = cells()
    for _ in range(20):
        for key in range(5_000):
            child = await book.start_child(str(key), Counter)
            if key % 50 == 0:
                child.tell(Bump())
                child.kill()
        for key in range(5_000):
            await book.stop_child(str(key))
        assert len(runtime.report()) == 2

    assert cells() <= before + 1
    await runtime.stop()


def cells() -> int:
    gc.collect()
    return sum(isinstance(thing, Cell) for thing in gc.get_objects())


async def test_a_runtime_runs_one_tree_once() -> None:
    address = Address[Counter]("a")
    runtime = await started(Runtime(), ChildSpec(address=address, start=Counter))

    with pytest.raises(RuntimeError, match="started already"):
        await runtime.start(SupervisorSpec(name="other", children=()))

    assert await address.ask(Count(), within_s=1.0) == 1
    await runtime.stop()
    with pytest.raises(RuntimeError, match="started already"):
        await runtime.start(SupervisorSpec(name="other", children=()))


async def test_actors_spawned_by_threads_while_the_runtime_stops_end_with_it() -> None:
    runtime = await started(Runtime(), max_restarts=1)
    go, spawned = threading.Event(), list[Address[Any]]()

    def spawn_on() -> None:
        go.wait()
        for _ in range(300):
            spawned.append(runtime.spawn(Counter))

    threads = [threading.Thread(target=spawn_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        runtime.spawn(Counter)
    go.set()
    await runtime.stop()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    await asyncio.sleep(0)

    assert not any(address.is_alive() for address in spawned)
