"""Servers and their owners: the statements, and the rows as values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.ids import OwnerId, ServerId
from trustfabric.domain.servers import LaunchVerb, Server, ServerStatus

_COLUMNS: LiteralString = """
    id, owner_id, name, server_type, status, config, released_at, created_at,
    updated_at, waits_for
"""

_ADD_USER_SQL: LiteralString = """
INSERT INTO users (id) VALUES (%(id)s) ON CONFLICT DO NOTHING
"""


async def add_user(conn: Connection, owner_id: OwnerId) -> None:
    """Make the user's row, unless it is there: identities come from elsewhere."""
    await conn.execute(_ADD_USER_SQL, {"id": owner_id})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewServer:
    """What is known of a server before it has an id."""

    owner_id: OwnerId
    name: str
    server_type: str | None
    config: Mapping[str, Any] = field(repr=False)


_INSERT_SQL: LiteralString = (
    """
WITH made AS (
    INSERT INTO servers (owner_id, name, server_type, status, config)
    VALUES (%(owner_id)s, %(name)s, %(server_type)s, 'stopped', %(config)s)
 RETURNING"""
    + _COLUMNS
    + """
), certified AS (
    INSERT INTO evaluation_certifications (server_id, tier, policy_requirement)
    SELECT id, coalesce(config #>> '{certification,tier}', 'standard'),
           coalesce(config #>> '{certification,policy_requirement}',
                    'runtime-attestation')
      FROM made
)
SELECT * FROM made
"""
)


async def insert_server(conn: Connection, new: NewServer) -> Server:
    """Make a server, stopped, with its one certification."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _INSERT_SQL,
            {
                "owner_id": new.owner_id,
                "name": new.name,
                "server_type": new.server_type,
                "config": Jsonb(dict(new.config)),
            },
        )
        row = await cursor.fetchone()
    assert row is not None
    return _server(row)


_GET_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM servers
 WHERE id = %(id)s AND deleted_at IS NULL
   AND (%(owner_id)s::bigint IS NULL OR owner_id = %(owner_id)s)
"""
)


async def get_server(
    conn: Connection, owner_id: OwnerId | None, server_id: ServerId
) -> Server | None:
    """Return one server; None where it isn't, or isn't this owner's."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_GET_SQL, {"id": server_id, "owner_id": owner_id})
        row = await cursor.fetchone()
    return None if row is None else _server(row)


_LIST_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM servers
 WHERE deleted_at IS NULL AND id > %(after)s
   AND (%(owner_id)s::bigint IS NULL OR owner_id = %(owner_id)s)
   AND (%(status)s::text IS NULL OR status = %(status)s)
 ORDER BY id
 LIMIT %(limit)s
"""
)


async def list_servers(
    conn: Connection,
    owner_id: OwnerId | None,
    *,
    status: ServerStatus | None = None,
    after: int = 0,
    limit: int = 100,
) -> list[Server]:
    """Return living servers by id, from beyond `after`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL,
            {"owner_id": owner_id, "status": status, "after": after, "limit": limit},
        )
        return [_server(row) for row in await cursor.fetchall()]


# The gate decides; this only spares it those that plainly wait on.
_WAITING_SQL: LiteralString = """
SELECT s.id FROM servers s
  LEFT JOIN LATERAL (
       SELECT n.* FROM runtime_vm_instances n
        WHERE n.server_id = s.id ORDER BY n.id DESC LIMIT 1) i ON true
  LEFT JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = i.id
 WHERE s.status IN ('pending-attestation', 'pending-remediation')
   AND s.deleted_at IS NULL AND s.id > %(after)s
   AND (%(ids)s::bigint[] IS NULL OR s.id = ANY(%(ids)s))
   AND (coalesce(r.lifecycle_state, 'suspect') IN ('suspect', 'restored')
        OR i.terminated_at < s.released_at)
   AND NOT EXISTS (
       SELECT 1 FROM trust_holds o
        WHERE o.released_at IS NULL AND o.incident_id IS NULL
          AND (o.until IS NULL OR o.until > %(now)s)
          AND (o.scope = 'all' OR o.owner_id = s.owner_id
               OR o.runtime_vm_instance_id = i.id))
 ORDER BY s.id
 LIMIT %(limit)s
"""


async def list_waiting(
    conn: Connection,
    now: datetime,
    ids: Collection[ServerId] | None = None,
    *,
    after: int = 0,
    limit: int = 100,
) -> list[ServerId]:
    """Return servers whose launch waits for a gate that may be open, by id.

    Of `ids`, or of all from beyond `after`.
    """
    cursor = await conn.execute(
        _WAITING_SQL,
        {
            "now": now,
            "ids": None if ids is None else sorted(ids),
            "after": after,
            "limit": limit,
        },
    )
    return [ServerId(row[0]) for row in await cursor.fetchall()]


_SET_STATUS_SQL: LiteralString = """
UPDATE servers SET status = %(status)s, waits_for = %(verb)s, updated_at = now()
 WHERE id = %(id)s AND deleted_at IS NULL
   AND (status, waits_for) IS DISTINCT FROM (%(status)s, %(verb)s::text)
"""


_NOTE_STATUS_SQL: LiteralString = """
UPDATE servers SET status = %(status)s, waits_for = NULL, updated_at = now()
 WHERE id = %(id)s AND deleted_at IS NULL AND status <> %(status)s
   AND NOT (%(status)s IN ('stopping', 'stopped') AND status IN (
            'pending-attestation', 'pending-remediation', 'blocked'))
   AND NOT (waits_for IS NOT DISTINCT FROM 'redeploy' AND status IN (
            'pending-attestation', 'pending-remediation'))
"""


async def note_status(
    conn: Connection, server_id: ServerId, status: ServerStatus
) -> None:
    """Say how its VM is.

    That it is off is no news to one that waits or is blocked, and nothing of it is to
    one that waits to be made anew.
    """
    await conn.execute(_NOTE_STATUS_SQL, {"id": server_id, "status": status})


async def set_status(
    conn: Connection,
    server_id: ServerId,
    status: ServerStatus,
    verb: LaunchVerb | None = None,
) -> None:
    """Say how the server is, and what it waits to do where it waits for the gate."""
    await conn.execute(
        _SET_STATUS_SQL, {"id": server_id, "status": status, "verb": verb}
    )


_RELEASE_SQL: LiteralString = """
UPDATE servers
   SET released_at = %(now)s, released_by = %(by)s, release_reason = %(reason)s,
       updated_at = now()
 WHERE id = %(id)s AND deleted_at IS NULL
"""


async def release_server(
    conn: Connection, server_id: ServerId, *, by: str, reason: str, now: datetime
) -> None:
    """Let it launch again although its last instance ended distrusted."""
    await conn.execute(
        _RELEASE_SQL, {"id": server_id, "by": by, "reason": reason, "now": now}
    )


_DELETE_SQL: LiteralString = """
UPDATE servers SET deleted_at = %(now)s, status = 'stopped', updated_at = now()
 WHERE id = %(id)s AND deleted_at IS NULL
"""


async def delete_server(conn: Connection, server_id: ServerId, now: datetime) -> None:
    """Take it out of every list; its history stays."""
    await conn.execute(_DELETE_SQL, {"id": server_id, "now": now})


def _server(row: Mapping[str, Any]) -> Server:
    return Server(
        id=ServerId(row["id"]),
        owner_id=OwnerId(row["owner_id"]),
        name=row["name"],
        server_type=row["server_type"],
        status=ServerStatus(row["status"]),
        config=row["config"],
        released_at=row["released_at"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        waits_for=LaunchVerb(row["waits_for"] or LaunchVerb.START),
    )
