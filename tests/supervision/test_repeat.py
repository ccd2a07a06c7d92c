"""A message that declares itself idempotent is handled once more after a fall."""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from trustfabric.supervision import (
    Actor,
    ActorCrashedError,
    ActorDeadError,
    Address,
    Backoff,
    ChildSpec,
    Notice,
    Request,
    Restart,
    Runtime,
    SupervisorSpec,
    exits,
)


@dataclass(frozen=True, slots=True)
class Fetch(Request["Fetcher", int]):
    idempotent: ClassVar[bool] = True
    number: int


@dataclass(frozen=True, slots=True)
class Touch(Notice["Fetcher"]):
    idempotent: ClassVar[bool] = True
    number: int


@dataclass(frozen=True, slots=True)
class FetchOnce(Request["Fetcher", int]):
    number: int


class Fetcher(Actor):
    def __init__(self, seen: list[int], faults: int) -> None:
        super().__init__()
        self.seen = seen
        self.faults = faults

    async def handle(self, message: Fetch | Touch | FetchOnce) -> int:
        self.seen.append(message.number)
        if message.number < 0:
            await asyncio.sleep(3600.0 if self.seen.count(message.number) == 1 else 0.0)
        elif self.seen.count(message.number) <= self.faults:
            raise ZeroDivisionError
        return message.number


async def fetcher(
    faults: int, **spec: Any
) -> tuple[Runtime, Address[Fetcher], list[int]]:
    seen: list[int] = []
    address = Address[Fetcher]("fetcher")
    child = ChildSpec(
        address=address,
        start=lambda: Fetcher(seen, faults),
        backoff=Backoff(min_s=0.0),
        **spec,
    )
    runtime = Runtime()
    await runtime.start(SupervisorSpec(name="root", children=(child,)))
    return runtime, address, seen


async def test_it_is_handled_once_more_before_the_mail_that_waits() -> None:
    runtime, address, seen = await fetcher(faults=1)

    address.tell(Touch(1))
    address.tell(Touch(2))
    assert await address.ask(Fetch(3), within_s=5.0) == 3

    assert seen == [1, 1, 2, 2, 3, 3]
    await runtime.stop()


async def test_it_is_not_repeated_twice() -> None:
    runtime, address, seen = await fetcher(faults=9)

    with pytest.raises(ActorCrashedError):
        await address.ask(Fetch(1), within_s=5.0)

    assert seen == [1, 1]
    await runtime.stop()


async def test_others_are_not_repeated() -> None:
    runtime, address, seen = await fetcher(faults=1)

    with pytest.raises(ActorCrashedError):
        await address.ask(FetchOnce(1), within_s=5.0)

    assert seen == [1]
    await runtime.stop()


@pytest.mark.parametrize("grace_s", [None, 0.0])
async def test_a_kill_in_its_midst_repeats_it_too(grace_s: float | None) -> None:
    runtime, address, seen = await fetcher(faults=0)
    answer = asyncio.ensure_future(address.ask(Fetch(-1), within_s=5.0))
    await asyncio.sleep(0.01)

    address.cell.kill(exits.killed("test"), grace_s)

    assert await answer == -1
    assert seen == [-1, -1]
    await runtime.stop()


async def test_its_asker_is_told_if_nobody_comes_after() -> None:
    runtime, address, seen = await fetcher(faults=1, restart=Restart.TEMPORARY)

    with pytest.raises(ActorDeadError):
        await address.ask(Fetch(1), within_s=5.0)

    assert seen == [1]
    await runtime.stop()
