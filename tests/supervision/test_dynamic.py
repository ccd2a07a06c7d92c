import asyncio
import gc
import math
from collections import Counter as Tally
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, assert_never

import pytest

from tests.supervision.actors import (
    Bump,
    Count,
    Counter,
    Crash,
    Do,
    Gate,
    Quit,
    started,
    state,
)
from trustfabric.supervision import (
    Actor,
    ActorCrashedError,
    ActorDeadError,
    ActorKilledError,
    Address,
    AskError,
    ChildSpec,
    Down,
    DynamicAddress,
    DynamicSpec,
    ManualClock,
    Notice,
    Request,
    Restart,
    Runtime,
    Simulation,
    State,
    SupervisorSpec,
    simulate,
)
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.scheduler import BATCH


async def keyed(
    clock: ManualClock | None = None, **spec: object
) -> tuple[Runtime, DynamicAddress[Counter]]:
    book = DynamicAddress[Counter]("many")
    runtime = await started(
        Runtime(clock=clock or ManualClock()),
        DynamicSpec(address=book, **spec),  # type: ignore[arg-type]
    )
    return runtime, book


async def test_a_key_has_one_child() -> None:
    runtime, book = await keyed()

    one = await book.start_child("1", Counter)
    again = await book.start_child("1", Counter)

    assert one is again
    assert book.child("1") is one
    assert one.path == "root/many/1"
    assert await one.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_stopped_child_gives_its_key_back() -> None:
    runtime, book = await keyed()
    one = await book.start_child("1", Counter)

    await book.stop_child("1")
    await book.stop_child("1")

    assert state(one) is State.DEAD
    assert dict(book.children()) == {}
    with pytest.raises(KeyError):
        await runtime.kill("root/many/1")
    other = await book.start_child("1", Counter)
    assert await other.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_transient_child_returns_from_a_crash_but_not_from_its_end() -> None:
    runtime, book = await keyed()
    one = await book.start_child("1", Counter)

    one.tell(Crash())
    assert await one.ask(Count(), within_s=1.0) == 1
    one.tell(Quit())
    await runtime.quiet()

    assert book.child("1") is None
    await runtime.stop()


async def test_children_come_back_with_a_killed_supervisor_at_the_same_address() -> (
    None
):
    runtime, book = await keyed()
    one = await book.start_child("1", Counter)
    await one.ask(Count(), within_s=1.0)

    await runtime.kill("root/many")

    assert book.child("1") is one
    assert await one.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


MANY = 20 * BATCH


async def many(
    clock: ManualClock | None = None,
) -> tuple[Runtime, DynamicAddress[Counter]]:
    runtime, book = await keyed(clock)
    for number in range(MANY):
        await book.start_child(str(number), Counter)
    return runtime, book


async def turns_until(book: DynamicAddress[Counter], state: State) -> int:
    """Return how often the loop turned until the last child was in that state."""
    last = book.child(str(MANY - 1))
    assert last is not None
    for turns in range(10 * MANY):
        if last.state is state:
            return turns
        await asyncio.sleep(0)
    raise AssertionError(f"{last} is {last.state}, not {state}")


async def test_the_loop_turns_while_very_many_fall_and_return() -> None:
    runtime, book = await many()

    book.address.kill()

    assert await turns_until(book, State.WAITING) >= MANY // BATCH - 1
    assert await turns_until(book, State.RUNNING) >= MANY // BATCH - 1
    assert {child.state for child in book.children().values()} == {State.RUNNING}
    assert {child.cell.epoch for child in book.children().values()} == {2}
    await runtime.stop()


async def test_mail_waits_for_those_whose_turn_to_return_has_yet_to_come() -> None:
    runtime, book = await many()
    book.address.kill()
    await turns_until(book, State.WAITING)
    last = book.child(str(MANY - 1))
    assert last is not None

    last.tell(Bump())

    assert await last.ask(Count(), within_s=1.0) == 2
    await runtime.stop()


async def test_a_stop_as_they_return_stops_those_that_are_up() -> None:
    runtime, book = await many()
    book.address.kill()
    await turns_until(book, State.WAITING)

    await runtime.stop()

    assert {child.state for child in book.children().values()} <= {State.DEAD}
    assert {cell.epoch for cell in book.cells()} == {1, 2}


async def test_a_kill_as_they_return_takes_along_those_that_are_up() -> None:
    clock = ManualClock()
    runtime, book = await many(clock)
    book.address.kill()
    await turns_until(book, State.WAITING)

    book.address.kill()

    await turns_until(book, State.DEAD)
    clock.advance(60.0)
    await turns_until(book, State.RUNNING)
    assert {child.state for child in book.children().values()} == {State.RUNNING}
    assert {child.cell.epoch for child in book.children().values()} == {2, 3}
    await runtime.stop()


async def test_a_fall_of_many_is_one_line_of_the_log(events: list[Any]) -> None:
    runtime, book = await many()

    book.address.kill()
    await turns_until(book, State.WAITING)

    assert [event["path"] for event in events] == ["root/many"]
    await runtime.stop()


async def test_temporary_children_fall_for_good_with_their_supervisor() -> None:
    runtime, book = await keyed(restart=Restart.TEMPORARY)
    one = await book.start_child("1", Counter)

    await runtime.kill("root/many")

    assert dict(book.children()) == {}
    with pytest.raises(ActorDeadError):
        await one.ask(Count(), within_s=1.0)
    await runtime.stop()


async def test_one_child_over_its_budget_is_given_up_alone() -> None:
    clock = ManualClock()
    runtime, book = await keyed(clock, max_restarts=2)
    one = await book.start_child("1", Counter)
    two = await book.start_child("2", Counter)

    for _ in range(3):
        one.tell(Crash())
        await runtime.quiet()
        clock.advance(1.0)
        await runtime.quiet()

    assert state(one) is State.DEAD
    assert book.child("1") is None
    assert await two.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_the_budget_of_all_children_is_the_supervisors() -> None:
    runtime, book = await keyed(max_restarts_total=2)
    them = [await book.start_child(str(n), Counter) for n in range(3)]

    for one in them:
        one.tell(Crash())
    await runtime.quiet()

    (report,) = [r for r in runtime.report() if r.path == "root/many"]
    assert report.restart_count == 1
    assert "more than 2 restarts" in report.restarts[0].reason
    assert {key: a.state for key, a in book.children().items()} == {
        "0": State.RUNNING,
        "1": State.RUNNING,
    }
    await runtime.stop()


async def test_stopping_a_child_in_backoff_ends_the_wait() -> None:
    clock = ManualClock()
    runtime, book = await keyed(clock)
    one = await book.start_child("1", Counter)
    one.tell(Crash())
    one.tell(Crash())
    await runtime.quiet()
    assert state(one) is State.WAITING
    one.tell(Bump())

    await book.stop_child("1")
    clock.advance(60.0)

    assert state(one) is State.DEAD
    assert runtime.dead_letters.by_path() == {"root/many/1": 1}
    await runtime.stop()


async def test_stop_child_waits_for_the_message_in_hand() -> None:
    runtime, book = await keyed()
    gate = Gate()
    one = await book.start_child("1", Counter)
    held = asyncio.ensure_future(one.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()

    stopping = asyncio.ensure_future(book.stop_child("1"))
    await runtime.quiet()
    assert not stopping.done()
    gate.go.set()
    await stopping

    assert await held == "passed"
    await runtime.stop()


async def test_who_is_started_while_it_is_being_stopped_starts_after_it_has() -> None:
    runtime, book = await keyed()
    gate = Gate()
    one = await book.start_child("1", Counter)
    held = asyncio.ensure_future(one.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()

    stopping = asyncio.ensure_future(book.stop_child("1"))
    await runtime.quiet()
    starting = [asyncio.ensure_future(book.start_child("1", Counter)) for _ in "ab"]
    await runtime.quiet()
    early = [each.done() for each in starting]
    gate.go.set()
    other, same = [await each for each in starting]

    assert early == [False, False]
    assert await held == "passed"
    assert stopping.done()
    assert state(one) is State.DEAD
    assert other is same is not one
    assert await other.ask(Count(), within_s=1.0) == 1
    assert dict(book.children()) == {"1": other}
    await runtime.stop()


async def test_a_start_that_waits_for_a_stop_outlives_its_supervisors_fall() -> None:
    runtime, book = await keyed()
    gate = Gate()
    one = await book.start_child("1", Counter)
    held = asyncio.ensure_future(one.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()

    stopping = asyncio.ensure_future(book.stop_child("1"))
    starting = asyncio.ensure_future(book.start_child("1", Counter))
    await runtime.quiet()
    await runtime.kill("root/many")
    await runtime.quiet()

    await stopping
    with suppress(ActorDeadError):  # while its supervisor is down
        await starting
    with pytest.raises(ActorKilledError):
        await held
    other = await book.start_child("1", Counter)
    assert other is not one
    assert await other.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def keys_in_turmoil(simulation: Simulation) -> int:
    """Start, stop and kill the same few keys from several tasks at once."""
    runtime, chance = simulation.runtime, simulation.random
    book = DynamicAddress[Lone]("many")
    spec = DynamicSpec(address=book, max_restarts=10_000, max_restarts_total=10_000)
    await runtime.start(SupervisorSpec(name="root", children=(spec,)))
    await simulation.record()
    living: dict[str, object] = {}
    served = 0

    async def turmoil(order: Random) -> None:
        nonlocal served
        for _ in range(60):
            key = order.choice("abc")
            match order.choice(["start", "start", "stop", "kill"]):
                case "start":
                    one = await book.start_child(key, lambda: Lone(living))
                    with suppress(AskError):
                        served += await one.ask(Wait(order.random()), within_s=9.0)
                case "stop":
                    await book.stop_child(key)
                case _:
                    if (child := book.child(key)) is not None:
                        child.kill()
            await asyncio.sleep(order.random())

    await asyncio.gather(*(turmoil(Random(chance.random())) for _ in range(6)))
    for key in "abc":
        one = await book.start_child(key, lambda: Lone(living))
        assert await one.ask(Wait(0.0), within_s=9.0) == 1
        assert book.child(key) is one
    assert len(living) == 3
    await runtime.stop()
    return served


@dataclass(frozen=True, slots=True)
class Wait(Request["Lone", int]):
    for_s: float


class Lone(Actor):
    """Notices where it isn't the only one at its path."""

    def __init__(self, living: dict[str, object]) -> None:
        super().__init__()
        self.living = living

    async def on_start(self) -> None:
        await self.sleep(self.random.random() / 10)
        assert self.living.setdefault(self.address.path, self) is self

    async def on_stop(self) -> None:
        await self.sleep(self.random.random() / 10)

    def on_death(self, exit_: Exit) -> None:
        super().on_death(exit_)
        if self.living.get(self.address.path) is self:
            del self.living[self.address.path]

    async def handle(self, message: Wait) -> int:
        await self.sleep(message.for_s)
        assert self.living[self.address.path] is self
        return 1


@pytest.mark.parametrize("seed", range(20))
def test_a_key_that_many_start_and_stop_has_one_child_at_a_time(seed: int) -> None:
    assert simulate(keys_in_turmoil, seed).result > 20


async def test_a_child_that_is_back_first_may_start_and_stop_its_siblings() -> None:
    book, living = DynamicAddress[Counter]("many"), list[str]()

    class First(Counter):
        async def on_start(self) -> None:  # type: ignore[override]
            if book.child("b") is not None:
                back = await book.start_child("b", lambda: Sibling("another"))
                assert await back.ask(Count(), within_s=1.0) == 1
                await book.stop_child("c")

    class Sibling(Counter):
        def __init__(self, label: str) -> None:
            super().__init__(label=label)
            living.append(label)

        def on_death(self, exit_: Any) -> None:
            super().on_death(exit_)
            living.remove(self.label)

    runtime = await started(Runtime(clock=ManualClock()), DynamicSpec(address=book))
    await book.start_child("a", First)
    b = await book.start_child("b", lambda: Sibling("b"))
    await book.start_child("c", lambda: Sibling("c"))

    await runtime.kill("root/many")
    await runtime.quiet()

    assert living == ["b"]
    assert book.child("b") is b
    assert set(book.children()) == {"a", "b"}
    await runtime.stop()
    assert living == []


async def test_a_child_that_would_wait_for_its_own_end_is_refused() -> None:
    runtime, book = await keyed(shutdown_s=math.inf)
    await book.start_child("1", Counter)

    async def stop_itself(_: Counter) -> None:
        await book.stop_child("1")

    one = await book.start_child("1", Counter)
    with pytest.raises(ActorCrashedError, match="root/many/1 -> root/many/1"):
        await one.ask(Do(stop_itself), within_s=9.0)

    assert await one.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_two_that_would_wait_for_each_others_end_are_not_left_so() -> None:
    runtime, book = await keyed(shutdown_s=math.inf)
    one, two = [await book.start_child(key, Counter) for key in "12"]
    begun = asyncio.Event()

    async def stop_two(_: Counter) -> None:
        begun.set()
        await book.stop_child("2")

    async def ask_one(_: Counter) -> int:
        await begun.wait()
        return await one.ask(Count(), within_s=9.0)

    asked = asyncio.ensure_future(two.ask(Do(ask_one), within_s=9.0))
    await runtime.quiet()
    await one.ask(Do(stop_two), within_s=9.0)

    with pytest.raises(ActorCrashedError, match="each waits for the next"):
        await asked
    assert set(book.children()) == {"1"}
    await runtime.stop()


async def test_a_child_cannot_be_started_while_its_supervisor_is_down() -> None:
    runtime, book = await keyed()
    await runtime.stop()

    with pytest.raises(ActorDeadError):
        await book.start_child("1", Counter)


@pytest.mark.parametrize("key", ["", "a/b"])
async def test_a_key_is_one_step_of_a_path(key: str) -> None:
    runtime, book = await keyed()

    with pytest.raises(ValueError, match="key"):
        await book.start_child(key, Counter)
    await runtime.stop()


async def test_a_stop_finds_children_up_and_children_in_backoff() -> None:
    clock = ManualClock()
    runtime, book = await keyed(clock)
    one = await book.start_child("1", Counter)
    two = await book.start_child("2", Counter)
    one.tell(Crash())
    one.tell(Crash())
    await runtime.quiet()
    assert (one.state, two.state) == (State.WAITING, State.RUNNING)

    await runtime.stop()
    clock.advance(60.0)

    assert (state(one), state(two)) == (State.DEAD, State.DEAD)


async def test_a_kill_finds_children_in_backoff_and_they_return() -> None:
    runtime, book = await keyed()
    one = await book.start_child("1", Counter)
    one.tell(Crash())
    one.tell(Crash())
    await runtime.quiet()
    assert one.state is State.WAITING

    await runtime.kill("root/many")

    assert await one.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


# --- what they leave behind -----------------------------------------------------


PACKAGES = "trustfabric.supervision", "tests.supervision"


def ours() -> Tally[str]:
    """Return how many objects of the package, and of its actors, there are."""
    gc.collect()
    return Tally(
        type(each).__name__
        for each in gc.get_objects()
        if str(type(each).__module__).startswith(PACKAGES)
    )


@dataclass(frozen=True, slots=True)
class Gone(Notice["Watcher"]):
    down: Down


@dataclass(frozen=True, slots=True)
class WatchAll(Request["Watcher", None]):
    them: tuple[Address[Counter], ...]


class Watcher(Actor):
    def __init__(self) -> None:
        super().__init__()
        self.told = 0

    def handle(self, message: Gone | WatchAll) -> None:
        match message:
            case Gone():
                self.told += 1
            case WatchAll(them):
                for one in them:
                    self.watch(one, Gone)
            case _:
                assert_never(message)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["stopped", "killed", "crashed", "supervisor killed"])
async def test_a_hundred_thousand_that_have_ended_leave_nothing_behind(
    end: str, events: list[Any]
) -> None:
    count = 100_000
    book, watcher = DynamicAddress[Counter]("many"), Address[Watcher]("watcher")
    runtime = await started(
        Runtime(watchdog_s=0.0),
        ChildSpec(address=watcher, start=Watcher),
        DynamicSpec(address=book, restart=Restart.TEMPORARY),
    )
    base = ours()

    them = [await book.start_child(str(n), Counter) for n in range(count)]
    for one in them:
        one.tell(Bump())
    await runtime.quiet()
    await watcher.ask(WatchAll(tuple(them)), within_s=60.0)
    assert (ours() - base)["Counter"] == count
    match end:
        case "stopped":
            for n in range(count):
                await book.stop_child(str(n))
        case "killed":
            for one in them:
                one.kill()
        case "crashed":
            for one in them:
                one.tell(Crash())
        case _:
            await runtime.kill("root/many")
    await runtime.quiet()
    del them, one
    events.clear()  # they name what was raised

    left = ours() - base
    assert left.pop("Exit", 0) <= 3  # each reason is kept once
    assert left == Tally()
    actor: Any = watcher.cell.actor
    assert actor.told == count
    await runtime.stop()
