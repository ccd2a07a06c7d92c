"""Why an incarnation of an actor ended."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache

MOST_TEXT = 1_000
"""Characters of an error's text that a reason keeps."""


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


@cache
def taken_along() -> Exit:
    """Of a child whose supervisor fell: the news is that one's own fall."""
    return Exit(ExitKind.KILLED, "its supervisor fell")


def crashed(error: BaseException, message: str | None = None) -> Exit:
    return Exit(ExitKind.CRASHED, in_words(error), error, message)


def in_words(error: BaseException) -> str:
    """Return an error's type and text; the type alone, if it cannot say the text.

    Of a long text only the beginning: it is kept for as long as the actor is.
    """
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001  # a bug in what tells of a bug
        return name
    if len(text) > MOST_TEXT:
        text = f"{text[:MOST_TEXT]}…"
    return f"{name}: {text}" if text else name
