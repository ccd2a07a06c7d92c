"""Claims: gives ready runs to actors of this runtime, a fair share to each owner.

A chore of the Dispatcher. Who is first with the row has the run (SKIP LOCKED in
`db/claims.py`); what is read here only chooses what to reach for.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from trustfabric.actors.orders import Desk, settled
from trustfabric.db import dispatch
from trustfabric.db.claims import ClaimRun
from trustfabric.domain.dispatch import DispatchSettings, pick
from trustfabric.domain.ids import RunId
from trustfabric.domain.runs import Run
from trustfabric.domain.trust import Change, Signal

BATCH = 100


@dataclass(frozen=True, slots=True)
class Claims:
    """Takes what is ready under this runtime's leases."""

    desk: Desk
    settings: DispatchSettings
    lease_s: float
    start: Callable[[RunId, int], Awaitable[None]]
    """Starts a run's actor under the lease of that epoch."""

    async def claim(self, now: datetime) -> datetime | None:
        """Start what there is room for; return when the next retry becomes ready."""
        per_owner = self.settings.owner_concurrency
        async with self.desk.database.reading() as conn:
            busy = await dispatch.count_running(conn, self.settings.runtime_id)
            free, counts = self.settings.concurrency - busy.mine, busy.by_owner.items()
            ready = (
                []
                if free <= 0
                else await dispatch.list_ready(
                    conn,
                    now,
                    per_owner=per_owner,
                    limit=BATCH,
                    full=[owner for owner, count in counts if count >= per_owner],
                )
            )
            retry_at = await dispatch.next_retry(conn, now)
        chosen = pick(ready, busy.by_owner, free=free, per_owner=per_owner)
        # Asked for together, they are claimed together, by one statement.
        await asyncio.gather(*(settled(self._start(run, now)) for run in chosen))
        return retry_at

    async def _start(self, run: Run, now: datetime) -> None:
        applied = await self.desk.apply(
            run.instance_id,
            Change(
                # A retry goes on with the run that was counted when it started.
                signal=Signal.RUN_RESUMED if run.attempt else Signal.RUN_STARTED,
                actor=f"run:{run.id}",
                reason=f"run {run.id} of playbook {run.playbook} started",
                metadata={"run_id": run.id},
            ),
            ClaimRun(
                run_id=run.id,
                lease_owner=self.settings.runtime_id,
                lease_s=self.lease_s,
                now=now,
                owner_limit=self.settings.owner_concurrency,
            ),
        )
        (epoch,) = applied.written
        assert epoch is not None
        await self.start(run.id, epoch)
