"""Which actor the code that runs right now belongs to."""

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trustfabric.supervision.cell import Cell


BIRTH: ContextVar["Cell | None"] = ContextVar("birth", default=None)
"""The cell that an actor constructed right now belongs to, unless it has one."""
CALLER: ContextVar["Cell | None"] = ContextVar("caller", default=None)
"""The cell whose mailbox stands still while this code waits."""
