"""The tree as it stands: one line for each actor."""

from dataclasses import dataclass
from datetime import datetime

from trustfabric.supervision.cell import Cell
from trustfabric.supervision.mailbox import sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartReport:
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorReport:
    path: str
    kind: str
    """The class of the actor; empty while no incarnation is up."""
    state: str
    """As `cell.State`; "suspended" while only system mail is handled."""
    epoch: int
    """How many incarnations there have been."""
    restart_count: int
    restarts: tuple[RestartReport, ...]
    """The newest of them, oldest first."""
    depth: int
    """Messages waiting."""
    current: str | None
    """The type of the message in hand."""
    current_age_s: float | None
    waiting_on: tuple[str, ...]
    """Whose answers the message in hand waits for."""


def describe(cell: Cell) -> ActorReport:
    current = cell.current
    age_s = cell.scheduler.clock.monotonic() - cell.since
    restarts = cell.restarts or ()
    return ActorReport(
        path=cell.path,
        kind=type(cell.actor).__name__ if cell.actor is not None else "",
        state="suspended" if cell.suspended else cell.state.value,
        epoch=cell.epoch,
        restart_count=cell.restart_count,
        restarts=tuple(RestartReport(at=at, reason=why) for at, why in restarts),
        depth=cell.depth,
        current=None if current is None else type(sealed(current).message).__name__,
        current_age_s=None if current is None else age_s,
        waiting_on=tuple(target.path for target in (cell.asking or {}).values()),
    )
