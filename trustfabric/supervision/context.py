"""Which actor the code that runs right now belongs to."""

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trustfabric.supervision.cell import Cell


class Birth(threading.local):
    """The cell that an actor constructed right now, on this thread, belongs to."""

    cell: "Cell | None" = None


BIRTH = Birth()
CALLER: ContextVar["Cell | None"] = ContextVar("caller", default=None)
"""The cell whose mailbox stands still while this code waits."""
