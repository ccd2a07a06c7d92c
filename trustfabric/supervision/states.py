"""The states of an actor's place in the tree.

NEW ─▶ WAITING ─▶ STARTING ─▶ RUNNING ─▶ STOPPING ─┐
          ▲           └───── DYING ◀───────┴───────┤
          └─ restart ──────────┴───────────────────┴─▶ DEAD
"""

from enum import StrEnum


class State(StrEnum):
    NEW = "new"
    """Not part of a running tree yet."""
    WAITING = "waiting"
    """For its turn to be started, or started again; mail is kept."""
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DYING = "dying"
    """Ended, but its coroutine, tasks or children have not all let go."""
    DEAD = "dead"
    """Not coming back, unless its supervisor does; mail is refused."""


ALIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING, State.DYING})
"""An incarnation exists."""
UP = ALIVE - {State.DYING}
"""An incarnation exists and has not fallen."""
NOBODY = frozenset({State.NEW, State.DEAD})
"""No incarnation exists or will."""

NEW, WAITING, STARTING, RUNNING, DEAD = (
    State.NEW,
    State.WAITING,
    State.STARTING,
    State.RUNNING,
    State.DEAD,
)  # looked up for every actor or message, which through the enum takes its time
