"""Asks that would wait for ever are found as they begin; others are always answered."""

import asyncio
import itertools
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from tests.supervision.actors import (
    AskCrash,
    Count,
    Counter,
    Do,
    Gate,
    TellDo,
    children,
    started,
)
from trustfabric.supervision import (
    ActorCrashedError,
    Address,
    AskCycleError,
    AskError,
    AskTimeoutError,
    ManualClock,
    Runtime,
)
from trustfabric.supervision.asking import begin_asking
from trustfabric.supervision.cell import Cell
from trustfabric.supervision.future import LoopReply


@dataclass
class Ring:
    """Each asks the next; the last asks the first."""

    them: list[Address[Counter]]
    error: AskError | None = None

    async def __call__(self, actor: Counter) -> Any:
        at = next(i for i, a in enumerate(self.them) if a.path == actor.address.path)
        following = self.them[(at + 1) % len(self.them)]
        try:
            return await following.ask(Do(self), within_s=9.0)
        except AskCycleError as error:
            self.error = error
            return "found"


@pytest.mark.parametrize("length", [1, 2, 3])
async def test_a_cycle_of_asks_is_found_and_named(length: int) -> None:
    them = [Address[Counter](name) for name in "abc"[:length]]
    runtime = await started(Runtime(clock=ManualClock()), *children(*them))
    ring = Ring(them)

    assert await them[0].ask(Do(ring), within_s=9.0) == "found"

    names = [a.path for a in them]
    expected = " -> ".join([names[-1], *names])
    assert str(ring.error) == f"{expected}: each waits for the next"
    await runtime.stop()


async def test_a_cycle_that_nobody_catches_is_undone_from_where_it_was_found() -> None:
    a, b, c = (Address[Counter](name) for name in "abc")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b, c))

    def ask(other: Address[Counter], function: Any) -> Any:
        return lambda _: other.ask(Do(function), within_s=9.0)

    with pytest.raises(ActorCrashedError) as told:
        await a.ask(Do(ask(b, ask(c, ask(a, Count)))), within_s=9.0)
    await runtime.quiet()

    causes, error = list[str](), told.value.__cause__
    while error is not None:
        causes.append(type(error).__name__)
        error = error.__cause__
    assert causes == ["ActorCrashedError", "ActorCrashedError", "AskCycleError"]
    assert [await one.ask(Count(), within_s=9.0) for one in (a, b, c)] == [1, 1, 1]
    assert [r.restart_count for r in runtime.report()] == [0, 1, 1, 1]
    await runtime.stop()


async def test_a_cycle_through_gather_is_found_too() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b))

    async def back(_: Counter) -> Any:
        return await asyncio.gather(
            a.ask(Count(), within_s=9.0), return_exceptions=True
        )

    async def forth(_: Counter) -> Any:
        return await asyncio.gather(b.ask(Do(back), within_s=9.0))

    ((error,),) = await a.ask(Do(forth), within_s=9.0)

    assert isinstance(error, AskCycleError)
    await runtime.stop()


async def test_a_task_beside_the_mailbox_may_ask_its_own_actor() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))
    results: list[Any] = []

    async def beside() -> int:
        return await a.ask(Count(), within_s=9.0)

    await a.ask(
        Do(
            lambda actor: actor.run(
                beside(), lambda result: TellDo(lambda _: results.append(result))
            )
        ),
        within_s=1.0,
    )
    await runtime.quiet()

    assert results == [1]
    await runtime.stop()


async def test_a_cycle_through_a_future_awaited_later_is_found_too() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b))

    async def back(_: Counter) -> Any:
        future = a.ask(Count(), block=False)
        return await asyncio.gather(_await(future), return_exceptions=True)

    async def forth(_: Counter) -> Any:
        return await b.ask(Do(back), block=False)

    (error,) = await a.ask(Do(forth), within_s=9.0)

    assert str(error) == "root/b -> root/a -> root/b: each waits for the next"
    assert isinstance(error, AskCycleError)
    await runtime.stop()


async def _await(future: Any) -> Any:
    return await future


async def test_a_future_that_has_its_answer_is_no_cycle() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b))
    answers: list[Any] = []

    async def back(_: Counter) -> None:
        await a.ask(Count(), within_s=9.0)

    async def forth(_: Counter) -> None:
        answers.append(b.ask(Count(), block=False))
        while not answers[0].done():
            await asyncio.sleep(0)
        b.tell(TellDo(back))
        await asyncio.sleep(0)
        answers.append(await answers[0])

    await a.ask(Do(forth), within_s=9.0)

    assert answers[1] == 1
    await runtime.stop()


async def test_who_has_its_answer_waits_no_longer_though_its_turn_is_to_come() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b))
    gate, asked = Gate(), list[Any]()
    held = asyncio.ensure_future(b.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()

    async def forth(_: Counter) -> Any:
        return await b.ask(Count(), within_s=9.0)

    async def back(_: Counter) -> None:
        asked.append(await a.ask(Count(), within_s=9.0))

    asking = asyncio.ensure_future(a.ask(Do(forth), within_s=9.0))
    await runtime.quiet()
    b.tell(TellDo(back))  # right behind what answers a
    gate.go.set()

    assert await held == "passed"
    assert await asking == 1
    await runtime.quiet()
    assert asked == [1]
    assert {r.restart_count for r in runtime.report()} == {0}
    await runtime.stop()


class Shifting(LoopReply):
    """Who waits for whom changes whenever somebody looks."""

    def __init__(self, cells: list[Cell], chance: Random, looks: list[int]) -> None:
        super().__init__(asyncio.get_running_loop())
        self.cells = cells
        self.chance = chance
        self.looks = looks

    def done(self) -> bool:
        self.looks.append(1)
        for cell in self.chance.sample(self.cells, 5):
            cell.asking = cell.asking or {}
            cell.asking[self.another()] = self.chance.choice(self.cells)
            cell.asking.pop(self.chance.choice(list(cell.asking)))
        return False

    def another(self) -> "Shifting":
        return Shifting(self.cells, self.chance, self.looks)


@pytest.mark.parametrize("seed", range(20))
async def test_the_search_for_a_cycle_ends_though_the_chain_changes_under_it(
    seed: int,
) -> None:
    chance = Random(seed)
    cells = [Address[Counter](f"a{n}").cell for n in range(40)]
    looks: list[int] = []
    first = Shifting(cells, chance, looks)
    for cell in cells:
        cell.asking = {first: chance.choice(cells)}
    asker, asked = Address[Counter]("asker").cell, cells[0]

    begin_asking(asker, asked, first)  # nobody of the others waits for it

    assert asker.asking == {first: asked}
    assert 0 < len(looks) < len(cells)  # at each cell once at most


async def test_work_that_a_sync_handler_leaves_behind_is_not_in_its_midst() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b))

    async def ask_back(_: Counter) -> int:
        return await a.ask(Count(), within_s=9.0)

    async def at_once(_: Counter) -> None:
        pass

    tasks: list[asyncio.Task[int]] = []

    def leave_behind(_: Counter) -> None:
        asking = b.ask(Do(ask_back), within_s=9.0)
        tasks.append(asyncio.get_running_loop().create_task(asking))

    a.tell(TellDo(at_once))
    a.tell(TellDo(leave_behind))
    await runtime.quiet()

    assert await tasks[0] == 1
    await runtime.stop()


async def test_a_chain_of_asks_may_be_as_long_as_there_are_actors() -> None:
    them = [Address[Counter](f"a{n}") for n in range(1_200)]
    runtime = await started(Runtime(clock=ManualClock()), *children(*them))
    gate = Gate()
    asked = [asyncio.ensure_future(them[0].ask(Do(gate), within_s=9.0))]
    await gate.begun.wait()
    for before, address in itertools.pairwise(them):

        async def forth(_: Counter, before: Address[Counter] = before) -> Any:
            return await before.ask(Count(), within_s=9.0)

        asked.append(asyncio.ensure_future(address.ask(Do(forth), within_s=9.0)))
        await asyncio.sleep(0)
    await runtime.quiet()

    gate.go.set()

    assert await asyncio.gather(*asked) == ["passed", *[1] * 1_199]
    await runtime.stop()


# --- every asker hears ----------------------------------------------------------


async def held(clock: ManualClock) -> tuple[Runtime, Address[Counter], Gate, Any]:
    """Return a runtime whose one actor holds a message until its gate opens."""
    a, gate = Address[Counter]("a"), Gate()
    runtime = await started(Runtime(clock=clock), *children(a))
    first = asyncio.ensure_future(a.ask(Do(gate), within_s=99.0))
    await gate.begun.wait()
    return runtime, a, gate, first


async def test_whoever_awaits_a_future_hears_that_the_request_was_skipped() -> None:
    clock = ManualClock()
    runtime, a, gate, first = await held(clock)
    late = asyncio.ensure_future(_await(a.ask(Count(), block=False, timeout=1.0)))

    clock.advance(2.0)
    gate.go.set()
    await first
    await runtime.quiet()

    assert late.done()
    with pytest.raises(AskTimeoutError):
        await late
    assert runtime.counts().skipped == 1
    await runtime.stop()


async def test_whoever_awaits_a_future_hears_that_it_was_not_taken_along() -> None:
    clock, gate = ManualClock(), Gate()
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=clock), *children(a))

    async def batch(actor: Counter) -> int:
        await gate(actor)
        return len(actor.take(Count, 9))

    first = asyncio.ensure_future(a.ask(Do(batch), within_s=99.0))
    await gate.begun.wait()
    late = asyncio.ensure_future(_await(a.ask(Count(), block=False, timeout=1.0)))
    clock.advance(2.0)
    gate.go.set()
    await runtime.quiet()

    assert await first == 0
    assert late.done()
    with pytest.raises(AskTimeoutError):
        await late
    await runtime.stop()


@pytest.mark.parametrize("block", [None, False])
async def test_an_answer_that_no_coroutine_can_raise_is_told_in_words(
    block: bool | None,  # noqa: FBT001
) -> None:
    a = Address[Counter]("a")
    runtime = await started(
        Runtime(clock=ManualClock(), answers=(Exception,)), *children(a)
    )
    request: Any = AskCrash(StopIteration(7))

    asking = (
        a.ask(request, within_s=9.0) if block is None else a.ask(request, block=False)
    )
    answer = asyncio.ensure_future(_await(asking))
    await runtime.quiet()

    assert answer.done()
    with pytest.raises(RuntimeError) as raised:
        await answer
    assert isinstance(raised.value.__cause__, StopIteration)
    assert await a.ask(Count(), within_s=9.0) == 1
    await runtime.stop()
