"""Asks handled on the asker's stack, and async handlers begun there."""

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import pytest

from tests.supervision.actors import (
    Bump,
    Count,
    Counter,
    Do,
    Gate,
    TellDo,
    children,
    started,
)
from trustfabric.supervision import (
    Actor,
    ActorCrashedError,
    ActorKilledError,
    Address,
    Backoff,
    ChildSpec,
    Request,
    Runtime,
)
from trustfabric.supervision.report import ActorReport, describe
from trustfabric.supervision.scheduler import BATCH, LOOKS, SLICE_S

HANDED: ContextVar[str] = ContextVar("handed", default="")
AT_ONCE = Backoff(min_s=0.0)


async def one() -> tuple[Runtime, Address[Counter]]:
    a = Address[Counter]("a")
    return await started(Runtime(), *children(a)), a


async def test_whoever_asks_and_asks_lets_others_run() -> None:
    runtime, a = await one()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(5_000):
        await a.ask(Count(), within_s=1.0)
    task.cancel()

    assert turns >= 10
    await runtime.stop()


async def test_slow_handlers_of_one_actor_let_the_loop_turn() -> None:
    runtime, a = await one()
    handled = 0
    at_turn: list[int] = []

    def slowly(_: Counter) -> None:
        nonlocal handled
        handled += 1
        until = perf_counter() + SLICE_S
        while perf_counter() < until:
            pass

    for _ in range(BATCH):
        a.tell(TellDo(slowly))
    while handled < BATCH:
        await asyncio.sleep(0)
        at_turn.append(handled)

    assert len(set(at_turn)) >= BATCH // LOOKS
    await runtime.stop()


async def test_mail_that_waits_goes_before_an_ask() -> None:
    runtime, a = await one()
    await a.ask(Count(), within_s=1.0)

    a.tell(Bump())
    a.tell(Bump())

    assert await a.ask(Count(), within_s=1.0) == 4
    await runtime.stop()


async def test_what_a_handler_sets_in_its_context_stays_there() -> None:
    runtime, a = await one()

    def leak(_: Counter) -> None:
        HANDED.set("leaked")

    for _ in range(3):
        await a.ask(Do(leak), within_s=1.0)

    assert HANDED.get() == ""
    assert await a.ask(Do(lambda _: HANDED.get()), within_s=1.0) == ""
    await runtime.stop()


async def test_a_handler_is_one_task_from_its_first_step_to_its_last() -> None:
    runtime, a = await one()

    async def handler(_: Counter) -> bool:
        before = asyncio.current_task()
        assert before is not mine
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        await asyncio.wait_for(asyncio.sleep(0), 1.0)
        return before is not None and asyncio.current_task() is before

    mine = asyncio.current_task()
    for _ in range(3):
        assert await a.ask(Do(handler), within_s=5.0)
        assert asyncio.current_task() is mine
    await runtime.stop()


async def test_a_crash_on_the_askers_stack_is_the_actors() -> None:
    runtime, a = await one()
    await a.ask(Count(), within_s=1.0)

    async def crash(_: Counter) -> None:
        raise SystemExit

    for _ in range(2):
        with pytest.raises(ActorCrashedError) as raised:
            await a.ask(Do(crash), within_s=1.0)
        assert isinstance(raised.value.__cause__, SystemExit)
    assert await a.ask(Count(), within_s=5.0) == 1
    await runtime.stop()


def end_itself(actor: Counter) -> str:
    actor.address.kill()
    return "an answer that is not given"


def end_itself_crashing(actor: Counter) -> None:
    actor.address.kill()
    raise ZeroDivisionError


def end_itself_working(actor: Counter) -> Any:
    actor.address.kill()
    return asyncio.sleep(3600.0)


ENDS = [end_itself, end_itself_crashing, end_itself_working]


@pytest.mark.parametrize("ends", ENDS)
async def test_one_that_ends_itself_on_its_askers_stack_tells_it(ends: Any) -> None:
    runtime, a = await one()
    await a.ask(Count(), within_s=1.0)

    for _ in range(2):
        with pytest.raises(ActorKilledError):
            await a.ask(Do(ends), within_s=1.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


@dataclass(frozen=True, slots=True)
class Again(Request[Counter, Any]):
    idempotent: ClassVar[bool] = True
    ends: Any
    seen: list[Counter]

    def __call__(self, actor: Counter) -> Any:
        self.seen.append(actor)
        return self.ends(actor) if len(self.seen) == 1 else "again"


@pytest.mark.parametrize("ends", ENDS)
async def test_the_next_incarnation_answers_what_may_be_repeated(ends: Any) -> None:
    address = Address[Repeater]("repeater")
    runtime = await started(
        Runtime(), ChildSpec(address=address, start=Repeater, backoff=AT_ONCE)
    )
    again = Again(ends, [])

    assert await address.ask(again, within_s=5.0) == "again"

    assert len(set(again.seen)) == 2
    await runtime.stop()


class Repeater(Counter):
    def handle(self, message: Any) -> Any:
        return message(self)


@pytest.mark.parametrize("ends", [*ENDS, Counter.handle])
async def test_an_actor_waits_for_nobody_once_it_has_its_answer(ends: Any) -> None:
    asker, a = Address[Counter]("asker"), Address[Counter]("a")
    runtime = await started(Runtime(), *children(asker, a))

    async def ask(actor: Counter) -> tuple[str, ...]:
        with suppress(ActorKilledError):
            await a.ask(Do(ends) if ends in ENDS else Count(), within_s=1.0)
        return describe(actor.address.cell).waiting_on

    assert await asker.ask(Do(ask), within_s=1.0) == ()
    await runtime.stop()


async def test_a_report_on_its_askers_stack_shows_the_request_in_hand() -> None:
    runtime, a = await one()

    def report(actor: Counter) -> ActorReport:
        return describe(actor.address.cell)

    assert (await a.ask(Do(report), within_s=1.0)).current == "Do"
    assert describe(a.cell).current is None
    await runtime.stop()


def test_nobody_is_asked_while_the_loop_stands_still() -> None:
    with asyncio.Runner() as runner, asyncio.Runner() as another:
        runtime, a = runner.run(one())
        asked = a.ask(Count(), within_s=1.0)
        with pytest.raises(RuntimeError, match="root/a: ask with `block`"):
            asked.send(None)
        with pytest.raises(RuntimeError, match="root/a: ask with `block`"):
            another.run(a.ask(Count(), within_s=1.0))
        assert runner.run(a.ask(Count(), within_s=1.0)) == 1
        runner.run(runtime.stop())


async def test_one_that_works_is_not_handed_a_second_ask() -> None:
    runtime, a = await one()
    gate = Gate()
    first = asyncio.ensure_future(a.ask(Do(gate), within_s=5.0))
    await gate.begun.wait()

    second = asyncio.ensure_future(a.ask(Count(), within_s=5.0))
    await asyncio.sleep(0)
    assert not second.done()

    gate.go.set()
    assert (await first, await second) == ("passed", 1)
    await runtime.stop()


class Link(Actor):
    """Asks the next one of a chain."""

    def __init__(self, following: "Address[Link] | None") -> None:
        super().__init__()
        self.following = following

    async def handle(self, message: "Length") -> int:
        if self.following is None:
            return 1
        return 1 + await self.following.ask(message, within_s=5.0)


class Length(Request[Link, int]):
    pass


async def test_a_long_chain_of_asks_is_no_deep_stack() -> None:
    chain = [Address[Link](f"link{n}") for n in range(200)]

    def spec(number: int) -> Any:
        following = chain[number + 1] if number + 1 < len(chain) else None
        return ChildSpec(address=chain[number], start=lambda: Link(following))

    runtime = await started(Runtime(), *(spec(n) for n in range(len(chain))))

    for _ in range(3):
        assert await chain[0].ask(Length(), within_s=5.0) == len(chain)
    await runtime.stop()
