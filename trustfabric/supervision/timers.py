"""Notices that come later, or when another actor is gone; none outlives its actor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from trustfabric.supervision import exits
from trustfabric.supervision.cell import Cell
from trustfabric.supervision.clock import Handle
from trustfabric.supervision.exits import Exit, ExitKind
from trustfabric.supervision.mailbox import Envelope
from trustfabric.supervision.messages import Notice
from trustfabric.supervision.states import NOBODY
from trustfabric.supervision.watchers import Watchers


class Timer:
    """A notice to its own actor once the delay has passed."""

    __slots__ = ("_cell", "_epoch", "_handle", "_notice")

    def __init__(
        self, cell: Cell, epoch: int, delay_s: float, notice: Notice[Any]
    ) -> None:
        self._cell = cell
        self._epoch = epoch
        self._notice = notice
        clock = cell.scheduler.clock
        self._handle: Handle = clock.call_at(clock.monotonic() + delay_s, self._fire)
        if cell.is_up(epoch):
            cell.own(self)

    def cancel(self) -> None:
        self._handle.cancel()
        self._cell.disown(self)

    def _fire(self) -> None:
        self._cell.disown(self)
        if self._cell.is_up(self._epoch):
            self._cell.put_system(Envelope(self._notice, epoch=self._epoch))


@dataclass(frozen=True, slots=True)
class Down:
    """The actor at `path` is gone for good; restarts are not Down."""

    path: str
    exit: Exit


OnDown: TypeAlias = Callable[[Down], Notice[Any]]


class Watch:
    """A notice, exactly once, when the watched actor is gone for good."""

    __slots__ = ("_cell", "_done", "_epoch", "_target")

    def __init__(self, cell: Cell, epoch: int, target: Cell, done: OnDown) -> None:
        self._cell = cell
        self._epoch = epoch
        self._target = target
        self._done = done
        if not cell.is_up(epoch):
            return
        cell.own(self)
        if target.state in NOBODY:
            self._fire(Exit(ExitKind.NORMAL, "not running"))
        else:
            if target.watchers is None:
                target.watchers = Watchers()
            target.watchers.add(self, self._fire)

    def cancel(self) -> None:
        if self._target.watchers is not None:
            self._target.watchers.remove(self)
        self._cell.disown(self)

    def _fire(self, exit_: Exit) -> None:
        self._cell.disown(self)
        if not self._cell.is_up(self._epoch):  # fell over another word of this end
            return
        try:
            notice = self._done(Down(self._target.path, exit_))
        except BaseException as error:  # noqa: BLE001  # a bug of the watcher
            self._cell.kill(exits.crashed(error, "watch"))
        else:
            self._cell.put_system(Envelope(notice, epoch=self._epoch))
