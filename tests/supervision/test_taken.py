"""Requests taken along with the one in hand."""

import asyncio
from typing import Any

import pytest

from tests.supervision.actors import (
    AskCrash,
    Bump,
    Count,
    Counter,
    Do,
    Gate,
    children,
    started,
)
from trustfabric.supervision import (
    ActorCrashedError,
    ActorKilledError,
    Address,
    AskTimeoutError,
    ManualClock,
    Runtime,
)


def ask(a: Address[Counter], request: Any, within_s: float = 99.0) -> Any:
    return asyncio.ensure_future(a.ask(request, within_s=within_s))


async def taking(
    clock: ManualClock, limit: int, *requests: Any
) -> tuple[Runtime, Address[Counter], list[Any], list[Any], Gate]:
    """Return a runtime whose actor holds a message and has taken others along."""
    a, gate, first = Address[Counter]("a"), Gate(), Gate()
    runtime = await started(Runtime(clock=clock), *children(a))
    taken: list[Any] = []

    async def batch(actor: Counter) -> str:
        await first(actor)
        taken.extend(actor.take(Count, limit))
        return await gate(actor)

    asked = [ask(a, Do(batch))]
    await first.begun.wait()
    asked += [ask(a, request) for request in requests]
    await runtime.quiet()
    first.go.set()
    await gate.begun.wait()
    return runtime, a, asked, taken, gate


async def test_those_of_one_kind_are_taken_up_to_the_first_of_another() -> None:
    runtime, _, asked, taken, gate = await taking(
        ManualClock(), 9, Count(), Count(), Do(lambda _: "other"), Count()
    )

    assert [one.message for one in taken] == [Count(), Count()]
    taken[0].answer(70)
    taken[1].refuse(KeyError("no"))
    gate.go.set()

    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert outcomes[:2] == ["passed", 70]
    assert isinstance(outcomes[2], KeyError)
    assert outcomes[3:] == ["other", 1]
    await runtime.stop()


async def test_no_more_than_the_limit_is_taken() -> None:
    runtime, _, asked, taken, gate = await taking(ManualClock(), 1, Count(), Count())

    assert len(taken) == 1
    taken[0].answer(70)
    gate.go.set()

    assert await asyncio.gather(*asked) == ["passed", 70, 1]
    await runtime.stop()


async def test_a_notice_ends_the_taking() -> None:
    a, gate = Address[Counter]("a"), Gate()
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    async def batch(actor: Counter) -> int:
        await gate(actor)
        return len(actor.take(Count, 9))

    asked = ask(a, Do(batch))
    await gate.begun.wait()
    a.tell(Bump())
    gate.go.set()

    assert await asked == 0
    await runtime.stop()


async def test_those_whose_asker_has_gone_are_skipped() -> None:
    clock = ManualClock()
    a, gate = Address[Counter]("a"), Gate()
    runtime = await started(Runtime(clock=clock), *children(a))

    async def batch(actor: Counter) -> int:
        await gate(actor)
        return len(actor.take(Count, 9))

    asked = ask(a, Do(batch))
    await gate.begun.wait()
    late = ask(a, Count(), within_s=1.0)
    await runtime.quiet()
    clock.advance(2.0)
    with pytest.raises(AskTimeoutError):
        await late
    gate.go.set()

    assert await asked == 0
    assert runtime.counts().skipped == 1
    await runtime.stop()


async def test_askers_of_those_taken_hear_of_a_kill_at_once() -> None:
    runtime, a, asked, _, _ = await taking(ManualClock(), 9, Count(), Count())

    a.kill()

    for error in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(error, ActorKilledError)
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_askers_of_those_taken_hear_of_a_crash() -> None:
    a, gate = Address[Counter]("a"), Gate()
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    async def batch(actor: Counter) -> None:
        await gate(actor)
        assert len(actor.take(AskCrash, 9)) == 1
        raise ZeroDivisionError

    asked = [ask(a, Do(batch))]
    await gate.begun.wait()
    asked.append(ask(a, AskCrash()))
    await runtime.quiet()
    gate.go.set()

    for error in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(error, ActorCrashedError)
    await runtime.stop()


async def test_requests_to_one_that_takes_them_along_come_together() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(), *children(a))
    sizes: list[int] = []

    def batch(actor: Counter) -> None:
        taken = actor.take(Do, 9)
        sizes.append(1 + len(taken))
        for one in taken:
            one.answer(None)

    await a.ask(Do(batch), within_s=1.0)
    await asyncio.gather(*(a.ask(Do(batch), within_s=1.0) for _ in range(5)))

    assert sizes == [1, 5]
    await runtime.stop()
