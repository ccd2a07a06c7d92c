"""Whose turn it is: the ready list, mail from other threads, and what cells share."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from random import Random
from time import perf_counter
from typing import Any, Protocol

from trustfabric.supervision.clock import Clock
from trustfabric.supervision.deadletters import DeadLetters
from trustfabric.supervision.mailbox import Envelope
from trustfabric.supervision.trace import Event, Observer, TraceEvent

BATCH = 64
"""Messages one actor may handle before the next one's turn."""
SLICE_S = 0.002
"""How long actors run before the event loop sees to its sockets again."""


class Runnable(Protocol):
    """What the scheduler needs of a cell."""

    path: str
    epoch: int

    def step(self, budget: int) -> bool:
        """Handle up to `budget` messages; True if more could be handled now."""
        ...

    def put(self, envelope: Envelope) -> bool: ...

    def refuse(self, envelope: Envelope, reason: str) -> None: ...


class Scheduler:
    """Runs cells on one loop; everything here but `post` is for its thread only."""

    def __init__(
        self,
        clock: Clock,
        random: Random,
        answers: tuple[type[Exception], ...],
        *,
        shuffle: bool = False,
    ) -> None:
        self.clock = clock
        self.random = random
        self.answers = answers
        self.dead_letters = DeadLetters(clock)
        self.observers: tuple[Observer, ...] = ()
        self.cells: dict[str, Any] = {}
        self.zombies = 0
        """Coroutines that would not end even when closed by force."""
        self.skipped = 0
        """Requests that were late, or whose asker had gone."""
        self.running: Runnable | None = None
        self.loop = asyncio.get_running_loop()
        self.context = contextvars.Context()
        self._thread = threading.get_ident()
        self._batch = 1 if shuffle else BATCH
        self._shuffle = shuffle
        self._ready: deque[Runnable] = deque()
        self._scheduled = False
        self._lock = threading.Lock()
        self._posted: deque[tuple[Runnable, Envelope]] = deque()
        self.closed = False

    @property
    def here(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.get_ident() == self._thread

    @property
    def idle(self) -> bool:
        return not self._ready and not self._posted

    def enqueue(self, cell: Runnable) -> None:
        self._ready.append(cell)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._pump, context=self.context)

    def _pump(self) -> None:
        until = perf_counter() + SLICE_S
        ready, batch = self._ready, self._batch
        try:
            while ready:
                if self._shuffle:
                    ready.rotate(-self.random.randrange(len(ready)))
                cell = self.running = ready.popleft()
                if cell.step(batch):
                    ready.append(cell)
                if perf_counter() > until or self._shuffle:
                    break
        finally:
            self.running = None
            self._scheduled = bool(ready)
            if ready:
                self.loop.call_soon(self._pump, context=self.context)

    def post(self, cell: Runnable, envelope: Envelope) -> bool:
        """Deliver from any thread; False once the runtime has stopped."""
        with self._lock:
            if self.closed:
                return False
            self._posted.append((cell, envelope))
            if len(self._posted) == 1:
                self.call_from_thread(self._deliver_posted)
        return True

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon_threadsafe(callback, context=self.context)

    def _deliver_posted(self) -> None:
        with self._lock:
            posted, self._posted = self._posted, deque()
        for cell, envelope in posted:
            cell.put(envelope)

    def close(self) -> None:
        """Refuse what still comes; nothing posted stays unanswered."""
        with self._lock:
            self.closed = True
            posted, self._posted = self._posted, deque()
        for cell, envelope in posted:
            cell.refuse(envelope, "the runtime stopped")

    def emit(self, cell: Runnable, event: Event, detail: str) -> None:
        if not self.observers:
            return
        happened = TraceEvent(
            self.clock.monotonic(), cell.path, cell.epoch, event, detail
        )
        for observe in self.observers:
            observe(happened)
