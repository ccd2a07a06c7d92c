"""Why an incarnation of an actor ended."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache


class ExitKind(StrEnum):
    NORMAL = "normal"
    """It stopped itself, or was asked to by pykka's `stop`."""
    SHUTDOWN = "shutdown"
    """Its supervisor stopped it."""
    KILLED = "killed"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Exit:
    kind: ExitKind
    reason: str
    error: BaseException | None = None
    message: str | None = None
    """The type of the message in hand, if one was."""

    @property
    def abnormal(self) -> bool:
        return self.kind in (ExitKind.KILLED, ExitKind.CRASHED)


@cache
def normal() -> Exit:
    return Exit(ExitKind.NORMAL, "stopped")


@lru_cache
def shutdown(reason: str = "stopped by its supervisor") -> Exit:
    return Exit(ExitKind.SHUTDOWN, reason)


@lru_cache
def killed(reason: str) -> Exit:
    return Exit(ExitKind.KILLED, reason)


def crashed(error: BaseException, message: str | None = None) -> Exit:
    text = str(error)
    name = type(error).__name__
    return Exit(ExitKind.CRASHED, f"{name}: {text}" if text else name, error, message)
