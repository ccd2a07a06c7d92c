"""What the dispatcher looks for: distrust without a run, and runs without progress."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString

from psycopg.rows import dict_row

from trustfabric.db.runs import RUN_COLUMNS, RUN_TABLES, read_run
from trustfabric.db.session import Connection
from trustfabric.domain.dispatch import Distrusted
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.run_events import begins
from trustfabric.domain.runs import Run

_DISTRUSTED_SQL: LiteralString = """
SELECT r.runtime_vm_instance_id AS instance_id, s.owner_id, r.version,
       r.remediation_attempts AS attempts, q.history_id, q.reason,
       o.held, a.id AS active_run,
       coalesce(a.approval_state = 'pending', false) AS active_run_waits
  FROM runtime_vm_trust_registry r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
  LEFT JOIN runtime_vm_remediation_runs a
         ON a.runtime_vm_instance_id = i.id AND a.status IN ('pending', 'running')
 CROSS JOIN LATERAL (
       SELECT h.id AS history_id, h.transition_reason AS reason,
              h.remediation_state, h.metadata
         FROM runtime_vm_trust_history h
        WHERE h.runtime_vm_instance_id = i.id
          AND h.current_lifecycle_state = 'quarantined'
          AND h.previous_lifecycle_state IS DISTINCT FROM 'quarantined'
        ORDER BY h.registry_version DESC LIMIT 1) q
 CROSS JOIN LATERAL (
       SELECT count(*) > 0 AS held FROM trust_holds n
        WHERE n.released_at IS NULL AND (n.until IS NULL OR n.until > %(now)s)
          AND (n.scope = 'all' OR n.owner_id = s.owner_id
               OR n.runtime_vm_instance_id = i.id)) o
 WHERE r.lifecycle_state = 'quarantined' AND i.terminated_at IS NULL
   AND NOT coalesce(q.metadata ? 'run_id', false)
   AND q.remediation_state <> 'remediation:unverified'
   AND r.remediation_state NOT IN (
       'remediation:no-playbook', 'remediation:attempts-exhausted')
   AND NOT (o.held AND r.remediation_state = 'remediation:held')
   AND NOT (r.remediation_state = 'remediation:held' AND EXISTS (
       SELECT 1 FROM trust_holds n
        WHERE n.scope = 'all' AND n.released_at IS NULL
          AND (n.until IS NULL OR n.until > %(now)s)))
 ORDER BY r.runtime_vm_instance_id
 LIMIT %(limit)s
"""


async def list_distrusted(
    conn: Connection, now: datetime, *, limit: int
) -> list[Distrusted]:
    """Return quarantines by verdict or by hand that nothing was decided about.

    One that the end of a run made carries the run's id in its metadata, and waits
    for a person; so does one noted to have no playbook, no attempts left or a hold.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_DISTRUSTED_SQL, {"now": now, "limit": limit})
        return [Distrusted(**row) for row in await cursor.fetchall()]


_IS_HELD: LiteralString = """
       EXISTS (SELECT 1 FROM trust_holds o
        WHERE o.released_at IS NULL AND (o.until IS NULL OR o.until > %(now)s)
          AND (o.scope = 'all' OR o.owner_id = s.owner_id
               OR o.runtime_vm_instance_id = i.id)
          AND (o.incident_id IS NULL OR r.requested_by = 'actor:dispatcher'
               AND (r.approval_decided_at < o.created_at) IS NOT FALSE))
"""
"""A person's hold covers the run; or the breaker's, and nobody asked for the run."""

_READY_SQL: LiteralString = (
    "SELECT * FROM (SELECT"
    + RUN_COLUMNS
    + """,
       row_number() OVER (PARTITION BY s.owner_id
           ORDER BY r.sla_deadline NULLS LAST, r.priority, r.id) AS turn
"""
    + RUN_TABLES
    + """
 WHERE r.status = 'pending' AND r.approval_state IN ('approved', 'auto-approved')
   AND (r.not_before IS NULL OR r.not_before <= %(now)s)
   AND s.owner_id <> ALL (%(full)s::bigint[])
   AND NOT"""
    + _IS_HELD
    + """) ready
 WHERE turn <= %(per_owner)s
 ORDER BY sla_deadline NULLS LAST, priority, id
 LIMIT %(limit)s
"""
)


async def list_ready(
    conn: Connection,
    now: datetime,
    *,
    per_owner: int,
    limit: int,
    full: Collection[OwnerId] = (),
) -> list[Run]:
    """Return runs that may start, in order, a few of each owner.

    Nothing of owners who are `full`: what can't start must not hide what can.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _READY_SQL,
            {"now": now, "per_owner": per_owner, "limit": limit, "full": list(full)},
        )
        rows = await cursor.fetchall()
    return [
        read_run({name: row[name] for name in row if name != "turn"}) for row in rows
    ]


_MISTAGGED_SQL: LiteralString = (
    "SELECT w.instance_id, w.version, w.held FROM (SELECT"
    + _IS_HELD
    + """ AS held, i.id AS instance_id, g.version, g.remediation_state
  FROM runtime_vm_remediation_runs r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
  JOIN runtime_vm_trust_registry g ON g.runtime_vm_instance_id = i.id
 WHERE r.status = 'pending' AND r.approval_state IN ('approved', 'auto-approved')
   AND (g.remediation_state = 'remediation:held'
        OR g.remediation_state = 'remediation:awaiting-executor' AND EXISTS (
           SELECT 1 FROM trust_holds o WHERE o.released_at IS NULL
              AND (o.until IS NULL OR o.until > %(now)s)))
) w
 WHERE w.held <> (w.remediation_state = 'remediation:held')
 ORDER BY w.instance_id
 LIMIT %(limit)s
"""
)


@dataclass(frozen=True, slots=True)
class Mistagged:
    """An instance whose tag is wrong on whether its waiting run is held."""

    instance_id: InstanceId
    version: int
    held: bool


async def list_mistagged(
    conn: Connection, now: datetime, *, limit: int
) -> list[Mistagged]:
    """Return where a hold began or ended over a run that waits for its turn."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_MISTAGGED_SQL, {"now": now, "limit": limit})
        return [Mistagged(**row) for row in await cursor.fetchall()]


_LEASES_SQL: LiteralString = """
SELECT id, lease_owner = %(runtime_id)s, lease_expires_at <= %(now)s
  FROM runtime_vm_remediation_runs
 WHERE status = 'running'
   AND (lease_owner = %(runtime_id)s OR lease_expires_at <= %(now)s)
 ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that a runtime has to look at: its own, or one that has run out."""

    run_id: RunId
    is_mine: bool
    is_over: bool


async def list_leases(conn: Connection, runtime_id: str, now: datetime) -> list[Lease]:
    """Return this runtime's leases, and everybody's that have run out."""
    cursor = await conn.execute(_LEASES_SQL, {"runtime_id": runtime_id, "now": now})
    return [Lease(RunId(row[0]), row[1], row[2]) for row in await cursor.fetchall()]


_BUSY_SQL: LiteralString = """
SELECT s.owner_id, count(*), count(*) FILTER (WHERE r.lease_owner = %(runtime_id)s)
  FROM runtime_vm_remediation_runs r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
 WHERE r.status = 'running'
 GROUP BY s.owner_id
"""


@dataclass(frozen=True, slots=True)
class Busy:
    """How many runs are under way."""

    by_owner: Mapping[OwnerId, int]
    """In all runtimes."""
    mine: int
    """In this one."""


async def count_running(conn: Connection, runtime_id: str) -> Busy:
    """Count the runs under a lease, for the limits."""
    cursor = await conn.execute(_BUSY_SQL, {"runtime_id": runtime_id})
    rows = await cursor.fetchall()
    return Busy(
        {OwnerId(owner): count for owner, count, _ in rows},
        sum(mine for _, _, mine in rows),
    )


_BEGUN_SQL: LiteralString = """
SELECT EXISTS (SELECT 1 FROM runtime_vm_remediation_events
                WHERE run_id = %(run_id)s AND kind = 'log' AND stream = 'system'
                  AND message = %(begins)s)
"""


async def has_begun(conn: Connection, run: Run) -> bool:
    """Whether the program of a run's present attempt may have been started."""
    cursor = await conn.execute(
        _BEGUN_SQL, {"run_id": run.id, "begins": begins(run.attempt)}
    )
    row = await cursor.fetchone()
    assert row is not None
    return bool(row[0])


_NEXT_SQL: LiteralString = """
SELECT min(not_before) FROM runtime_vm_remediation_runs
 WHERE status = 'pending' AND approval_state IN ('approved', 'auto-approved')
   AND not_before > %(now)s
"""


async def next_retry(conn: Connection, now: datetime) -> datetime | None:
    """Return when the next run that waits for its retry becomes ready."""
    cursor = await conn.execute(_NEXT_SQL, {"now": now})
    row = await cursor.fetchone()
    return None if row is None else row[0]


_OVERDUE_SQL: LiteralString = (
    "SELECT"
    + RUN_COLUMNS
    + RUN_TABLES
    + """
 WHERE r.status = 'pending'
   AND CASE r.approval_state
       WHEN 'pending' THEN r.queued_at <= %(asked_before)s
       ELSE r.attempt = 0
            AND coalesce(r.approval_decided_at, r.queued_at) <= %(queued_before)s
            AND NOT EXISTS (SELECT 1 FROM trust_holds o
                 WHERE (o.scope = 'all' OR o.owner_id = s.owner_id
                        OR o.runtime_vm_instance_id = i.id)
                   AND coalesce(o.released_at, o.until, 'infinity')
                       > %(queued_before)s) END
 ORDER BY r.id
 LIMIT %(limit)s
"""
)


async def list_overdue(
    conn: Connection,
    now: datetime,
    *,
    approval_ttl_s: float,
    queue_ttl_s: float,
    limit: int,
) -> list[Run]:
    """Return runs that waited too long for a person, or for their first turn.

    What was held waits for its turn from the end of the hold on.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _OVERDUE_SQL,
            {
                "asked_before": now - timedelta(seconds=approval_ttl_s),
                "queued_before": now - timedelta(seconds=queue_ttl_s),
                "limit": limit,
            },
        )
        return [read_run(row) for row in await cursor.fetchall()]


_MENDED_SQL: LiteralString = (
    "SELECT"
    + RUN_COLUMNS
    + RUN_TABLES
    + """
  JOIN runtime_vm_trust_registry g ON g.runtime_vm_instance_id = i.id
 WHERE r.status = 'pending' AND r.attempt = 0 AND g.attestation_status = 'trusted'
   AND (%(ids)s::bigint[] IS NULL OR r.runtime_vm_instance_id = ANY (%(ids)s))
   AND EXISTS (SELECT 1 FROM runtime_vm_trust_history h
        WHERE h.runtime_vm_instance_id = i.id AND h.previous_status = 'untrusted'
          AND h.current_status = 'trusted' AND h.triggered_at > r.queued_at)
 ORDER BY r.id
 LIMIT %(limit)s
"""
)


async def list_mended(
    conn: Connection, among: Collection[InstanceId] | None, *, limit: int
) -> list[Run]:
    """Return waiting runs whose instance was found trusted since they began to wait.

    Only where it was untrusted before: evidence that was never bad mends nothing, and
    a person may want the run all the same. A run that waits for its next attempt has
    begun: what it left half done, it shall end. `among` None: of all instances.
    """
    ids = None if among is None else list(among)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_MENDED_SQL, {"ids": ids, "limit": limit})
        return [read_run(row) for row in await cursor.fetchall()]


_FORSAKEN_SQL: LiteralString = (
    "SELECT"
    + RUN_COLUMNS
    + RUN_TABLES
    + """
  JOIN runtime_vm_trust_registry g ON g.runtime_vm_instance_id = i.id
 WHERE r.status = 'pending' AND g.ended
 ORDER BY r.id
 LIMIT %(limit)s
"""
)


async def list_forsaken(conn: Connection, *, limit: int) -> list[Run]:
    """Return waiting runs whose instance is terminated."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_FORSAKEN_SQL, {"limit": limit})
        return [read_run(row) for row in await cursor.fetchall()]


_BREACHED_SQL: LiteralString = """
SELECT r.id FROM runtime_vm_remediation_runs r
 WHERE r.status IN ('pending', 'running') AND r.sla_breached_at IS NULL
   AND r.sla_deadline <= %(now)s
 ORDER BY r.sla_deadline
 LIMIT %(limit)s
"""


async def list_breached(conn: Connection, now: datetime, *, limit: int) -> list[RunId]:
    """Return active runs past their SLA deadline whose events don't say so yet."""
    cursor = await conn.execute(_BREACHED_SQL, {"now": now, "limit": limit})
    return [RunId(row[0]) for row in await cursor.fetchall()]


_UNVERIFIED_SQL: LiteralString = """
SELECT r.runtime_vm_instance_id
  FROM runtime_vm_trust_registry r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
 WHERE r.lifecycle_state = 'remediating' AND i.terminated_at IS NULL
   AND NOT EXISTS (SELECT 1 FROM runtime_vm_remediation_runs a
        WHERE a.runtime_vm_instance_id = i.id AND a.status IN ('pending', 'running'))
   AND NOT EXISTS (SELECT 1 FROM attestation_challenges c
        WHERE c.runtime_vm_instance_id = i.id AND c.issued_at > %(asked_since)s)
 ORDER BY r.runtime_vm_instance_id
 LIMIT %(limit)s
"""


async def list_unverified(
    conn: Connection, asked_since: datetime, *, limit: int
) -> list[InstanceId]:
    """Return instances whose run is over, and that were not challenged since then."""
    cursor = await conn.execute(
        _UNVERIFIED_SQL, {"asked_since": asked_since, "limit": limit}
    )
    return [InstanceId(row[0]) for row in await cursor.fetchall()]
