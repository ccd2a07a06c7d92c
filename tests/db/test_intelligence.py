"""Scores as rows, and hearing of what they are made of."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.builders import (
    OWNER,
    insert_instance,
    insert_run,
    insert_server,
    insert_trust,
)
from trustfabric.db import intelligence
from trustfabric.db.intelligence import Changes, Heard
from trustfabric.db.session import Connection, Database
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.intelligence import Inputs, score

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WINDOW = timedelta(seconds=300)


async def inputs_of(conn: Connection, server: int) -> Inputs:
    (found,) = await intelligence.read_inputs(conn, [ServerId(server)])
    return found


async def save(conn: Connection, inputs: Inputs) -> int:
    scored = [(inputs, score(inputs, NOON, WINDOW))]
    return await intelligence.save_scores(conn, scored, NOON)


async def server_of(conn: Connection, instance: int) -> int:
    cursor = await conn.execute(
        "SELECT server_id FROM runtime_vm_instances WHERE id = %s", [instance]
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_everything_that_counts_is_read(database: Database) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
        await insert_trust(conn, instance)
        run = await insert_run(conn, instance)
        await conn.execute(
            """
            UPDATE runtime_vm_remediation_runs
               SET status = 'failed', failure_reason = 'timeout', completed_at = %s
             WHERE id = %s
            """,
            [NOON, run],
        )
        server = await server_of(conn, instance)
        await conn.execute(
            """
            INSERT INTO evaluation_certifications (server_id, status, valid_until)
            VALUES (%s, 'pass', %s)
            """,
            [server, NOON],
        )
        found = await inputs_of(conn, server)

    assert found.trust is not None
    assert found.trust.lifecycle == "suspect"
    assert found.failure == "timeout"
    assert [one.valid_until for one in found.certifications] == [NOON]
    assert (found.backend, found.tier) == ("libvirt", "standard")


async def test_what_says_the_same_stays_as_it_is(database: Database) -> None:
    async with database.writing() as conn:
        found = await inputs_of(conn, await insert_server(conn))

        assert await save(conn, found) == 1
        assert await save(conn, found) == 0


async def test_scores_are_their_owners(database: Database) -> None:
    async with database.writing() as conn:
        found = await inputs_of(conn, await insert_server(conn))
        await save(conn, found)
        mine = await intelligence.list_scores(conn, OwnerId(OWNER), found.server_id)
        theirs = await intelligence.list_scores(conn, OwnerId(8), found.server_id)

    assert [row.capability for row in mine] == ["runtime"]
    assert mine[0].notes == ["base +85"]
    assert theirs == []


TRIGGERS: dict[str, str] = {
    "certification": "UPDATE evaluation_certifications SET tier = 'gold'",
    "new certification": """
        INSERT INTO evaluation_certifications (server_id) SELECT id FROM servers
    """,
    "lost certification": "DELETE FROM evaluation_certifications",
    "accelerator": """
        INSERT INTO runtime_vm_accelerator_posture
               (runtime_vm_instance_id, accelerator_id, accelerator_type, posture)
        SELECT id, 'gpu', 'gpu', 'bad' FROM runtime_vm_instances
    """,
    "config": "UPDATE servers SET config = '{\"capabilities\": []}'",
    "release": "UPDATE servers SET released_at = now()",
    "deletion": "UPDATE servers SET deleted_at = now()",
    "termination": "UPDATE runtime_vm_instances SET terminated_at = now()",
}


@pytest.mark.parametrize("name", TRIGGERS)
async def test_each_input_is_heard(
    database: Database, database_url: str, name: str
) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
        server = await server_of(conn, instance)
        await conn.execute(
            "INSERT INTO evaluation_certifications (server_id) VALUES (%s)", [server]
        )
    changes = await Changes.of(database_url)

    async with database.writing() as conn:
        await conn.execute(TRIGGERS[name].encode())

    assert await changes.wait(10) == Heard(servers=frozenset({ServerId(server)}))
    await changes.close()


async def test_trust_is_heard_by_its_instance(
    database: Database, database_url: str
) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
    changes = await Changes.of(database_url)

    async with database.writing() as conn:
        await insert_trust(conn, instance)

    heard = await changes.wait(10)
    await changes.close()
    assert heard == Heard(instances=frozenset({InstanceId(instance)}))
    async with database.reading() as conn:
        server = await server_of(conn, instance)
        assert await intelligence.servers_of(conn, heard.instances) == [server]


async def test_what_is_committed_between_two_waits_is_heard(
    database: Database, database_url: str
) -> None:
    changes = await Changes.of(database_url)
    servers: set[Any] = set()
    async with database.writing() as conn:
        first, second = await insert_server(conn), await insert_server(conn)

    for server in (first, second):
        async with database.writing() as conn:
            await conn.execute(
                "UPDATE servers SET released_at = now() WHERE id = %s", [server]
            )
    while len(servers) < 2:
        servers |= (await changes.wait(10)).servers

    assert servers == {first, second}
    assert await changes.wait(0.01) == Heard()
    await changes.close()
