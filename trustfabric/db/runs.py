"""Remediation runs: how they are read and locked.

What changes together with trust is in `run_writes.py`; what a run's actor writes
under its lease, in `ledger.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import orjson
from psycopg.rows import dict_row

from trustfabric.db.session import Connection
from trustfabric.db.trust import storable
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import (
    InstanceId,
    OwnerId,
    PlaybookId,
    RunId,
    ServerId,
)
from trustfabric.domain.runs import ApprovalState, Run, RunStatus
from trustfabric.errors import NotFoundError

RUN_COLUMNS: LiteralString = """
    r.id, r.runtime_vm_instance_id, i.instance_id AS instance_name, i.server_id,
    s.owner_id, r.playbook, r.playbook_id, r.status, r.approval_required,
    r.approval_state, r.approval_decided_at, r.approval_decided_by, r.approval_notes,
    r.requested_by, r.assigned_owner_id, r.sla_deadline, r.automation_payload,
    r.metadata, r.playbook_snapshot, r.content_sha256, r.priority, r.not_before,
    r.result, r.failure_reason, r.last_error, r.attempt, r.queued_at, r.started_at,
    r.completed_at, r.cancelled_at, r.cancellation_reason, r.lease_owner,
    r.lease_epoch, r.lease_expires_at, r.version, r.created_at, r.updated_at,
    r.approvals_required, r.approvals_given, r.sla_breached_at
"""

RUN_TABLES: LiteralString = """
  FROM runtime_vm_remediation_runs r
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
"""

_GET_SQL: LiteralString = (
    "SELECT"
    + RUN_COLUMNS
    + RUN_TABLES
    + """
 WHERE r.id = %(id)s
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
"""
)


async def get_run(
    conn: Connection, owner_id: OwnerId | None, run_id: RunId
) -> Run | None:
    """Return one run; None where it isn't, or its instance isn't this owner's."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_GET_SQL, {"id": run_id, "owner_id": owner_id})
        row = await cursor.fetchone()
    return None if row is None else read_run(row)


_LOCK_SQL: LiteralString = _GET_SQL + " FOR NO KEY UPDATE OF r"


async def lock_run(
    conn: Connection, run_id: RunId, *, owner_id: OwnerId | None = None
) -> Run:
    """Return a run that nobody else changes or logs for until we commit."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LOCK_SQL, {"id": run_id, "owner_id": owner_id})
        row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"no run {run_id}")
    return read_run(row)


_LOCK_ALL_SQL: LiteralString = (
    "SELECT"
    + RUN_COLUMNS
    + RUN_TABLES
    + " WHERE r.id = ANY (%(ids)s) ORDER BY r.id FOR NO KEY UPDATE OF r"
)
_LOCK_FREE_SQL: LiteralString = _LOCK_ALL_SQL + " SKIP LOCKED"


async def lock_runs(
    conn: Connection, ids: Iterable[RunId], *, skip_locked: bool = False
) -> dict[RunId, Run]:
    """Return runs that nobody else changes or logs for until we commit.

    Missing are those that are not there and, with `skip_locked`, what somebody else
    has locked: who never waits for a lock may hold many.
    """
    sql = _LOCK_FREE_SQL if skip_locked else _LOCK_ALL_SQL
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql, {"ids": list(ids)})
        return {run.id: run for run in map(read_run, await cursor.fetchall())}


_ACTIVE_SQL: LiteralString = (
    "SELECT"
    + RUN_COLUMNS
    + RUN_TABLES
    + """
 WHERE r.runtime_vm_instance_id = %(instance_id)s
   AND r.status IN ('pending', 'running')
"""
)


async def get_active_run(conn: Connection, instance_id: InstanceId) -> Run | None:
    """Return the instance's run that has not ended."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_ACTIVE_SQL, {"instance_id": instance_id})
        row = await cursor.fetchone()
    return None if row is None else read_run(row)


_LOCK_ACTIVE_SQL: LiteralString = _ACTIVE_SQL + " FOR NO KEY UPDATE OF r"


async def lock_active_run(conn: Connection, instance_id: InstanceId) -> Run | None:
    """Return the instance's run that has not ended, locked."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LOCK_ACTIVE_SQL, {"instance_id": instance_id})
        row = await cursor.fetchone()
    return None if row is None else read_run(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """What a list of runs is narrowed to; None means any."""

    owner_id: OwnerId | None = None
    instance_id: InstanceId | None = None
    status: RunStatus | None = None
    approval_state: ApprovalState | None = None
    playbook: str | None = None


_LIST_SQL: LiteralString = (
    "SELECT"
    + RUN_COLUMNS
    + RUN_TABLES
    + """
 WHERE (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
   AND (%(instance_id)s::bigint IS NULL
        OR r.runtime_vm_instance_id = %(instance_id)s)
   AND (%(status)s::text IS NULL OR r.status = %(status)s)
   AND (%(approval_state)s::text IS NULL OR r.approval_state = %(approval_state)s)
   AND (%(playbook)s::text IS NULL OR r.playbook = %(playbook)s)
   AND r.id < %(before)s
 ORDER BY r.id DESC
 LIMIT %(limit)s
"""
)


async def list_runs(
    conn: Connection, wanted: RunFilter, *, before: int = 2**62, limit: int = 100
) -> list[Run]:
    """Return the runs that match, newest first, older than id `before`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL,
            {
                "owner_id": wanted.owner_id,
                "instance_id": wanted.instance_id,
                "status": wanted.status,
                "approval_state": wanted.approval_state,
                "playbook": wanted.playbook,
                "before": before,
                "limit": limit,
            },
        )
        return [read_run(row) for row in await cursor.fetchall()]


_TARGET_SQL: LiteralString = """
SELECT s.owner_id
  FROM runtime_vm_instances i JOIN servers s ON s.id = i.server_id
 WHERE i.id = %(id)s AND i.terminated_at IS NULL
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
"""


async def owner_of(
    conn: Connection, owner_id: OwnerId | None, instance_id: InstanceId
) -> OwnerId:
    """Return whose a living instance is; NotFoundError where it isn't `owner_id`'s."""
    cursor = await conn.execute(_TARGET_SQL, {"id": instance_id, "owner_id": owner_id})
    row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"no instance {instance_id}")
    return OwnerId(row[0])


async def change_runs(
    conn: Connection, sql: LiteralString, batch: Sequence[Mapping[str, Any]]
) -> dict[RunId, Run]:
    """Return the runs that a statement over a batch has changed, as they are now."""
    if not batch:
        return {}
    async with conn.cursor(row_factory=dict_row) as cursor:
        with storable():
            rows = orjson.dumps(batch).decode()
            await cursor.execute(sql, {"batch": rows})
        return {run.id: run for run in map(read_run, await cursor.fetchall())}


def read_run(row: Mapping[str, Any]) -> Run:
    """Turn a row of RUN_COLUMNS into the value."""
    values = dict(row)
    playbook_id, assigned = values["playbook_id"], values["assigned_owner_id"]
    reason = values["failure_reason"]
    values.update(
        id=RunId(values["id"]),
        instance_id=InstanceId(values.pop("runtime_vm_instance_id")),
        server_id=ServerId(values["server_id"]),
        owner_id=OwnerId(values["owner_id"]),
        playbook_id=None if playbook_id is None else PlaybookId(playbook_id),
        status=RunStatus(values["status"]),
        approval_state=ApprovalState(values["approval_state"]),
        assigned_owner_id=None if assigned is None else OwnerId(assigned),
        failure_reason=None if reason is None else FailureReason(reason),
    )
    return Run(**values)
