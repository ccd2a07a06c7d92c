"""Staging: what is distrusted gets its owner's playbook, or the note why it gets none.

A chore of the Dispatcher, like `claims.py` and `upkeep.py`.
"""

from dataclasses import dataclass
from datetime import datetime

from trustfabric.actors.holds import Holds, LookOut
from trustfabric.actors.orders import ASK_S, Desk, settled
from trustfabric.db import dispatch, playbooks
from trustfabric.db.holds import RefuseIfHeld
from trustfabric.db.run_writes import InsertRun
from trustfabric.domain.dispatch import (
    DispatchSettings,
    Distrusted,
    held_no_longer,
    held_note,
    remedy,
)
from trustfabric.supervision import Address

BATCH = 100


@dataclass(frozen=True, slots=True)
class Staging:
    """Decides on quarantines; each is decided once, and whether its run is held."""

    desk: Desk
    holds: Address[Holds]
    settings: DispatchSettings

    async def stage(self, now: datetime) -> bool:
        """Decide on a batch of them; whether there may be more to do at once."""
        async with self.desk.database.reading() as conn:
            found = await dispatch.list_distrusted(conn, now, limit=BATCH)
        # After that list, so that all of it was counted before any of it is staged.
        if bool(found) and await self.holds.ask(LookOut(), within_s=ASK_S):
            return True
        for one in found:
            await settled(self._decide(one, now))
        return await self._tag_held(now) or len(found) == BATCH

    async def _tag_held(self, now: datetime) -> bool:
        """Say of runs that wait for their turn that they are held, or no longer."""
        async with self.desk.database.reading() as conn:
            found = await dispatch.list_mistagged(conn, now, limit=BATCH)
        for one in found:
            await settled(self._tag(one))
        return len(found) == BATCH

    async def _tag(self, one: dispatch.Mistagged) -> None:
        change = held_note() if one.held else held_no_longer()
        await self.desk.apply(one.instance_id, change, expected_version=one.version)

    async def _decide(self, found: Distrusted, now: datetime) -> None:
        async with self.desk.database.reading() as conn:
            playbook = await playbooks.find_playbook(
                conn, found.owner_id, self.settings.default_playbook
            )
        decided = remedy(
            found, playbook, max_attempts=self.settings.max_attempts, now=now
        )
        await self.desk.apply(
            found.instance_id,
            decided.change,
            *(
                ()
                if decided.run is None
                else (RefuseIfHeld(now=now), InsertRun(decided.run))
            ),
            expected_version=found.version,
        )
