"""What happened to whom: events for traces, histories and tests."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Event(StrEnum):
    STARTED = "started"
    HANDLING = "handling"
    HANDLED = "handled"
    SKIPPED = "skipped"
    """Late, or its asker had gone: not handled."""
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class TraceEvent:
    at: float
    """Seconds of the runtime's monotonic clock."""
    path: str
    epoch: int
    event: Event
    detail: str
    """The type of the message, or why it went down."""


Observer = Callable[[TraceEvent], None]


class Trace:
    """The newest events of one actor or, with `/…`, of everything below it."""

    def __init__(
        self, path: str, *, keep: int, stop: Callable[[Observer], None]
    ) -> None:
        self._path = path
        self._below = path.rstrip("/") + "/"
        self._stop = stop
        self._events: deque[TraceEvent] = deque(maxlen=keep)

    def observe(self, event: TraceEvent) -> None:
        if event.path == self._path or event.path.startswith(self._below):
            self._events.append(event)

    def events(self) -> list[TraceEvent]:
        return list(self._events)

    def stop(self) -> None:
        self._stop(self.observe)
