"""The trust registry and its history: the statements, and the rows as values.

Only `actors/trust.py` calls the writing half. A batch is written with one statement,
which writes a row only at the version that was decided on; the history trigger
notifies. Writers take turns, in every runtime on the database, so that none waits for
a row while it holds another. The order of transaction ids, which is the order of the
streams, is also the order of an instance's versions, because whoever writes one read
the last before it had a transaction id: either way of reading sees to that.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, Protocol

import orjson
import psycopg

from trustfabric.db.session import Connection
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import (
    REASON_LIMIT,
    AttestationStatus,
    Change,
    Facts,
    Lifecycle,
    Snapshot,
    Tag,
)
from trustfabric.errors import InvalidError


class InstanceInsert(Protocol):
    """The insert of a new instance, which shares its commit with its first row."""

    async def write(self, conn: Connection) -> InstanceId:
        """Insert the instance and return its id."""
        ...


@dataclass(frozen=True, slots=True)
class Transition:
    """One decided change, ready to be saved."""

    before: Snapshot
    after: Snapshot
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class PostureFilter:
    """What a list or stream of postures is narrowed to; None means any."""

    owner_id: OwnerId | None = None
    server_id: ServerId | None = None
    lifecycle: Lifecycle | None = None
    status: AttestationStatus | None = None
    stale: bool | None = None


_SNAPSHOT_COLUMNS: LiteralString = """
    r.runtime_vm_instance_id AS instance_id, i.instance_id AS instance_name,
    i.server_id, s.name AS server_name, s.owner_id, r.attestation_status,
    r.lifecycle_state, r.remediation_state, r.remediation_attempts,
    r.freshness_deadline, r.provenance_ref, r.provenance, r.version, r.updated_at
"""

_TURN_SQL: LiteralString = """
SELECT set_config('idle_in_transaction_session_timeout', '2s', true),
       pg_advisory_xact_lock(hashtext('runtime_vm_trust_registry')),
       set_config('lock_timeout', '1s', true)
"""
"""A runtime that is frozen with the turn in its hand loses it, and the connection; one
that waits for a row keeps the others waiting no longer than this."""

_READ_SQL: LiteralString = (
    "SELECT"
    + _SNAPSHOT_COLUMNS
    + """,
       i.desired_state = 'running' AND i.terminated_at IS NULL AS is_running,
       (SELECT min(a.id) FROM runtime_vm_remediation_runs a
         WHERE a.runtime_vm_instance_id = r.runtime_vm_instance_id
           AND a.status IN ('pending', 'running')) AS active_run,
       (SELECT max(coalesce(e.completed_at, e.cancelled_at))
          FROM runtime_vm_remediation_runs e
         WHERE e.runtime_vm_instance_id = r.runtime_vm_instance_id
           AND e.status IN ('completed', 'failed', 'cancelled')) AS last_run_ended_at
  FROM unnest((SELECT %(ids)s::bigint[])) AS wanted (id)
  JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = wanted.id
  JOIN runtime_vm_instances i ON i.id = wanted.id
  JOIN servers s ON s.id = i.server_id
"""
)
"""Where a plan can't see how many ids there are, it is made once and kept."""

_LOCK_SQL: LiteralString = (
    _READ_SQL + " ORDER BY r.runtime_vm_instance_id FOR UPDATE OF r"
)

Rows = dict[InstanceId, tuple[Snapshot, Facts]]


async def read(conn: Connection, ids: Iterable[InstanceId]) -> Rows:
    """Read the rows of `ids`; a missing one is left out.

    What is decided on them may be saved in another transaction: every change of an
    instance's runs is one commit with a new version of its row, so that a decision on
    runs that are no more is one on a version that is no more.
    """
    cursor = await conn.execute(_READ_SQL, {"ids": list(ids)}, prepare=True)
    return _rows(await cursor.fetchall())


async def lock(conn: Connection, ids: Iterable[InstanceId]) -> Rows:
    """Read and lock the rows of `ids` in id order; a missing one is left out.

    First in its transaction: whoever waits here has no transaction id yet, and reads
    only afterwards, so it sees what it waited for, the runs included. No pipeline: it
    ends with a Flush, after which PostgreSQL no longer counts how long we are idle.
    """
    await conn.execute(_TURN_SQL)
    cursor = await conn.execute(_LOCK_SQL, {"ids": sorted(ids)}, prepare=True)
    return _rows(await cursor.fetchall())


def _rows(rows: Iterable[Sequence[Any]]) -> Rows:
    found: Rows = {}
    for *columns, running, active_run, last_run_ended_at in rows:
        snapshot = _snapshot(columns)
        found[snapshot.instance_id] = (
            snapshot,
            Facts(
                active_run=active_run,
                last_run_ended_at=last_run_ended_at,
                running=running,
            ),
        )
    return found


_SAVE_SQL: LiteralString = """
WITH turn AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtext('runtime_vm_trust_registry')),
           set_config('lock_timeout', '1s', true)
), change AS MATERIALIZED (
    SELECT t.* FROM turn, json_to_recordset(%(batch)s::json)
    AS t(instance_id bigint, read_version bigint, status text, lifecycle text,
         tag text, attempts int, deadline timestamptz, provenance_ref text,
         provenance jsonb, updated_at timestamptz, previous_status text,
         previous_lifecycle text, reason text, actor text, attestation_id bigint,
         metadata jsonb)
), saved AS (
    UPDATE runtime_vm_trust_registry r
       SET attestation_status = c.status, lifecycle_state = c.lifecycle,
           remediation_state = c.tag, remediation_attempts = c.attempts,
           freshness_deadline = c.deadline, provenance_ref = c.provenance_ref,
           provenance = c.provenance, version = r.version + 1,
           updated_at = c.updated_at
      FROM change c
     WHERE r.runtime_vm_instance_id = c.instance_id AND r.version = c.read_version
       AND r.lifecycle_state = c.previous_lifecycle
       AND r.attestation_status = c.previous_status
 RETURNING c.instance_id
), told AS (
    INSERT INTO runtime_vm_trust_history
           (runtime_vm_instance_id, attestation_id, previous_status, current_status,
            previous_lifecycle_state, current_lifecycle_state, transition_reason,
            remediation_state, remediation_attempts, freshness_deadline,
            provenance_ref, provenance, metadata, registry_version, actor,
            triggered_at)
    SELECT c.instance_id, c.attestation_id, c.previous_status, c.status,
           c.previous_lifecycle, c.lifecycle, c.reason, c.tag, c.attempts,
           c.deadline, c.provenance_ref, c.provenance, c.metadata,
           c.read_version + 1, c.actor, c.updated_at
      FROM change c JOIN saved s USING (instance_id)
     ORDER BY c.instance_id
)
SELECT instance_id FROM change EXCEPT SELECT instance_id FROM saved
"""


async def save(conn: Connection, batch: Sequence[Transition]) -> set[InstanceId]:
    """Write the batch and its history, but for the rows that others changed meanwhile.

    Those are returned: nothing was written of them. At most one transition for each
    instance.
    """
    with storable():
        rows = orjson.dumps([_record(move) for move in batch], default=dict).decode()
        cursor = await conn.execute(_SAVE_SQL, {"batch": rows}, prepare=True)
    return {InstanceId(row[0]) for row in await cursor.fetchall()}


@contextmanager
def storable() -> Iterator[None]:
    """Raise InvalidError for what PostgreSQL can't hold, NUL characters for one."""
    try:
        yield
    except (psycopg.DataError, orjson.JSONEncodeError, UnicodeEncodeError) as error:
        raise InvalidError(f"this can't be stored: {error}") from error


def _record(move: Transition) -> Mapping[str, Any]:
    before, after, change = move.before, move.after, move.change
    return {
        "instance_id": after.instance_id,
        "read_version": before.version,
        "status": after.attestation_status,
        "lifecycle": after.lifecycle,
        "tag": after.remediation_state,
        "attempts": after.remediation_attempts,
        "deadline": after.freshness_deadline,
        "provenance_ref": after.provenance_ref,
        "provenance": after.provenance,
        "updated_at": after.updated_at,
        "previous_status": before.attestation_status,
        "previous_lifecycle": before.lifecycle,
        "reason": change.reason[:REASON_LIMIT],
        "actor": change.actor,
        "attestation_id": change.attestation_id,
        "metadata": change.metadata,
    }


_OPEN_SQL: LiteralString = """
WITH opened AS (
    INSERT INTO runtime_vm_trust_registry
           (runtime_vm_instance_id, attestation_status, lifecycle_state,
            remediation_state, remediation_attempts, version, updated_at)
    VALUES (%(instance_id)s, 'pending', 'suspect', 'remediation:none', 0, 1, %(now)s)
 RETURNING runtime_vm_instance_id
)
INSERT INTO runtime_vm_trust_history
       (runtime_vm_instance_id, previous_status, current_status,
        previous_lifecycle_state, current_lifecycle_state, transition_reason,
        remediation_state, remediation_attempts, metadata, registry_version, actor,
        triggered_at)
SELECT runtime_vm_instance_id, NULL, 'pending', NULL, 'suspect', 'provisioned',
       'remediation:none', 0, '{}', 1, %(actor)s, %(now)s
  FROM opened
"""


async def open_row(
    conn: Connection, instance_id: InstanceId, actor: str, now: datetime
) -> None:
    """Give a new instance its registry row: suspect, pending, version 1."""
    await conn.execute(
        _OPEN_SQL, {"instance_id": instance_id, "actor": actor, "now": now}
    )


_POSTURE_SQL: LiteralString = (
    "SELECT"
    + _SNAPSHOT_COLUMNS
    + """
  FROM runtime_vm_trust_registry r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
 WHERE (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
"""
)

_LIST_SQL: LiteralString = (
    _POSTURE_SQL
    + """
   AND (%(server_id)s::bigint IS NULL OR i.server_id = %(server_id)s)
   AND (%(lifecycle)s::text IS NULL OR r.lifecycle_state = %(lifecycle)s)
   AND (%(status)s::text IS NULL OR r.attestation_status = %(status)s)
   AND (%(stale)s::boolean IS NOT TRUE OR r.freshness_deadline <= %(now)s)
   AND (%(stale)s::boolean IS NOT FALSE OR r.freshness_deadline IS NULL
        OR r.freshness_deadline > %(now)s)
   AND i.terminated_at IS NULL AND NOT r.ended
   AND r.runtime_vm_instance_id > %(after)s AND i.id > %(after)s
 ORDER BY r.runtime_vm_instance_id
 LIMIT %(limit)s
"""
)


async def list_postures(
    conn: Connection,
    wanted: PostureFilter,
    now: datetime,
    *,
    after: int = 0,
    limit: int = 100,
) -> list[Snapshot]:
    """Return the living instances' rows that match, by id, from beyond `after`."""
    cursor = await conn.execute(
        _LIST_SQL,
        {
            "owner_id": wanted.owner_id,
            "server_id": wanted.server_id,
            "lifecycle": wanted.lifecycle,
            "status": wanted.status,
            "stale": wanted.stale,
            "now": now,
            "after": after,
            "limit": limit,
        },
        prepare=False,  # planned for the filters that are given
    )
    return [_snapshot(row) for row in await cursor.fetchall()]


_GET_SQL: LiteralString = (
    _POSTURE_SQL + " AND r.runtime_vm_instance_id = %(instance_id)s"
)


async def get_posture(
    conn: Connection, owner_id: OwnerId | None, instance_id: InstanceId
) -> Snapshot | None:
    """Return one row; None where it isn't, or isn't this owner's."""
    cursor = await conn.execute(
        _GET_SQL, {"owner_id": owner_id, "instance_id": instance_id}
    )
    row = await cursor.fetchone()
    return None if row is None else _snapshot(row)


_DECAYED_SQL: LiteralString = """
SELECT r.runtime_vm_instance_id
  FROM runtime_vm_trust_registry r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
 WHERE r.freshness_deadline <= %(now)s
   AND r.lifecycle_state = 'restored'
   AND i.desired_state = 'running' AND i.terminated_at IS NULL AND NOT r.ended
 ORDER BY r.freshness_deadline
 LIMIT %(limit)s
"""


async def list_decayed(
    conn: Connection, now: datetime, *, limit: int
) -> list[InstanceId]:
    """Return running instances that are still `restored` past their deadline."""
    cursor = await conn.execute(_DECAYED_SQL, {"now": now, "limit": limit})
    return [InstanceId(row[0]) for row in await cursor.fetchall()]


def _snapshot(row: Sequence[Any]) -> Snapshot:
    instance_id, instance_name, server_id, server_name, owner_id, *values = row
    status, lifecycle, tag, attempts, *rest = values
    deadline, provenance_ref, provenance, version, updated_at = rest
    return Snapshot(
        instance_id=InstanceId(instance_id),
        instance_name=instance_name,
        server_id=ServerId(server_id),
        server_name=server_name,
        owner_id=OwnerId(owner_id),
        attestation_status=AttestationStatus(status),
        lifecycle=Lifecycle(lifecycle),
        remediation_state=Tag(tag),
        remediation_attempts=attempts,
        freshness_deadline=deadline,
        provenance_ref=provenance_ref,
        provenance=provenance,
        version=version,
        updated_at=updated_at,
    )
