"""Who waits for whose answer: an ask that would wait for ever is found as it begins."""

from collections.abc import Generator
from typing import Any

from trustfabric.supervision.cell import Cell
from trustfabric.supervision.context import CALLER
from trustfabric.supervision.errors import ActorDeadError, AskCycleError
from trustfabric.supervision.future import ThreadFuture
from trustfabric.supervision.mailbox import Reply
from trustfabric.supervision.states import State


class Answer(ThreadFuture[Any]):
    """The future of an ask: an actor that awaits it waits for the asked one."""

    def __init__(self, asked: Cell | None = None) -> None:
        super().__init__()
        self._asked = asked

    def __await__(self) -> Generator[Any, None, Any]:
        asker, asked = CALLER.get(), self._asked
        if asked is None or asker is None or self.done() or not asker.scheduler.here:
            return (yield from super().__await__())
        begin_asking(asker, asked, self)
        try:
            return (yield from super().__await__())
        finally:
            asker.waits_no_more(self)

    __iter__ = __await__


def waits_for_stop_of(target: Cell, asker: Cell) -> bool:
    """Whether the target starts again only once the asker, its sibling, has stopped."""
    return (
        asker.stop_asked is not None
        and target.state is State.WAITING
        and target.parent is asker.parent
    )


def begin_asking(asker: Cell, target: Cell, reply: Reply) -> None:
    """Note down who waits for whom, unless it would be for ever."""
    if waits_for_stop_of(target, asker):
        raise ActorDeadError(f"{target.path}: starts again when its asker has stopped")
    chain = _chain(target, asker)
    if chain:
        names = " -> ".join(cell.path for cell in (asker, *chain))
        raise AskCycleError(f"{names}: each waits for the next")
    asker.waits_for(target, reply)


def _chain(start: Cell, goal: Cell) -> list[Cell]:
    """Return the way from one cell to another along what each waits for, if any.

    Each cell is looked at once, so this ends whatever the way. Who has its answer
    waits no longer, even if it has yet to take its turn.
    """
    came_from: dict[Cell, Cell | None] = {start: None}
    ahead = [start]
    while ahead:
        cell = ahead.pop()
        if cell is goal:
            return _way(cell, came_from)
        # a copy: collecting garbage may end an ask of a coroutine nobody has any more
        for reply, target in list((cell.asking or {}).items()):
            if target not in came_from and not reply.done():
                came_from[target] = cell
                ahead.append(target)
    return []


def _way(last: Cell, came_from: dict[Cell, Cell | None]) -> list[Cell]:
    way, cell = [last], came_from[last]
    while cell is not None:
        way.append(cell)
        cell = came_from[cell]
    return way[::-1]
