"""Servers: made with their certification, read by their owner, gone when deleted."""

from datetime import UTC, datetime

from tests.builders import OWNER
from tests.fix_fabric import add_server, count
from trustfabric.db import servers
from trustfabric.db.session import Database
from trustfabric.domain.ids import OwnerId, ServerId
from trustfabric.domain.servers import Server, ServerStatus

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def read(
    database: Database, server: ServerId, owner: int | None = OWNER
) -> Server | None:
    async with database.reading() as conn:
        return await servers.get_server(
            conn, None if owner is None else OwnerId(owner), server
        )


async def test_a_server_is_made_stopped_with_one_certification(
    database: Database,
) -> None:
    server = await add_server(database, vm={"image": "tiny"})

    assert server.status is ServerStatus.STOPPED
    assert server.vm == {"image": "tiny"}
    assert server.attestation == {}
    assert await read(database, server.id) == server
    certified = await count(
        database,
        """
        SELECT count(*) FROM evaluation_certifications
         WHERE server_id = %s AND tier = 'standard'
           AND policy_requirement = 'runtime-attestation'
        """,
        server.id,
    )
    assert certified == 1


async def test_a_certification_is_as_the_configuration_says(
    database: Database,
) -> None:
    await add_server(
        database, certification={"tier": "gold", "policy_requirement": "snp"}
    )

    found = await count(
        database,
        """
        SELECT count(*) FROM evaluation_certifications
         WHERE tier = 'gold' AND policy_requirement = 'snp'
        """,
    )
    assert found == 1


async def test_a_user_is_added_once(database: Database) -> None:
    async with database.writing() as conn:
        await servers.add_user(conn, OwnerId(5))
        await servers.add_user(conn, OwnerId(5))

    assert await count(database, "SELECT count(*) FROM users") == 1


async def test_others_servers_are_not_there(database: Database) -> None:
    server = await add_server(database)

    assert await read(database, server.id, OWNER + 1) is None
    assert await read(database, server.id, None) == server


async def test_lists_are_by_id_owner_and_status(database: Database) -> None:
    one, two = await add_server(database), await add_server(database)
    foreign = await add_server(database, OWNER + 1)
    async with database.writing() as conn:
        await servers.set_status(conn, two.id, ServerStatus.RUNNING)

    async with database.reading() as conn:
        everybody = await servers.list_servers(conn, None)
        mine = await servers.list_servers(conn, OwnerId(OWNER))
        running = await servers.list_servers(conn, None, status=ServerStatus.RUNNING)
        later = await servers.list_servers(conn, None, after=one.id, limit=1)

    assert [each.id for each in everybody] == [one.id, two.id, foreign.id]
    assert [each.id for each in mine] == [one.id, two.id]
    assert [each.id for each in running] == [two.id]
    assert [each.id for each in later] == [two.id]


async def test_a_deleted_server_is_nowhere(database: Database) -> None:
    server = await add_server(database)

    async with database.writing() as conn:
        await servers.delete_server(conn, server.id, NOON)
        await servers.set_status(conn, server.id, ServerStatus.RUNNING)
        await servers.release_server(
            conn, server.id, by="user:7", reason="late", now=NOON
        )

    async with database.reading() as conn:
        assert await servers.list_servers(conn, None) == []
    assert await read(database, server.id) is None
    kept = await count(
        database,
        "SELECT count(*) FROM servers WHERE status = 'stopped' AND released_at IS NULL",
    )
    assert kept == 1
