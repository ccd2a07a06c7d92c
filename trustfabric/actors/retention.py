"""Retention: what is older than the settings say is forgotten, a batch at a time."""

from dataclasses import dataclass
from datetime import timedelta

import structlog

from trustfabric.db import retention
from trustfabric.db.session import Database
from trustfabric.errors import FabricError
from trustfabric.supervision import Actor, Notice

log = structlog.get_logger(__name__)

TICK_S = (1.0, 3600.0)
TICKS_PER_AGE = 10
PAUSE_S = 0.05
"""Between two batches: streams wait for a transaction that writes."""


@dataclass(frozen=True, slots=True)
class _Tick(Notice["Retention"]):
    pass


class Retention(Actor):
    """Prunes; of several runtimes on a database, whichever comes first does it."""

    def __init__(self, database: Database, age: timedelta | None) -> None:
        """`age` None: everything is kept for ever."""
        super().__init__()
        self._database = database
        self._age = age

    async def on_start(self) -> None:
        if self._age is not None:
            self.address.tell(_Tick())

    async def handle(self, message: _Tick) -> None:
        assert self._age is not None
        low, high = TICK_S
        pause_s = max(low, min(high, self._age.total_seconds() / TICKS_PER_AGE))
        try:
            async with self._database.writing() as conn:
                deleted = await retention.prune(conn, self.now() - self._age)
        except FabricError as error:
            log.warning("retention.failed", error=str(error))
        else:
            if deleted:
                log.info("retention.pruned", rows=deleted)
                pause_s = PAUSE_S
        self.after(pause_s, message)
