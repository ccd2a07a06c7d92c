"""Wake-ups and positions: nothing that was committed is ever passed over."""

import asyncio
import os
import signal

import psycopg
import pytest

from tests.builders import insert_instance, insert_trust
from trustfabric.db import listen
from trustfabric.db.listen import REMEDIATION_CHANNEL, TRUST_CHANNEL, Wakeups
from trustfabric.db.positions import advance_position, read_horizon, read_position
from trustfabric.db.session import Connection, Database
from trustfabric.domain.events import Position
from trustfabric.errors import UnavailableError

CHANNELS = (TRUST_CHANNEL, REMEDIATION_CHANNEL)

AFTER_SQL = """
    SELECT xid::text, id FROM runtime_vm_trust_history
     WHERE (xid, id) > (%(xid)s::xid8, %(id)s)
       AND xid < pg_snapshot_xmin(pg_current_snapshot())
     ORDER BY xid, id
"""


async def rows_after(database: Database, position: Position) -> list[Position]:
    async with database.reading() as conn:
        cursor = await conn.execute(
            AFTER_SQL, {"xid": str(position.xid), "id": position.id}
        )
        return [Position(int(xid), row) for xid, row in await cursor.fetchall()]


async def instances(database: Database, count: int) -> list[int]:
    async with database.writing() as conn:
        return [await insert_instance(conn) for _ in range(count)]


async def backend_of(conn: Connection, name: str) -> int:
    row = await (
        await conn.execute(
            """
            SELECT pid FROM pg_stat_activity
             WHERE application_name = %s AND datname = current_database()
            """,
            [name],
        )
    ).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_commit_wakes_the_listener(
    database: Database, database_url: str
) -> None:
    (instance,) = await instances(database, 1)
    wakeups = await Wakeups.open(database_url, CHANNELS)

    async with database.writing() as conn:
        await insert_trust(conn, instance)

    assert await wakeups.wait(20) == {TRUST_CHANNEL}
    await wakeups.close()


async def test_notifications_between_two_waits_are_kept(
    database: Database, database_url: str
) -> None:
    wakeups = await Wakeups.open(database_url, CHANNELS)
    assert await wakeups.wait(0.01) == frozenset()

    async with database.writing() as conn:
        await conn.execute("SELECT pg_notify(%s, 'rubbish')", [REMEDIATION_CHANNEL])

    assert await wakeups.wait(20) == {REMEDIATION_CHANNEL}
    await wakeups.close()


async def test_silence_is_an_empty_answer(database_url: str) -> None:
    wakeups = await Wakeups.open(database_url, CHANNELS)

    assert await wakeups.wait(0.05) == frozenset()

    await wakeups.close()


async def test_a_waiting_listener_can_be_cancelled(database_url: str) -> None:
    wakeups = await Wakeups.open(database_url, CHANNELS)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await wakeups.wait(60)

    await wakeups.close()


async def test_a_lost_connection_is_unavailable(
    database: Database, database_url: str
) -> None:
    wakeups = await Wakeups.open(database_url, CHANNELS)
    async with database.reading() as conn:
        pid = await backend_of(conn, "trustfabric listener")
        await conn.execute("SELECT pg_terminate_backend(%s)", [pid])

    with pytest.raises(UnavailableError):
        await wakeups.wait(20)

    await wakeups.close()


async def test_a_server_that_falls_silent_is_unavailable(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "ANSWER_S", 0.2)
    wakeups = await Wakeups.open(database_url, CHANNELS)
    async with database.reading() as conn:
        backend = await backend_of(conn, "trustfabric listener")
    os.kill(backend, signal.SIGSTOP)

    try:
        with pytest.raises(UnavailableError):
            await wakeups.wait(0.05)
    finally:
        os.kill(backend, signal.SIGCONT)
        await wakeups.close()


async def test_no_server_is_unavailable() -> None:
    with pytest.raises(UnavailableError):
        await Wakeups.open("postgresql://u@/d?host=/nowhere", CHANNELS)


async def test_a_row_that_commits_late_is_held_back_not_skipped(
    database: Database, database_url: str
) -> None:
    slow, quick = await instances(database, 2)
    conn = await psycopg.AsyncConnection.connect(database_url)
    await insert_trust(conn, slow)
    async with database.writing() as other:
        await insert_trust(other, quick)

    before = await rows_after(database, Position.FIRST)
    await conn.commit()
    after = await rows_after(database, Position.FIRST)
    await conn.close()

    assert before == []
    assert [position.id for position in after] == [1, 2]
    assert await rows_after(database, after[0]) == after[1:]


async def test_whoever_starts_at_the_horizon_misses_nothing_under_way(
    database: Database, database_url: str
) -> None:
    done, under_way, later = await instances(database, 3)
    async with database.writing() as writer:
        await insert_trust(writer, done)
    conn = await psycopg.AsyncConnection.connect(database_url)
    await insert_trust(conn, under_way)

    async with database.reading() as reader:
        horizon = await read_horizon(reader)
    await conn.commit()
    await conn.close()
    async with database.writing() as writer:
        await insert_trust(writer, later)

    assert [row.id for row in await rows_after(database, horizon)] == [2, 3]


async def test_a_position_is_kept_and_never_goes_back(database: Database) -> None:
    async with database.writing() as conn:
        new = await read_position(conn, "streams")
        for position in (Position(10, 5), Position(9, 7), Position(10, 4)):
            await advance_position(conn, "streams", position)
        await advance_position(conn, "other", Position(2**62, 1))

    async with database.reading() as conn:
        assert new is None
        assert await read_position(conn, "streams") == Position(10, 5)
        assert await read_position(conn, "other") == Position(2**62, 1)
