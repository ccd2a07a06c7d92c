"""The registry as it was: each instance's row rebuilt from its history."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row

from trustfabric.db.session import Connection
from trustfabric.db.trust import PostureFilter
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Snapshot, Tag

_PAST_SQL: LiteralString = """
SELECT h.runtime_vm_instance_id AS instance_id, i.server_id, s.owner_id,
       s.name AS server_name, i.instance_id AS instance_name,
       h.current_status, h.current_lifecycle_state, h.remediation_state,
       h.remediation_attempts, h.freshness_deadline, h.provenance_ref, h.provenance,
       h.registry_version, h.triggered_at
  FROM runtime_vm_instances i
  JOIN servers s ON s.id = i.server_id
  JOIN LATERAL (
       SELECT * FROM runtime_vm_trust_history o
        WHERE o.runtime_vm_instance_id = i.id AND o.triggered_at <= %(at)s
        ORDER BY o.registry_version DESC
        LIMIT 1) h ON true
 WHERE (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
   AND (%(server_id)s::bigint IS NULL OR i.server_id = %(server_id)s)
   AND (%(instance_id)s::bigint IS NULL OR i.id = %(instance_id)s)
   AND (%(lifecycle)s::text IS NULL OR h.current_lifecycle_state = %(lifecycle)s)
   AND (%(status)s::text IS NULL OR h.current_status = %(status)s)
   AND (%(stale)s::boolean IS NULL
        OR coalesce(h.freshness_deadline <= %(at)s, false) = %(stale)s)
   AND (%(instance_id)s::bigint IS NOT NULL
        OR i.terminated_at IS NULL OR i.terminated_at > %(at)s)
   AND i.id > %(after)s
 ORDER BY i.id
 LIMIT %(limit)s
"""


async def list_past(
    conn: Connection,
    wanted: PostureFilter,
    at: datetime,
    *,
    after: int = 0,
    limit: int = 100,
) -> list[Snapshot]:
    """Return the rows of the instances that lived at that time, as they were then."""
    return await _read(conn, wanted, at, None, after, limit)


async def get_past(
    conn: Connection, owner_id: OwnerId | None, instance_id: InstanceId, at: datetime
) -> Snapshot | None:
    """Return one row as it was; None where it was not yet, or isn't this owner's."""
    wanted = PostureFilter(owner_id=owner_id)
    rows = await _read(conn, wanted, at, instance_id, 0, 1)
    return rows[0] if rows else None


async def _read(
    conn: Connection,
    wanted: PostureFilter,
    at: datetime,
    instance_id: InstanceId | None,
    after: int,
    limit: int,
) -> list[Snapshot]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _PAST_SQL,
            {
                "at": at,
                "owner_id": wanted.owner_id,
                "server_id": wanted.server_id,
                "instance_id": instance_id,
                "lifecycle": wanted.lifecycle,
                "status": wanted.status,
                "stale": wanted.stale,
                "after": after,
                "limit": limit,
            },
        )
        return [_snapshot(row) for row in await cursor.fetchall()]


def _snapshot(row: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        instance_id=InstanceId(row["instance_id"]),
        instance_name=row["instance_name"],
        server_id=ServerId(row["server_id"]),
        server_name=row["server_name"],
        owner_id=OwnerId(row["owner_id"]),
        attestation_status=AttestationStatus(row["current_status"]),
        lifecycle=Lifecycle(row["current_lifecycle_state"]),
        remediation_state=Tag(row["remediation_state"]),
        remediation_attempts=row["remediation_attempts"],
        freshness_deadline=row["freshness_deadline"],
        provenance_ref=row["provenance_ref"],
        provenance=row["provenance"],
        version=row["registry_version"],
        updated_at=row["triggered_at"],
    )
