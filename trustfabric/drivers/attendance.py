"""Attending a program: its lines as they come, until it ends or is to end."""

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from trustfabric.domain.executors import (
    Cancellation,
    Emit,
    ExitStatus,
    LogStream,
    RemediationLogEvent,
)
from trustfabric.domain.failures import FailureReason
from trustfabric.drivers.secrets import Masker
from trustfabric.drivers.subprocesses import Program

DRAIN_S = 1.0
"""How long the pipes may give more once the program has ended."""
KILL_S = 5.0
"""How long a killed process may take to go before we say that we can't prove it."""
CHUNK = 65_536


class Ending(Enum):
    """Why an attended program ended."""

    EXITED = auto()
    TIMEOUT = auto()
    CANCELLED = auto()


class Lines(Protocol):
    """Makes lines of a program's output; they are bounded and masked."""

    def feed(self, data: bytes) -> list[str]: ...

    def end(self) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a program may take, and then to stop."""

    timeout_s: float
    kill_grace_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """How it was, once nothing of it is left, or nothing more can be done."""

    ending: Ending
    code: int | None
    """None where even KILL did not end it."""
    left: int = 0
    """How many of its processes could not be proven to have ended."""


class Stopwatch:
    """Tells an execution's end with the time that it took."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    @property
    def spent_s(self) -> float:
        return self._loop.time() - self._started

    def ended(
        self, message: str, reason: FailureReason | None, code: int | None = None
    ) -> ExitStatus:
        return ExitStatus(
            code=code,
            message=message,
            failure_reason=reason,
            duration_s=self.spent_s,
        )


async def attend(
    program: Program,
    patience: Patience,
    lines: Mapping[LogStream, Lines],
    emit: Emit,
    cancelled: Cancellation,
) -> Ended:
    """Read a program to its end, or stop it: TERM, grace, KILL, wait.

    However this ends, also by being cancelled itself, the program was killed.
    """
    try:
        ending = await _attended(program, patience, lines, emit, cancelled)
    finally:
        code = program.destroy()
    return Ended(ending, code, left=program.left())


async def _attended(
    program: Program,
    patience: Patience,
    lines: Mapping[LogStream, Lines],
    emit: Emit,
    cancelled: Cancellation,
) -> Ending:
    out, err = await program.outputs()
    async with asyncio.TaskGroup() as tasks:
        pumps = [
            tasks.create_task(_pump(reader, stream, lines[stream], emit))
            for stream, reader in ((LogStream.STDOUT, out), (LogStream.STDERR, err))
        ]
        end = tasks.create_task(program.wait())
        wish = tasks.create_task(_until_set(cancelled))
        done, _ = await asyncio.wait(
            {end, wish},
            timeout=patience.timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        wish.cancel()
        ending = _ending(exited=end in done, wished=wish in done)
        if not end.done():
            await program.terminate()
            await asyncio.wait({end}, timeout=patience.kill_grace_s)
        await program.kill()
        await asyncio.wait({end}, timeout=KILL_S)
        end.cancel()
        await asyncio.wait(pumps, timeout=DRAIN_S)
        program.close_pipes()
    return ending


def stopped(ended: Ended, timeout_s: float) -> tuple[str, FailureReason] | None:
    """Return what to say of a program that we ended; None: it ended by itself."""
    doubt = ""
    if ended.code is None or ended.left:
        doubt = " (it could not be proven to have ended)"
    match ended.ending:
        case Ending.TIMEOUT:
            return f"stopped after {timeout_s:g} s{doubt}", FailureReason.TIMEOUT
        case Ending.CANCELLED:
            return f"stopped on request{doubt}", FailureReason.CANCELLED
        case Ending.EXITED:
            return None


def unavailable(error: Exception, masker: Masker) -> tuple[str, FailureReason]:
    """Return what to say of a program that could not even be started."""
    said = masker.mask(f"the executor can't run: {error}")
    return said, FailureReason.EXECUTOR_UNAVAILABLE


def signal_name(code: int | None) -> str:
    """Return the name of what killed a program that ended with this code."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-(code or 0)).name
    return "a signal"


async def _pump(
    reader: asyncio.StreamReader, stream: LogStream, lines: Lines, emit: Emit
) -> None:
    while data := await reader.read(CHUNK):
        for line in lines.feed(data):
            await emit(RemediationLogEvent(stream, line))
    for line in lines.end():
        await emit(RemediationLogEvent(stream, line))


async def _until_set(cancelled: Cancellation) -> None:
    await cancelled.wait()


def _ending(*, exited: bool, wished: bool) -> Ending:
    if exited:
        return Ending.EXITED
    return Ending.CANCELLED if wished else Ending.TIMEOUT
