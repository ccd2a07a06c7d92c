"""Actors that tests start: a counter that can be asked to misbehave."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, assert_never

from trustfabric.supervision import (
    Actor,
    Address,
    ChildSpec,
    ManualClock,
    Notice,
    Request,
    Runtime,
    State,
    Strategy,
    SupervisorSpec,
)


@dataclass(frozen=True, slots=True)
class Count(Request["Counter", int]):
    """Answered with how often it was asked in this incarnation."""


@dataclass(frozen=True, slots=True)
class Bump(Notice["Counter"]):
    """Counts, answers nothing."""


@dataclass(frozen=True, slots=True)
class Crash(Notice["Counter"]):
    """Raises what it carries."""

    error: BaseException = field(default_factory=lambda: ZeroDivisionError("bug"))


@dataclass(frozen=True, slots=True)
class AskCrash(Request["Counter", int]):
    error: BaseException = field(default_factory=lambda: ZeroDivisionError("bug"))


@dataclass(frozen=True, slots=True)
class Quit(Notice["Counter"]):
    """Stops itself."""


@dataclass(frozen=True, slots=True)
class Do(Request["Counter", Any]):
    """Answered with what the function makes of the actor; awaited if it is async."""

    function: Callable[["Counter"], Any]


@dataclass(frozen=True, slots=True)
class TellDo(Notice["Counter"]):
    function: Callable[["Counter"], Any]


Message: TypeAlias = Count | Bump | Crash | AskCrash | Quit | Do | TellDo


class Counter(Actor):
    def __init__(self, log: list[str] | None = None, label: str = "") -> None:
        super().__init__()
        self.log = log if log is not None else []
        self.label = label
        self.count = 0

    def on_start(self) -> None:
        self.log.append(f"start {self.label}")

    async def on_stop(self) -> None:
        self.log.append(f"stop {self.label}")

    def handle(self, message: Message) -> Any:
        match message:
            case Count() | Bump():
                self.count += 1
                return self.count
            case Crash(error=error) | AskCrash(error=error):
                raise error
            case Quit():
                self.stop()
                return None
            case Do(function=function) | TellDo(function=function):
                return function(self)
            case _:
                assert_never(message)


@dataclass
class Gate:
    """An async handler that waits until let go, and says when it has begun."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, _: Counter) -> str:
        self.begun.set()
        await self.go.wait()
        return "passed"


def children(
    *addresses: Address[Counter], log: list[str] | None = None, **spec: Any
) -> tuple[ChildSpec[Counter], ...]:
    return tuple(
        ChildSpec(
            address=address,
            start=lambda name=address.name: Counter(log, name),  # type: ignore[misc]
            **spec,
        )
        for address in addresses
    )


def state(address: Address[Any]) -> State:
    """Return the state of now; mypy would believe in an earlier look."""
    return address.state


async def started(
    runtime: Runtime,
    *specs: Any,
    strategy: Strategy = Strategy.ONE_FOR_ONE,
    **spec: Any,
) -> Runtime:
    root = SupervisorSpec(name="root", strategy=strategy, children=specs, **spec)
    await runtime.start(root)
    return runtime


async def one(clock: ManualClock | None = None) -> tuple[Runtime, Address[Counter]]:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=clock or ManualClock()), *children(a))
    return runtime, a


async def outcome(task: "asyncio.Future[Any]") -> Any:
    return (await asyncio.gather(task, return_exceptions=True))[0]


def ask_later(a: Address[Counter], function: Any) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(a.ask(Do(function), within_s=99.0))


def epoch(runtime: Runtime, path: str = "root/a") -> int:
    return next(r.epoch for r in runtime.report() if r.path == path)
