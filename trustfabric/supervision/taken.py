"""Requests taken along with the one in hand, to be handled together."""

from typing import Generic, TypeVar

from trustfabric.supervision.cell import Cell
from trustfabric.supervision.mailbox import Envelope
from trustfabric.supervision.undelivered import cut_short, out_of_time

M = TypeVar("M")


class Taken(Generic[M]):
    """A request in hand: whoever took it answers it, or the actor's end does."""

    __slots__ = ("_cell", "_envelope", "message")

    def __init__(self, cell: Cell, envelope: Envelope) -> None:
        self.message: M = envelope.message
        self._cell = cell
        self._envelope = envelope
        cell.own(self)

    def answer(self, value: object) -> None:
        """Give its asker the answer."""
        self._cell.disown(self)
        if self._envelope.reply is not None:
            self._envelope.reply.resolve(value)

    def refuse(self, error: BaseException) -> None:
        """Raise `error` at its asker."""
        self._cell.disown(self)
        if self._envelope.reply is not None:
            self._envelope.reply.reject(error)

    def cancel(self) -> None:
        """Tell its asker that nobody will answer: the incarnation ends."""
        cut_short(self._envelope, self._cell.path, self._cell.doom)


def take(cell: Cell, epoch: int, kind: type[M], limit: int) -> list[Taken[M]]:
    """Take requests of one kind off the front of the mailbox, up to `limit`.

    The first of another kind ends it, so that the order of mail is kept. Requests
    that nobody waits for any more are skipped.
    """
    if not cell.is_up(epoch):
        return []
    cell.gathers = True
    taken: list[Taken[M]] = []
    while len(taken) < limit:
        envelope = cell.peek()
        if envelope.__class__ is not Envelope or envelope.reply is None:
            break
        if not isinstance(envelope.message, kind):
            break
        cell.take()
        if envelope.is_late(cell.scheduler.clock.monotonic, cell.epoch):
            cell.scheduler.tally.skipped += 1
            out_of_time(envelope, cell.path)
        else:
            taken.append(Taken(cell, envelope))
    return taken
