"""Rows of the history: each is of an instance, though no foreign key says so."""

from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest

from tests.builders import insert_instance, insert_trust
from tests.fix_fabric import Fabric, count
from trustfabric.db import trust
from trustfabric.db.session import Connection, Database
from trustfabric.db.trust import Transition
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Change, Signal

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOBODY = InstanceId(2**60)
ROWS = "SELECT count(*) FROM runtime_vm_trust_history"
STRAYS = """
    SELECT count(*) FROM runtime_vm_trust_history h
     WHERE NOT EXISTS (
           SELECT 1 FROM runtime_vm_instances i WHERE i.id = h.runtime_vm_instance_id)
"""


async def test_nothing_is_written_of_an_instance_that_never_was(
    fabric: Fabric,
) -> None:
    before = replace(await fabric.posture(await fabric.instance()), instance_id=NOBODY)
    after = replace(before, version=before.version + 1)
    change = Change(signal=Signal.ANNOTATED, actor="test", reason="nobody")

    async with fabric.database.writing() as conn:
        missed = await trust.save(conn, [Transition(before, after, change)])

    assert missed == {NOBODY}
    assert await count(fabric.database, ROWS) == 1


async def test_no_first_row_is_of_an_instance_that_never_was(
    database: Database,
) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        async with database.writing() as conn:
            await trust.open_row(conn, NOBODY, "test", NOW)

    assert await count(database, ROWS) == 0


@pytest.mark.parametrize("pruned", [True, False])
async def test_an_instance_that_has_a_history_stays(
    database: Database, *, pruned: bool
) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
        await insert_trust(conn, instance)
        if pruned:
            await conn.execute("DELETE FROM runtime_vm_trust_history")

    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        async with database.writing() as conn:
            await _delete(conn, instance)

    assert await count(database, STRAYS) == 0


async def _delete(conn: Connection, instance: int) -> None:
    await conn.execute("DELETE FROM runtime_vm_instances WHERE id = %s", [instance])
