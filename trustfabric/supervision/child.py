"""One child in a supervisor's book: how it is started, stopped and started again."""

import math
from collections.abc import Callable
from typing import Any

from trustfabric.supervision import exits
from trustfabric.supervision.address import Place
from trustfabric.supervision.cell import Cell
from trustfabric.supervision.clock import Handle
from trustfabric.supervision.exits import Exit, ExitKind
from trustfabric.supervision.intensity import Intensity
from trustfabric.supervision.log import Log
from trustfabric.supervision.spec import Terms
from trustfabric.supervision.states import ALIVE, State

log = Log(__name__)

KEPT_RESTARTS = 20


class Child(Place):
    __slots__ = (
        "attempts", "booted", "budget", "gone", "terms", "timer", "up_since",
    )  # fmt: skip

    def __init__(self, cell: Cell, construct: Callable[[], Any], terms: Terms) -> None:
        self.cell = cell
        self.construct = construct
        self.terms = terms
        self.booted = False
        """Has been up once."""
        self.leaving = False
        self.gone = False
        """Is not to be started again."""
        self.budget: Intensity | None = None
        """Its own, under a supervisor of keyed children, once it has fallen."""
        self.attempts = 0
        self.up_since: float | None = None
        self.timer: Handle | None = None
        """Of the wait before its restart, or of the patience with its stop."""
        cell.grace_s = terms.shutdown_s

    @property
    def alive(self) -> bool:
        return self.cell.state in ALIVE

    @property
    def up(self) -> bool:
        return self.cell.state is State.RUNNING

    @property
    def waiting(self) -> bool:
        return self.timer is not None and not self.alive

    def start(self) -> None:
        if self.timer is not None:
            self.cancel_timer()
        self.cell.start(self.construct)

    def came_up(self) -> None:
        self.booted = True
        self.up_since = self.cell.since

    def went_down(self) -> None:
        self.cancel_timer()
        clock = self.cell.scheduler.clock
        if self.up_since is not None:
            if clock.monotonic() - self.up_since >= self.terms.backoff.reset_after_s:
                self.attempts = 0
            self.up_since = None

    def start_later(self, exit_: Exit, when_due: Callable[[], None]) -> float:
        """Count a restart and wait for its turn; return for how long."""
        scheduler = self.cell.scheduler
        at_once = self.attempts == 0
        delay_s = self.terms.backoff.delay_s(self.attempts, scheduler.random)
        self.attempts += 1
        restarts = [*(self.cell.restarts or ()), (scheduler.clock.now(), exit_.reason)]
        self.cell.restarts = restarts[-KEPT_RESTARTS:]
        self.cell.restart_count += 1
        scheduler.tally.restarts[exit_.kind] += 1
        if (
            not at_once
        ):  # by timer even if for no time: a loop of crashes lets others run
            self.timer = scheduler.clock.call_at(
                scheduler.clock.monotonic() + delay_s,
                lambda: self._due(when_due),
            )
        return delay_s

    def _due(self, when_due: Callable[[], None]) -> None:
        self.timer = None
        when_due()

    def stop(self) -> None:
        """Ask it to stop; by force once its patience is over. Down is reported."""
        if not self.alive or self.timer is not None:
            return
        if 0 < self.terms.shutdown_s < math.inf:
            clock = self.cell.scheduler.clock
            when = clock.monotonic() + self.terms.shutdown_s
            self.timer = clock.call_at(when, self.overrun)
        self.ask_to_stop()

    def ask_to_stop(self) -> None:
        """As `stop`, with somebody else's patience."""
        if self.terms.shutdown_s == 0:
            self.cell.kill(exits.killed("brutal kill"), 0.0)
        else:
            self.cell.request_stop(exits.shutdown())

    def overrun(self) -> None:
        self.cancel_timer()
        self.cell.kill(exits.killed("did not stop in time"), 0.0)

    def give_up(self, exit_: Exit) -> None:
        self.gone = True
        self.cancel_timer()
        self.cell.bury(exit_)

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def log_down(child: Child, exit_: Exit, then: str, restart_in_s: float | None) -> None:
    """Log a fall once, with what happens next; an orderly end is no news."""
    if exit_ is exits.taken_along():
        return
    if exit_.kind is ExitKind.CRASHED:
        log.error(
            "actor.crashed",
            path=child.cell.path,
            epoch=child.cell.epoch,
            reason=exit_.reason,
            message=exit_.message,
            then=then,
            restart_in_s=restart_in_s,
            exc_info=exit_.error,
        )
    elif exit_.kind is ExitKind.KILLED:
        log.warning(
            "actor.killed",
            path=child.cell.path,
            epoch=child.cell.epoch,
            reason=exit_.reason,
            then=then,
            restart_in_s=restart_in_s,
        )
