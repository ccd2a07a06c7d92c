"""What metrics read of the database: counts over indexes, never the fleet itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from trustfabric.db.session import Connection
from trustfabric.domain.events import Position
from trustfabric.domain.ids import InstanceId, RunId

_LIFECYCLES_SQL: LiteralString = """
SELECT r.lifecycle_state, count(*)
  FROM runtime_vm_trust_registry r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
 WHERE i.terminated_at IS NULL
 GROUP BY r.lifecycle_state
"""

_STATUSES_SQL: LiteralString = """
SELECT r.attestation_status, count(*)
  FROM runtime_vm_trust_registry r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
 WHERE i.terminated_at IS NULL
 GROUP BY r.attestation_status
"""

_SERVERS_SQL: LiteralString = """
SELECT status, count(*) FROM servers WHERE deleted_at IS NULL GROUP BY status
"""

_STALE_SQL: LiteralString = """
SELECT count(*)
  FROM runtime_vm_trust_registry r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
 WHERE r.freshness_deadline <= %(now)s AND NOT r.ended AND i.terminated_at IS NULL
   AND i.desired_state = 'running'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """How many there are of each; the terminated and the deleted don't count."""

    lifecycles: dict[str, int]
    statuses: dict[str, int]
    servers: dict[str, int]
    stale: int


async def read_fleet(conn: Connection, now: datetime) -> Fleet:
    """Count the fleet."""
    return Fleet(
        lifecycles=await _counts(conn, _LIFECYCLES_SQL),
        statuses=await _counts(conn, _STATUSES_SQL),
        servers=await _counts(conn, _SERVERS_SQL),
        stale=await _one(conn, _STALE_SQL, now),
    )


_QUEUE_SQL: LiteralString = """
SELECT CASE WHEN status = 'running' THEN 'running'
            WHEN approval_state = 'pending' THEN 'awaiting-approval'
            WHEN not_before > %(now)s THEN 'backing-off'
            ELSE 'ready' END AS stage,
       count(*), min(queued_at),
       count(*) FILTER (WHERE sla_deadline <= %(now)s)
  FROM runtime_vm_remediation_runs
 WHERE status IN ('pending', 'running')
 GROUP BY stage
"""

_REFRESHES_SQL: LiteralString = """
SELECT status, count(*),
       min(coalesce(not_before, created_at))
           FILTER (WHERE coalesce(not_before, created_at) <= %(now)s),
       0
  FROM evaluation_refresh_jobs
 WHERE status IN ('queued', 'claimed')
 GROUP BY status
"""

_HOLDS_SQL: LiteralString = """
SELECT scope, count(*) FROM trust_holds
 WHERE released_at IS NULL AND (until IS NULL OR until > %(now)s)
 GROUP BY scope
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """How many wait or are at work at one stage of a queue."""

    name: str
    count: int
    oldest: datetime | None
    """Since when the one has been there that was there first."""
    overdue: int
    """Those whose SLA deadline has passed."""


async def read_runs(conn: Connection, now: datetime) -> list[Stage]:
    """Return the stages of the remediation queue that anybody is at."""
    return await _stages(conn, _QUEUE_SQL, now)


async def read_refreshes(conn: Connection, now: datetime) -> list[Stage]:
    """Return the same of refreshes; the oldest is that which was due first."""
    return await _stages(conn, _REFRESHES_SQL, now)


async def read_holds(conn: Connection, now: datetime) -> dict[str, int]:
    """Return how many holds are in force, by scope."""
    cursor = await conn.execute(_HOLDS_SQL, {"now": now})
    return {row[0]: row[1] for row in await cursor.fetchall()}


_BREAKERS_SQL: LiteralString = """
SELECT scope, count(*) FROM remediation_incidents
 WHERE released_at IS NULL GROUP BY scope
"""


async def read_breakers(conn: Connection) -> dict[str, int]:
    """Return how many breakers are open, by scope."""
    cursor = await conn.execute(_BREAKERS_SQL)
    return {row[0]: row[1] for row in await cursor.fetchall()}


_TRUST_LAG_SQL: LiteralString = """
SELECT triggered_at FROM runtime_vm_trust_history
 WHERE (xid, id) > (%(xid)s::text::xid8, %(id)s)
 ORDER BY xid, id LIMIT 1
"""
_RUN_LAG_SQL: LiteralString = """
SELECT at FROM runtime_vm_remediation_events
 WHERE (xid, id) > (%(xid)s::text::xid8, %(id)s)
 ORDER BY xid, id LIMIT 1
"""


async def trust_waiting_since(conn: Connection, head: Position) -> datetime | None:
    """Return when the first transition beyond `head` was made; None: there is none."""
    return await _since(conn, _TRUST_LAG_SQL, head)


async def runs_waiting_since(conn: Connection, head: Position) -> datetime | None:
    """Return when the first event of a run beyond `head` was; None: there is none."""
    return await _since(conn, _RUN_LAG_SQL, head)


_LATE_SQL: LiteralString = """
SELECT count(*) FROM runtime_vm_remediation_runs
 WHERE id = ANY(%(ids)s) AND coalesce(completed_at, cancelled_at) > sla_deadline
"""


async def count_late(conn: Connection, ended: Sequence[RunId]) -> int:
    """Return how many of these runs ended after their SLA deadline."""
    cursor = await conn.execute(_LATE_SQL, {"ids": list(ended)})
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


_QUARANTINED_SQL: LiteralString = """
SELECT r.runtime_vm_instance_id, h.triggered_at
  FROM runtime_vm_trust_registry r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
 CROSS JOIN LATERAL (
       SELECT q.triggered_at FROM runtime_vm_trust_history q
        WHERE q.runtime_vm_instance_id = r.runtime_vm_instance_id
          AND q.current_lifecycle_state = 'quarantined'
          AND q.previous_lifecycle_state IS DISTINCT FROM 'quarantined'
        ORDER BY q.registry_version DESC LIMIT 1) h
 WHERE r.lifecycle_state IN ('quarantined', 'remediating')
   AND i.terminated_at IS NULL
 ORDER BY r.runtime_vm_instance_id DESC
 LIMIT %(limit)s
"""


async def list_quarantined(
    conn: Connection, *, limit: int
) -> dict[InstanceId, datetime]:
    """Return who is distrusted now, and since when."""
    cursor = await conn.execute(_QUARANTINED_SQL, {"limit": limit})
    return {InstanceId(row[0]): row[1] for row in await cursor.fetchall()}


async def _counts(conn: Connection, query: LiteralString) -> dict[str, int]:
    cursor = await conn.execute(query)
    return {row[0]: row[1] for row in await cursor.fetchall()}


async def _one(conn: Connection, query: LiteralString, now: datetime) -> int:
    row = await (await conn.execute(query, {"now": now})).fetchone()
    assert row is not None
    return int(row[0])


async def _stages(conn: Connection, query: LiteralString, now: datetime) -> list[Stage]:
    cursor = await conn.execute(query, {"now": now})
    return [Stage(*row) for row in await cursor.fetchall()]


async def _since(
    conn: Connection, query: LiteralString, head: Position
) -> datetime | None:
    cursor = await conn.execute(query, {"xid": str(head.xid), "id": head.id})
    row = await cursor.fetchone()
    return None if row is None else row[0]
