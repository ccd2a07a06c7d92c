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
from trustfabric.domain.dispatch import DispatchSettings, Distrusted, remedy
from trustfabric.supervision import Address

BATCH = 100


@dataclass(frozen=True, slots=True)
class Staging:
    """Decides on quarantines; each is decided once."""

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
        return len(found) == BATCH

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
