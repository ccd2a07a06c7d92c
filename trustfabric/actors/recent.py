"""The newest events of a stream, for those who were away for a moment only."""

from collections import deque
from collections.abc import Sequence

from trustfabric.actors.followers import Event
from trustfabric.domain.events import Position

LIMIT = 2_000
"""Events kept of each stream; some kilobytes each."""


class Recent:
    """Knows every event after a position, which moves on as older ones are dropped.

    `head` is where the stream stands: its newest event, or where it began.
    """

    def __init__(self, since: Position, limit: int = LIMIT) -> None:
        self._since = since
        self.head = since
        self._limit = limit
        self._events: deque[Event] = deque()

    def add(self, events: Sequence[Event]) -> None:
        """Keep what comes next in the stream."""
        self._events.extend(events)
        if self._events:
            self.head = self._events[-1].position
        while len(self._events) > self._limit:
            self._since = self._events.popleft().position

    def after(self, position: Position, upto: Position) -> list[Event] | None:
        """Return what came after `position`, in order; None: not all up to `upto` is.

        After a crash it begins where the last position was saved: readers may know of
        events beyond all that are here, and those in between would be left out.
        """
        if position < self._since or upto > self.head:
            return None
        found: list[Event] = []
        for event in reversed(self._events):
            if event.position <= position:
                break
            found.append(event)
        return found[::-1]
