"""A tree under virtual time and a seeded order: the same seed, the same history.

Nothing waits: when all have something to wait for only, time jumps to the next
wake-up. Whose message is handled next is drawn from the seed.
"""

import asyncio
import hashlib
import selectors
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Generic, TypeVar

from trustfabric.supervision.clock import Handle
from trustfabric.supervision.runtime import Runtime
from trustfabric.supervision.trace import TraceEvent

T = TypeVar("T")


class StandstillError(Exception):
    """Everybody waits, and no timer is set: nothing would ever happen again."""


class LoopClock:
    """The running loop's own time; of a VirtualLoop, virtual time."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        return asyncio.get_running_loop().call_at(when, callback)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps, `asyncio.sleep` and `timeout` included."""

    def __init__(self) -> None:
        self._virtual_now = 0.0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        return self._virtual_now

    def _jump(self, seconds: float | None) -> None:
        if seconds is None:
            raise StandstillError("everybody waits, and no timer is set")
        self._virtual_now += seconds


class _JumpingSelector(selectors.DefaultSelector):
    """Sees to sockets that are ready; instead of waiting for others, time jumps."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self._jump(timeout)
        return ready


class History:
    """Every event of a runtime, hashed; the newest are kept to look at."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.length = 0

    def observe(self, event: TraceEvent) -> None:
        line = f"{event.at!r} {event.path} {event.epoch} {event.event} {event.detail}\n"
        self._hash.update(line.encode())
        self.length += 1

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True)
class Simulated(Generic[T]):
    seed: int
    result: T
    digest: str
    """Of the history: equal for equal seeds, or something escaped the simulation."""
    events: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """What the simulated program is handed."""

    runtime: Runtime
    """To be started by the program; its randomness is the seed's."""
    random: Random
    """For the program's own faults and load, from the same seed."""
    history: History

    async def record(self) -> None:
        """Hash all that happens from now on; call once the runtime was started."""
        self.runtime.observe(self.history.observe)


def simulate(
    program: Callable[[Simulation], Awaitable[T]],
    seed: int,
    *,
    answers: tuple[type[Exception], ...] = (),
) -> Simulated[T]:
    """Run a program in a world of its own; a failure carries the seed as a note."""
    chance = Random(seed)  # noqa: S311  # reproducible on purpose
    runtime = Runtime(clock=LoopClock(), random=chance, answers=answers, shuffle=True)
    history = History()

    async def main() -> T:
        simulation = Simulation(runtime, Random(chance.random()), history)  # noqa: S311
        try:
            return await program(simulation)
        finally:
            await runtime.stop()

    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            result = runner.run(main())
    except Exception as error:
        error.add_note(f"simulated with seed {seed}")
        raise
    return Simulated(seed, result, history.digest, history.length)
