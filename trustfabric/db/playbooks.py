"""The catalogue of playbooks: the statements, and the rows as values."""

from collections.abc import Mapping
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.ids import OwnerId, PlaybookId
from trustfabric.domain.playbooks import Playbook, PlaybookDraft
from trustfabric.domain.specs import ExecutorType

_COLUMNS: LiteralString = """
    p.id, p.playbook_key, p.display_name, p.description, p.executor_type, p.owner_id,
    p.approval_required, p.sla_duration_seconds, p.metadata, p.version, p.created_at,
    p.updated_at
"""

_VISIBLE: LiteralString = """
   AND (%(owner_id)s::bigint IS NULL OR p.owner_id IS NULL
        OR p.owner_id = %(owner_id)s)
"""

_INSERT_SQL: LiteralString = (
    """
INSERT INTO runtime_vm_remediation_playbooks AS p
       (playbook_key, display_name, description, executor_type, owner_id,
        approval_required, sla_duration_seconds, metadata)
VALUES (%(key)s, %(display_name)s, %(description)s, %(executor_type)s, %(owner_id)s,
        %(approval_required)s, %(sla)s, %(metadata)s)
RETURNING"""
    + _COLUMNS
)


async def insert_playbook(conn: Connection, draft: PlaybookDraft) -> Playbook:
    """Add a playbook; DuplicateKeyError where its owner has one of that key."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _INSERT_SQL,
            {
                "key": draft.key,
                "display_name": draft.display_name,
                "description": draft.description,
                "executor_type": draft.executor_type,
                "owner_id": draft.owner_id,
                "approval_required": draft.approval_required,
                "sla": draft.sla_duration_s,
                "metadata": Jsonb(dict(draft.metadata)),
            },
        )
        row = await cursor.fetchone()
    assert row is not None
    return _playbook(row)


_GET_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM runtime_vm_remediation_playbooks p
 WHERE p.id = %(id)s
"""
    + _VISIBLE
)


async def get_playbook(
    conn: Connection, owner_id: OwnerId | None, playbook_id: PlaybookId
) -> Playbook | None:
    """Return one playbook; None where it isn't, or isn't this owner's or shared."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_GET_SQL, {"id": playbook_id, "owner_id": owner_id})
        row = await cursor.fetchone()
    return None if row is None else _playbook(row)


_LOCK_SQL: LiteralString = _GET_SQL + " FOR UPDATE OF p"


async def lock_playbook(
    conn: Connection, owner_id: OwnerId | None, playbook_id: PlaybookId
) -> Playbook | None:
    """Return one playbook as `get_playbook` does, and keep others from changing it."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LOCK_SQL, {"id": playbook_id, "owner_id": owner_id})
        row = await cursor.fetchone()
    return None if row is None else _playbook(row)


_FIND_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM runtime_vm_remediation_playbooks p
 WHERE p.playbook_key = %(key)s
   AND (p.owner_id IS NULL OR p.owner_id = %(owner_id)s)
 ORDER BY p.owner_id NULLS LAST
 LIMIT 1
"""
)


async def find_playbook(
    conn: Connection, owner_id: OwnerId, key: str
) -> Playbook | None:
    """Return what `key` means for an owner: their own playbook, else the shared one."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_FIND_SQL, {"key": key, "owner_id": owner_id})
        row = await cursor.fetchone()
    return None if row is None else _playbook(row)


_LIST_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM runtime_vm_remediation_playbooks p
 WHERE p.id > %(after)s
"""
    + _VISIBLE
    + """
 ORDER BY p.id
 LIMIT %(limit)s
"""
)


async def list_playbooks(
    conn: Connection, owner_id: OwnerId | None, *, after: int = 0, limit: int = 100
) -> list[Playbook]:
    """Return an owner's playbooks and the shared ones by id, from beyond `after`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL, {"owner_id": owner_id, "after": after, "limit": limit}
        )
        return [_playbook(row) for row in await cursor.fetchall()]


_SAVE_SQL: LiteralString = (
    """
UPDATE runtime_vm_remediation_playbooks p
   SET display_name = %(display_name)s, description = %(description)s,
       executor_type = %(executor_type)s, approval_required = %(approval_required)s,
       sla_duration_seconds = %(sla)s, metadata = %(metadata)s,
       version = %(version)s, updated_at = now()
 WHERE p.id = %(id)s AND p.version = %(version)s - 1
RETURNING"""
    + _COLUMNS
)


async def save_playbook(conn: Connection, after: Playbook) -> Playbook | None:
    """Write an edited playbook over the version before it; None where that is gone."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _SAVE_SQL,
            {
                "id": after.id,
                "display_name": after.display_name,
                "description": after.description,
                "executor_type": after.executor_type,
                "approval_required": after.approval_required,
                "sla": after.sla_duration_s,
                "metadata": Jsonb(dict(after.metadata)),
                "version": after.version,
            },
        )
        row = await cursor.fetchone()
    return None if row is None else _playbook(row)


_ACTIVE_SQL: LiteralString = """
SELECT min(id) FROM runtime_vm_remediation_runs
 WHERE playbook_id = %(id)s AND status IN ('pending', 'running')
"""


async def active_run_of(conn: Connection, playbook_id: PlaybookId) -> int | None:
    """Return the id of a run of this playbook that has not ended."""
    cursor = await conn.execute(_ACTIVE_SQL, {"id": playbook_id})
    row = await cursor.fetchone()
    return None if row is None else row[0]


_DELETE_SQL: LiteralString = """
DELETE FROM runtime_vm_remediation_playbooks WHERE id = %(id)s
"""


async def delete_playbook(conn: Connection, playbook_id: PlaybookId) -> None:
    """Remove a playbook; its past runs keep what they pinned."""
    await conn.execute(_DELETE_SQL, {"id": playbook_id})


_KEEP_SQL: LiteralString = """
SELECT 1 FROM runtime_vm_remediation_playbooks WHERE id = %(id)s FOR KEY SHARE
"""


async def keep_playbook(conn: Connection, playbook_id: PlaybookId) -> bool:
    """Keep a playbook from being deleted in this transaction; False: it is gone."""
    cursor = await conn.execute(_KEEP_SQL, {"id": playbook_id})
    return await cursor.fetchone() is not None


def _playbook(row: Mapping[str, Any]) -> Playbook:
    owner = row["owner_id"]
    return Playbook(
        id=PlaybookId(row["id"]),
        key=row["playbook_key"],
        display_name=row["display_name"],
        description=row["description"],
        executor_type=ExecutorType(row["executor_type"]),
        owner_id=None if owner is None else OwnerId(owner),
        approval_required=row["approval_required"],
        sla_duration_s=row["sla_duration_seconds"],
        metadata=row["metadata"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
