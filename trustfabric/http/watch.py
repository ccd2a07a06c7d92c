"""A time limit that is set again and again, on one timer.

A timer for each delivery would cost a stream more than the delivery itself.
"""

import asyncio
from collections.abc import Callable


class Watch:
    """Calls `late` once `limit_s` have passed since the last start without a stop."""

    __slots__ = ("_due", "_late", "_limit_s", "_loop", "_timer")

    def __init__(self, limit_s: float, late: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._due = self._loop.time() + self._limit_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._look)

    def stop(self) -> None:
        """Be silent until the next start; its timer may still run, and finds that."""
        self._due = None

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        if self._due > self._loop.time():
            self._timer = self._loop.call_at(self._due, self._look)
            return
        self._due = None
        self._late()
