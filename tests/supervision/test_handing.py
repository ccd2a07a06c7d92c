"""Asks handled on the asker's stack, and async handlers begun there."""

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from tests.supervision.actors import Bump, Count, Counter, Do, Gate, children, started
from trustfabric.supervision import (
    Actor,
    ActorCrashedError,
    Address,
    ChildSpec,
    Request,
    Runtime,
)

HANDED: ContextVar[str] = ContextVar("handed", default="")


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
