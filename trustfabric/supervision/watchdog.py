"""Names the actor that holds the event loop, while it does."""

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from functools import partial

from trustfabric.supervision.log import Log
from trustfabric.supervision.scheduler import Scheduler
from trustfabric.supervision.tally import Lag

log = Log(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """One time the loop was held."""

    path: str
    """The actor's, or the name of the asyncio task that is none of ours."""
    stack: tuple[str, ...]
    """Where it was when it was caught, outermost first."""


class Watchdog:
    """A thread that wants a sign of life from the loop every `limit_s`."""

    def __init__(self, scheduler: Scheduler, limit_s: float) -> None:
        self._scheduler = scheduler
        self._limit_s = limit_s
        self._loop_thread = threading.get_ident()
        self._sign = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="supervision-watchdog", daemon=True
        )
        self.total = 0
        self.lag = Lag()
        self.held: deque[Held] = deque(maxlen=20)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._sign.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._limit_s / 2):
            self._sign.clear()
            asked = time.monotonic()
            if not self._scheduler.call_from_thread(partial(self._give_sign, asked)):
                return
            if self._sign.wait(self._limit_s) or self._over:
                continue
            self._blame()
            while not self._sign.wait(self._limit_s) and not self._over:
                pass

    @property
    def _over(self) -> bool:
        return self._stopped.is_set() or self._scheduler.loop.is_closed()

    def _give_sign(self, asked: float) -> None:
        self.lag.add(time.monotonic() - asked)
        self._sign.set()

    def _blame(self) -> None:
        held = Held(self._who(), self._stack())
        self.total += 1
        self.held.append(held)
        log.warning(
            "loop.held", path=held.path, limit_s=self._limit_s, where=held.stack
        )

    def _who(self) -> str:
        running = self._scheduler.running
        if running is not None:
            return running.path
        task = asyncio.current_task(self._scheduler.loop)
        return "" if task is None else task.get_name()

    def _stack(self) -> tuple[str, ...]:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001
        lines = traceback.format_stack(frame)[-8:] if frame is not None else []
        return tuple(line.strip() for line in lines)
