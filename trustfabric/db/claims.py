"""Claims: a ready run, taken under a lease; many are taken with one statement."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString

from trustfabric.db.companions import write_alone
from trustfabric.db.holds import Asked, find_held
from trustfabric.db.run_events import append
from trustfabric.db.runs import RUN_COLUMNS, change_runs
from trustfabric.db.session import Connection
from trustfabric.domain.ids import RunId
from trustfabric.domain.run_events import status_event
from trustfabric.domain.runs import RunStatus
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import ConflictError, FabricError

_CLAIM_SQL: LiteralString = (
    """
WITH wanted AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(batch)s::json)
        AS w(n int, id bigint, owner_id bigint, lease_owner text,
             until timestamptz, now timestamptz, owner_limit bigint)
), free AS MATERIALIZED (
    SELECT w.* FROM wanted w
      JOIN runtime_vm_remediation_runs r ON r.id = w.id
     WHERE r.status = 'pending' AND r.approval_state IN ('approved', 'auto-approved')
       AND (r.not_before IS NULL OR r.not_before <= w.now)
       FOR UPDATE OF r SKIP LOCKED
), busy AS MATERIALIZED (
    SELECT s.owner_id, count(*) AS runs FROM runtime_vm_remediation_runs o
      JOIN runtime_vm_instances i ON i.id = o.runtime_vm_instance_id
      JOIN servers s ON s.id = i.server_id
     WHERE o.status = 'running' AND s.owner_id IN (SELECT owner_id FROM wanted)
     GROUP BY s.owner_id
), mine AS MATERIALIZED (
    SELECT f.*, coalesce(b.runs, 0)
           + row_number() OVER (PARTITION BY f.owner_id ORDER BY f.n) AS place
      FROM free f LEFT JOIN busy b USING (owner_id)
)
UPDATE runtime_vm_remediation_runs r
   SET status = 'running', started_at = coalesce(r.started_at, m.now),
       lease_owner = m.lease_owner, lease_epoch = r.lease_epoch + 1,
       lease_expires_at = m.until, attempt = r.attempt + 1, not_before = NULL,
       failure_reason = NULL, version = r.version + 1, updated_at = m.now
  FROM mine m, runtime_vm_instances i, servers s
 WHERE r.id = m.id AND (m.owner_limit IS NULL OR m.place <= m.owner_limit)
   AND i.id = r.runtime_vm_instance_id AND s.id = i.server_id
RETURNING
"""
    + RUN_COLUMNS
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRun:
    """Take a ready run under a lease; ConflictError where somebody else did.

    HeldError where it is held. What it returns is the lease's epoch, which fences all
    that is done under it.
    """

    run_id: RunId
    lease_owner: str
    lease_s: float
    now: datetime
    owner_limit: int | None = None
    """How many runs of the instance's owner may be under way, this one included.

    Exact over all runtimes, since the registry's writers take turns.
    """

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        return await write_alone(conn, self, before)

    @staticmethod
    async def write_all(
        conn: Connection, batch: Sequence[tuple["ClaimRun", Snapshot]]
    ) -> list[int | FabricError]:
        held = await find_held(
            conn, [Asked(before, one.now, one.run_id) for one, before in batch]
        )
        wanted = [
            {
                "n": n,
                "id": one.run_id,
                "owner_id": before.owner_id,
                "lease_owner": one.lease_owner,
                "until": one.now + timedelta(seconds=one.lease_s),
                "now": one.now,
                "owner_limit": one.owner_limit,
            }
            for n, (one, before) in enumerate(batch)
            if before.instance_id not in held
        ]
        claimed = await change_runs(conn, _CLAIM_SQL, wanted)
        await append(
            conn,
            (
                (run, [status_event(run, "started", one.now, was=RunStatus.PENDING)])
                for one, _ in batch
                if (run := claimed.get(one.run_id)) is not None
            ),
        )
        return [
            claimed[one.run_id].lease_epoch
            if one.run_id in claimed
            else held.get(before.instance_id)
            or ConflictError(f"run {one.run_id} is not there to be claimed")
            for one, before in batch
        ]
