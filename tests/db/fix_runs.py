"""Rows that tests of remediation start from."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tests.builders import insert_instance, insert_owner, insert_trust
from trustfabric.db import playbooks, run_writes, runs, trust
from trustfabric.db.session import Connection, Database
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.playbooks import Playbook, PlaybookDraft
from trustfabric.domain.runs import Run, RunOrder, enqueue
from trustfabric.domain.specs import ExecutorType
from trustfabric.domain.trust import Snapshot

ALICE, BOB = OwnerId(7), OwnerId(8)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = "default-vm-remediation"


def a_draft(**changes: Any) -> PlaybookDraft:
    draft = PlaybookDraft(
        key=KEY,
        display_name="Fix it",
        executor_type=ExecutorType.SHELL,
        owner_id=ALICE,
        metadata={"script": "echo fixed"},
    )
    return replace(draft, **changes)


async def add_instance(database: Database, owner: OwnerId = ALICE) -> InstanceId:
    """Add a running, suspect instance."""
    async with database.writing() as conn:
        instance = await insert_instance(conn, owner)
        await insert_trust(conn, instance)
    return InstanceId(instance)


async def add_playbook(database: Database, **changes: Any) -> Playbook:
    async with database.writing() as conn:
        await insert_owner(conn, ALICE)
        return await playbooks.insert_playbook(conn, a_draft(**changes))


async def snapshot(conn: Connection, instance: InstanceId) -> Snapshot:
    rows = await trust.lock(conn, [instance])
    return rows[instance][0]


async def add_run(
    database: Database, instance: InstanceId, playbook: Playbook, **order: Any
) -> Run:
    """Insert a run as enqueueing does; the registry is left alone."""
    order = {"instance_id": instance, "requested_by": f"user:{ALICE}", **order}
    new = enqueue(playbook, RunOrder(**order), NOON)
    async with database.writing() as conn:
        before = await snapshot(conn, instance)
        run_id = await run_writes.InsertRun(new).write(conn, before)
    assert run_id is not None
    return await read_run(database, RunId(run_id))


async def read_run(database: Database, run_id: RunId) -> Run:
    async with database.reading() as conn:
        run = await runs.get_run(conn, None, run_id)
    assert run is not None
    return run


async def write(database: Database, instance: InstanceId, companion: Any) -> Any:
    async with database.writing() as conn:
        return await companion.write(conn, await snapshot(conn, instance))
