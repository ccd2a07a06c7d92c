"""Forgetting what is old, and remembering that it was forgotten.

Pruned are rows of the trust history that had a successor before the given time, and
the events of runs that are over. Of each instance there stay the row that held at
that time, whatever its age, and those of its last quarantine and last trusted
verdict, which later decisions read. The horizon moves in the same transaction: no
reader can find a row missing and not be told.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from trustfabric.db.session import Connection
from trustfabric.domain.events import Position

TRUST = "trust"
REMEDIATION = "remediation"

BATCH = 2000


@dataclass(frozen=True, slots=True)
class Horizon:
    """What of a stream was pruned."""

    position: Position
    """Of the newest row that was; whoever has seen it has missed nothing."""
    known_from: datetime
    """The state at this time and at any later one can still be told."""


_TURN_SQL: LiteralString = """
SELECT pg_try_advisory_xact_lock(hashtext('retention_horizons'))
"""

# All rows below `young` are older than `before`, though times need not ascend.
_PRUNE_TRUST_SQL: LiteralString = """
WITH young AS MATERIALIZED (
    (SELECT xid, id FROM runtime_vm_trust_history
      WHERE triggered_at >= %(before)s ORDER BY xid, id LIMIT 1)
     UNION ALL
    SELECT pg_snapshot_xmin(pg_current_snapshot()), 0
     ORDER BY xid, id LIMIT 1
), old AS (
    SELECT h.id, h.xid, n.triggered_at AS superseded_at
      FROM young, runtime_vm_trust_history h
      JOIN runtime_vm_trust_history n
        ON n.runtime_vm_instance_id = h.runtime_vm_instance_id
       AND n.registry_version = h.registry_version + 1
     WHERE (h.xid, h.id) < (young.xid, young.id)
       AND (n.xid, n.id) < (young.xid, young.id)
       AND (h.current_lifecycle_state <> 'quarantined'
            OR h.previous_lifecycle_state = 'quarantined'
            OR EXISTS (
               SELECT 1 FROM runtime_vm_trust_history q
                WHERE q.runtime_vm_instance_id = h.runtime_vm_instance_id
                  AND q.registry_version > h.registry_version
                  AND q.current_lifecycle_state = 'quarantined'
                  AND q.previous_lifecycle_state IS DISTINCT FROM 'quarantined'))
       AND (h.current_status <> 'trusted' OR h.attestation_id IS NULL
            OR EXISTS (
               SELECT 1 FROM runtime_vm_trust_history t
                WHERE t.runtime_vm_instance_id = h.runtime_vm_instance_id
                  AND t.registry_version > h.registry_version
                  AND t.current_status = 'trusted'
                  AND t.attestation_id IS NOT NULL))
     ORDER BY h.xid, h.id
     LIMIT %(limit)s
), gone AS (
    DELETE FROM runtime_vm_trust_history h USING old WHERE h.id = old.id
), horizon AS (
    INSERT INTO retention_horizons AS kept (stream, xid, row_id, known_from)
    SELECT 'trust', o.xid, o.id, (SELECT max(superseded_at) FROM old)
      FROM old o ORDER BY o.xid DESC, o.id DESC LIMIT 1
"""

_MOVE_SQL: LiteralString = """
        ON CONFLICT (stream) DO UPDATE
       SET (xid, row_id) = (
               SELECT p.xid, p.row_id
                 FROM (VALUES (kept.xid, kept.row_id), (excluded.xid, excluded.row_id))
                      AS p (xid, row_id)
                ORDER BY p.xid DESC, p.row_id DESC LIMIT 1),
           known_from = greatest(kept.known_from, excluded.known_from),
           pruned_at = now()
)
SELECT count(*) FROM old
"""

_PRUNE_RUNS_SQL: LiteralString = """
WITH old AS (
    SELECT e.id, e.xid, e.at
      FROM runtime_vm_remediation_events e
      JOIN runtime_vm_remediation_runs r ON r.id = e.run_id
     WHERE e.at < %(before)s AND r.status IN ('completed', 'failed', 'cancelled')
       AND coalesce(r.completed_at, r.cancelled_at) < %(before)s
       AND e.xid < pg_snapshot_xmin(pg_current_snapshot())
     ORDER BY e.xid, e.id
     LIMIT %(limit)s
), gone AS (
    DELETE FROM runtime_vm_remediation_events e USING old WHERE e.id = old.id
), horizon AS (
    INSERT INTO retention_horizons AS kept (stream, xid, row_id, known_from)
    SELECT 'remediation', o.xid, o.id, %(before)s
      FROM old o ORDER BY o.xid DESC, o.id DESC LIMIT 1
"""


async def prune(conn: Connection, before: datetime, *, limit: int = BATCH) -> int:
    """Delete up to `limit` rows of each stream from before that time; return how many.

    None: it is done, or another runtime is at it.
    """
    cursor = await conn.execute(_TURN_SQL)
    if (await cursor.fetchone()) != (True,):
        return 0
    parts = {"before": before, "limit": limit}
    deleted = 0
    for statement in (_PRUNE_TRUST_SQL + _MOVE_SQL, _PRUNE_RUNS_SQL + _MOVE_SQL):
        row = await (await conn.execute(statement, parts)).fetchone()
        assert row is not None
        deleted += row[0]
    return deleted


_HORIZON_SQL: LiteralString = """
SELECT xid::text, row_id, known_from FROM retention_horizons WHERE stream = %(stream)s
"""


async def read_horizon(conn: Connection, stream: str) -> Horizon | None:
    """Return what was pruned of a stream; None: nothing ever was."""
    cursor = await conn.execute(_HORIZON_SQL, {"stream": stream})
    row = await cursor.fetchone()
    return None if row is None else Horizon(Position(int(row[0]), row[1]), row[2])
