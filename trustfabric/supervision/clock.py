"""Where time comes from: the system's, or a test's hand."""

import asyncio
import heapq
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Protocol


class Handle(Protocol):
    """Something due later."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The one source of time of a runtime: of readings and of wake-ups."""

    def now(self) -> datetime:
        """Wall-clock time, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; the zero is arbitrary."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        """Call back on the running loop once `monotonic()` has reached `when`."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    monotonic = staticmethod(time.monotonic)

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, when - time.monotonic()), callback)


class _Due:
    """One wake-up of a ManualClock."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


class ManualClock:
    """Time that stands still until a test moves it."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = count()
        self._due: list[tuple[float, int, _Due]] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        due = _Due(callback)
        if when <= self._elapsed:
            asyncio.get_running_loop().call_soon(due.fire)
        else:
            heapq.heappush(self._due, (when, next(self._order), due))
        return due

    def advance(self, seconds: float) -> None:
        """Move on, firing what falls due in order, each at its own time."""
        until = self._elapsed + seconds
        while self._due and self._due[0][0] <= until:
            self._elapsed, _, due = heapq.heappop(self._due)
            due.fire()
        self._elapsed = until
