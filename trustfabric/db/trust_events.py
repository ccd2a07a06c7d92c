"""The trust history: what happened to one instance, and to all from a position on."""

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

import orjson
from psycopg.rows import dict_row

from trustfabric.db.positions import AFTER, rows_after
from trustfabric.db.session import Connection
from trustfabric.db.trust import Transition
from trustfabric.domain.events import Position, TrustEvent
from trustfabric.domain.ids import HistoryId, InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import REASON_LIMIT, AttestationStatus, Lifecycle, Tag

_EVENT_SQL: LiteralString = """
SELECT e.id AS history_id, e.xid::text AS xid,
       e.runtime_vm_instance_id AS instance_id, i.instance_id AS instance_name,
       i.server_id, s.name AS server_name, s.owner_id, e.previous_status,
       e.current_status, e.previous_lifecycle_state, e.current_lifecycle_state,
       e.transition_reason, e.remediation_state, e.remediation_attempts,
       e.freshness_deadline, e.provenance_ref, e.provenance, e.registry_version,
       e.actor, e.attestation_id, e.metadata, e.triggered_at
  FROM runtime_vm_trust_history e
  JOIN runtime_vm_instances i ON i.id = e.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
"""

_HISTORY_SQL: LiteralString = (
    _EVENT_SQL
    + """
 WHERE e.runtime_vm_instance_id = %(instance_id)s
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
   AND e.id < %(before)s
 ORDER BY e.id DESC
 LIMIT %(limit)s
"""
)


async def list_history(
    conn: Connection,
    owner_id: OwnerId | None,
    instance_id: InstanceId,
    *,
    before: int = 2**62,
    limit: int = 25,
) -> list[TrustEvent]:
    """Return an instance's transitions, newest first, older than id `before`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _HISTORY_SQL,
            {
                "instance_id": instance_id,
                "owner_id": owner_id,
                "before": before,
                "limit": limit,
            },
        )
        return [_event(row) for row in await cursor.fetchall()]


_AFTER_SQL: LiteralString = _EVENT_SQL + AFTER


async def events_after(
    conn: Connection, position: Position, *, upto: Position | None = None, limit: int
) -> list[TrustEvent]:
    """Return what was committed after `position`, in order, none ever skipped."""
    rows = await rows_after(conn, _AFTER_SQL, position, upto=upto, limit=limit)
    return [_event(row) for row in rows]


_RECORDED_SQL: LiteralString = """
SELECT h.runtime_vm_instance_id
  FROM json_to_recordset(%(moves)s::json)
    AS m(instance_id bigint, version bigint, triggered_at timestamptz, actor text,
         reason text)
  JOIN runtime_vm_trust_history h
    ON h.runtime_vm_instance_id = m.instance_id AND h.registry_version = m.version
   AND h.triggered_at = m.triggered_at AND h.actor = m.actor
   AND h.transition_reason = m.reason
"""


async def recorded(conn: Connection, moves: Sequence[Transition]) -> set[InstanceId]:
    """Return of which instances exactly this transition is in the history.

    Its version could be another writer's; the time to the microsecond, with who and
    why, makes it this one.
    """
    asked = [
        {
            "instance_id": move.after.instance_id,
            "version": move.after.version,
            "triggered_at": move.after.updated_at,
            "actor": move.change.actor,
            "reason": move.change.reason[:REASON_LIMIT],
        }
        for move in moves
    ]
    cursor = await conn.execute(_RECORDED_SQL, {"moves": orjson.dumps(asked).decode()})
    return {InstanceId(row[0]) for row in await cursor.fetchall()}


def _event(row: Mapping[str, Any]) -> TrustEvent:
    previous = row["previous_status"], row["previous_lifecycle_state"]
    return TrustEvent(
        position=Position(int(row["xid"]), row["history_id"]),
        history_id=HistoryId(row["history_id"]),
        instance_id=InstanceId(row["instance_id"]),
        instance_name=row["instance_name"],
        server_id=ServerId(row["server_id"]),
        server_name=row["server_name"],
        owner_id=OwnerId(row["owner_id"]),
        previous_status=AttestationStatus(previous[0]) if previous[0] else None,
        status=AttestationStatus(row["current_status"]),
        previous_lifecycle=Lifecycle(previous[1]) if previous[1] else None,
        lifecycle=Lifecycle(row["current_lifecycle_state"]),
        reason=row["transition_reason"],
        remediation_state=Tag(row["remediation_state"]),
        remediation_attempts=row["remediation_attempts"],
        freshness_deadline=row["freshness_deadline"],
        provenance_ref=row["provenance_ref"],
        provenance=row["provenance"],
        version=row["registry_version"],
        actor=row["actor"],
        attestation_id=row["attestation_id"],
        metadata=row["metadata"] or {},
        triggered_at=row["triggered_at"],
    )
