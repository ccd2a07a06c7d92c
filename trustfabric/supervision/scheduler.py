"""Whose turn it is: the ready list, mail from other threads, and what cells share."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from random import Random
from time import perf_counter
from typing import Any, Protocol

from trustfabric.supervision import exits
from trustfabric.supervision.clock import Clock
from trustfabric.supervision.deadletters import DeadLetters
from trustfabric.supervision.log import Log
from trustfabric.supervision.mailbox import Mail, is_stop, sealed
from trustfabric.supervision.tally import Tally
from trustfabric.supervision.trace import Event, Observer, TraceEvent
from trustfabric.supervision.undelivered import bounce

log = Log(__name__)

BATCH = 64
"""Messages one actor may handle before the next one's turn."""
LOOKS = 8
"""After so many of them it looks at the time, in case they are slow ones."""
HAND_OVERS = 257
"""Asks that may be handled on their askers' stacks before the event loop must turn.

A prime: tasks that ask in turns don't reach the end of it with the same one each time.
"""
DEPTH = 16
"""How many hand-overs may stand on one another."""
INBOUND = 50_000
"""Messages from other threads that may wait to be delivered, all actors together."""
INBOUND_BATCH = 1_000
"""How many of them are delivered before the event loop sees to the rest."""
SLICE_S = 0.002
"""How long actors run before the event loop sees to its sockets again."""


class Runnable(Protocol):
    """What the scheduler needs of a cell."""

    epoch: int

    @property
    def path(self) -> str: ...

    def step(self, budget: int) -> bool:
        """Handle up to `budget` messages; True if more could be handled now."""
        ...

    def put(self, mail: Mail) -> bool: ...

    def refuse(self, mail: Mail, reason: str) -> None: ...


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
        self.directory: Any = None  # the runtime's, which knows cells
        self.observers: tuple[Observer, ...] = ()
        self.tally = Tally()
        self.running: Runnable | None = None
        self.loop = asyncio.get_running_loop()
        self.context = contextvars.Context()
        self.thread = threading.get_ident()
        self._batch = 1 if shuffle else BATCH
        self.shuffles = shuffle
        self._ready: deque[Runnable] = deque()
        self._scheduled = False
        self._handed_to = 0
        self.hand_overs = 0
        """Whoever asks and asks shall let the loop turn now and then."""
        self.depth = 0
        """How many askers' stacks the handler that runs stands on."""
        self._posted: deque[tuple[Runnable, Mail]] = deque()
        self._until = 0.0
        self._woken = False
        self.closed = False
        self._abandoning = threading.RLock()

    @property
    def here(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.get_ident() == self.thread

    @property
    def idle(self) -> bool:
        return not self._ready and not self._posted

    def enqueue(self, cell: Runnable) -> None:
        self._ready.append(cell)
        if not self._scheduled:
            self._scheduled = True
            try:
                self.loop.call_soon(self._pump, context=self.context)
            except RuntimeError:
                if not self.loop.is_closed():
                    raise
                self.abandon()

    def tosses(self) -> bool:
        """Leave to chance what the simulation may do either way."""
        return bool(self.random.getrandbits(1))

    def has_turned(self) -> bool:
        """Whether the loop has turned since they ran out; then there are more.

        It has when another task asks.
        """
        task = id(asyncio.current_task(self.loop))
        if task == self._handed_to:
            return False
        self._handed_to, self.hand_overs = task, HAND_OVERS
        return True

    def is_over(self) -> bool:
        """Whether it is the event loop's turn."""
        return perf_counter() > self._until

    def _pump(self) -> None:
        self.hand_overs = HAND_OVERS
        self._until = perf_counter() + SLICE_S
        ready, batch = self._ready, self._batch
        try:
            while ready:
                if self.shuffles:
                    ready.rotate(-self.random.randrange(len(ready)))
                cell = self.running = ready.popleft()
                if cell.step(batch):
                    ready.append(cell)
                if self.is_over() or self.shuffles:
                    break
        finally:
            self.running = None
            self._scheduled = bool(ready)
            if ready:
                self.loop.call_soon(self._pump, context=self.context)

    def post(self, cell: Runnable, mail: Mail) -> bool:
        """Deliver from any thread; False if it was refused.

        One wake-up of the loop serves a burst. No lock: each side first leaves its
        own mark (mail, `closed`, `_woken`), and then looks for the other's.
        """
        posted = self._posted
        if len(posted) >= INBOUND and not is_stop(sealed(mail)):
            bounce(sealed(mail), cell.path, INBOUND, self.dead_letters)
            return False
        posted.append((cell, mail))
        if self.closed:
            self._refuse_posted()
            return False
        if not self._woken:
            self._woken = True
            return self.call_from_thread(self._deliver_posted)
        return True

    def call_from_thread(self, callback: Callable[[], object]) -> bool:
        """Call on the loop's thread; False if the loop is closed."""
        try:
            self.loop.call_soon_threadsafe(callback, context=self.context)
        except RuntimeError:
            self.abandon()
            return False
        return True

    def _deliver_posted(self) -> None:
        self._woken = False
        posted = self._posted
        take = posted.popleft
        with suppress(IndexError):  # another thread may refuse what is left
            for _ in range(min(len(posted), INBOUND_BATCH)):
                cell, mail = take()
                cell.put(mail)
        if posted and not self._woken:
            self._woken = True
            self.loop.call_soon(self._deliver_posted, context=self.context)

    def close(self) -> None:
        """Refuse what still comes; nothing posted stays unanswered."""
        self.closed = True
        self._refuse_posted()

    def abandon(self) -> None:
        """Bury all: the loop was closed with the tree up, and runs nobody again."""
        with self._abandoning:
            self.close()
            for cell in self.directory.all():
                cell.bury(exits.shutdown("the loop was closed"))

    def _refuse_posted(self) -> None:
        with suppress(IndexError):  # whoever pops it, refuses it
            while True:
                cell, mail = self._posted.popleft()
                cell.refuse(mail, "the runtime stopped")

    def emit(self, cell: Runnable, event: Event, detail: str) -> None:
        if not self.observers:
            return
        happened = TraceEvent(
            self.clock.monotonic(), cell.path, cell.epoch, event, detail
        )
        for observe in self.observers:
            try:
                observe(happened)
            except Exception:  # looking on, it hurts nobody
                self.observers = tuple(o for o in self.observers if o != observe)
                log.exception("observer.removed", path=cell.path)
