"""Transactions: what is kept, what is refused, and what a lost connection means."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.builders import insert_instance, insert_run
from tests.fix_fabric import until
from trustfabric.db.faults import CommitUnknownError, ContentionError
from trustfabric.db.session import Connection, Database, savepoint
from trustfabric.errors import RunActiveError, UnavailableError


async def add_user(conn: Connection, number: int) -> None:
    await conn.execute("INSERT INTO users (id) VALUES (%s)", [number])


async def users(database: Database) -> list[int]:
    async with database.reading() as conn:
        cursor = await conn.execute("SELECT id FROM users ORDER BY id")
        return [number for (number,) in await cursor.fetchall()]


def kill_backends(database_url: str, pids: list[int]) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("SELECT pg_terminate_backend(p, 5000) FROM unnest(%s) p", [pids])


def kill_all_backends(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(
            """
            SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()
            """
        )


@contextlib.contextmanager
def silent(conn: Connection) -> Iterator[None]:
    """The server takes what is sent and answers nothing."""
    backend = conn.info.backend_pid
    os.kill(backend, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(backend, signal.SIGCONT)


async def test_what_was_written_is_read(database: Database) -> None:
    async with database.writing() as conn:
        await add_user(conn, 7)

    assert await users(database) == [7]


async def test_whatever_raises_undoes_everything(database: Database) -> None:
    async def fail() -> None:
        async with database.writing() as conn:
            await add_user(conn, 7)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert await users(database) == []


async def test_a_transaction_with_a_failed_statement_is_never_committed(
    database: Database,
) -> None:
    async def swallow() -> None:
        async with database.writing() as conn:
            await add_user(conn, 7)
            with contextlib.suppress(psycopg.errors.UniqueViolation):
                await add_user(conn, 7)

    with pytest.raises(RuntimeError, match="a statement failed"):
        await swallow()

    assert await users(database) == []


async def test_a_savepoint_undoes_only_what_was_done_in_it(database: Database) -> None:
    async def fail(conn: Connection) -> None:
        async with savepoint(conn):
            await add_user(conn, 8)
            raise ZeroDivisionError

    async with database.writing() as conn:
        await add_user(conn, 7)
        with pytest.raises(ZeroDivisionError):
            await fail(conn)

    assert await users(database) == [7]


async def test_a_reader_can_not_write(database: Database) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        async with database.reading() as conn:
            await add_user(conn, 7)


async def test_a_glance_reads_and_can_not_write(database: Database) -> None:
    async def count(conn: Connection) -> int:
        return (await conn.execute("SELECT 1 FROM users")).rowcount

    async with database.writing() as conn:
        await add_user(conn, 7)

    assert await database.glance(count) == 1
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        await database.glance(partial(add_user, number=8))
    assert await database.glance(count) == 1


async def test_a_glance_over_a_connection_that_died_is_done_again(
    database_url: str, database: Database
) -> None:
    async def count(conn: Connection) -> int:
        return (await conn.execute("SELECT 1 FROM users")).rowcount

    await asyncio.gather(*(database.glance(count) for _ in range(8)))
    kill_all_backends(database_url)

    seen = await asyncio.gather(*(database.glance(count) for _ in range(20)))

    assert seen == [0] * 20


async def test_a_reader_sees_one_moment(database: Database) -> None:
    async with database.reading() as conn:
        before = await (await conn.execute("SELECT count(*) FROM users")).fetchone()
        async with database.writing() as other:
            await add_user(other, 7)
        after = await (await conn.execute("SELECT count(*) FROM users")).fetchone()

    assert before == after == (0,)
    assert await users(database) == [7]


async def test_a_named_constraint_is_a_named_error(database: Database) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
        await insert_run(conn, instance)

    with pytest.raises(RunActiveError) as caught:
        async with database.writing() as conn:
            await insert_run(conn, instance)

    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)


async def test_a_savepoint_names_the_error_and_the_transaction_goes_on(
    database: Database,
) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
        await insert_run(conn, instance)
        with pytest.raises(RunActiveError):
            async with savepoint(conn):
                await insert_run(conn, instance)
        await add_user(conn, 8)

    assert await users(database) == [7, 8]


async def test_a_mistake_in_sql_stays_what_it_is(database: Database) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        async with database.reading() as conn:
            await conn.execute("SELECT * FROM no_such_table")


async def test_one_of_two_that_deadlock_may_try_again(database: Database) -> None:
    async with database.writing() as conn:
        await add_user(conn, 1)
        await add_user(conn, 2)
    both = asyncio.Barrier(2)

    async def lock(first: int, second: int) -> None:
        query = "SELECT id FROM users WHERE id = %s FOR UPDATE"
        async with database.writing() as conn:
            await conn.execute(query, [first])
            await both.wait()
            await conn.execute(query, [second])

    results = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)

    assert [type(result) for result in results if result] == [ContentionError]


async def test_connections_that_died_unused_are_replaced_unseen(
    database_url: str, database: Database
) -> None:
    await asyncio.gather(*(users(database) for _ in range(8)))
    kill_all_backends(database_url)

    async with asyncio.timeout(10):
        assert await asyncio.gather(*(users(database) for _ in range(20))) == [[]] * 20


@pytest.mark.parametrize("way", ["glance", "reading", "at_once"])
async def test_who_gives_up_while_dead_connections_are_replaced_ends_and_loses_none(
    database_url: str, database: Database, way: str
) -> None:
    async def look(conn: Connection) -> None:
        await conn.execute("SELECT pg_sleep(0.005)")

    async def read() -> None:
        if way == "reading":
            await users(database)
        else:
            await getattr(database, way)(look)

    await asyncio.gather(*(read() for _ in range(8)))
    pool = {
        "glance": database._glances,
        "reading": database._pool,
        "at_once": database._singles,
    }[way]
    *others, last = pool._pool
    assert others
    kill_backends(database_url, [one.info.backend_pid for one in others])
    with silent(last):  # the first to be tried
        reading = asyncio.create_task(read())
        async with asyncio.timeout(20):
            while last in pool._pool:
                await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([reading])

    assert reading.cancelled()  # what the pool does by itself ends a cancellation
    async with asyncio.timeout(20):
        await asyncio.gather(*(read() for _ in range(20)))
        while (stats := pool.get_stats())["pool_available"] < stats["pool_size"]:
            await asyncio.sleep(0.01)


async def test_a_connection_lost_at_work_is_unavailable(
    database_url: str, database: Database
) -> None:
    async def lose() -> None:
        async with database.writing() as conn:
            await add_user(conn, 7)
            kill_all_backends(database_url)
            await add_user(conn, 8)

    with pytest.raises(UnavailableError):
        await lose()

    assert await users(database) == []


async def test_a_connection_lost_while_committing_says_that_nobody_knows(
    database_url: str, database: Database
) -> None:
    async def lose() -> None:
        async with database.writing() as conn:
            await add_user(conn, 7)
            kill_all_backends(database_url)

    with pytest.raises(CommitUnknownError) as caught:
        await lose()

    assert caught.value.facts == {"outcome": "unknown"}


async def test_a_server_that_falls_silent_is_given_up(database_url: str) -> None:
    database = await Database.open(database_url, transaction_s=0.3)

    async def wait() -> None:
        async with database.writing() as conn:
            with silent(conn):
                await add_user(conn, 7)

    with pytest.raises(UnavailableError):
        await wait()

    await database.close()


async def test_a_statement_that_takes_too_long_is_unavailable(
    database_url: str,
) -> None:
    database = await Database.open(database_url, transaction_s=0.3)

    with pytest.raises(UnavailableError):
        async with database.reading() as conn:
            await conn.execute("SELECT pg_sleep(5)")

    assert await users(database) == []
    await database.close()


async def test_nobody_waits_for_ever_for_a_connection(database_url: str) -> None:
    database = await Database.open(database_url, pool_size=1, wait_s=0.1)

    async with database.reading():
        with pytest.raises(UnavailableError):
            await users(database)

    await database.close()


async def test_a_commit_ends_although_its_caller_was_cancelled(
    database: Database, database_url: str
) -> None:
    async with database.writing() as conn:
        await conn.execute(
            """
            CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END'
            """
        )
        await conn.execute(
            """
            CREATE CONSTRAINT TRIGGER dawdles AFTER INSERT ON users
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()
            """
        )

    async def write() -> None:
        async with database.writing() as conn:
            await add_user(conn, 7)

    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True
    ) as other:

        async def is_committing() -> bool | None:
            cursor = await other.execute(
                "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                " AND database = (SELECT oid FROM pg_database"
                " WHERE datname = current_database())"
            )
            return await cursor.fetchone() is not None or None

        await other.execute("SELECT pg_advisory_lock(77)")
        task = asyncio.create_task(write())
        await until(is_committing, "the commit to begin")
        task.cancel()
        await asyncio.sleep(0)  # so that it is told before it could end
        await other.execute("SELECT pg_advisory_unlock(77)")
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await users(database) == [7]


async def test_cancelled_callers_leave_the_pool_whole(database: Database) -> None:
    chance = random.Random(1)

    async def write(number: int) -> None:
        async with database.writing() as conn:
            await add_user(conn, number)
            await conn.execute("SELECT pg_sleep(0.002)")

    for number in range(100):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0, 0.006)):
                await write(number)

    async with asyncio.timeout(5), contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(database.reading())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"dbname": "no_such_database"}, "pg_hba|no_such_database"),
        ({"host": "/nowhere"}, "/nowhere"),
        ({"sslmode": "no such mode"}, "no such mode"),
    ],
)
async def test_a_server_that_can_not_be_had_is_told_at_once(
    database_url: str, change: dict[str, str], words: str
) -> None:
    url = psycopg.conninfo.make_conninfo(database_url, **change)

    async with asyncio.timeout(10):
        with pytest.raises(UnavailableError, match=words):
            await Database.open(url)


async def test_values_keep_their_meaning(database: Database) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    data = {"ü": [1, None, 2**53, "\u2028", 1.5], "at": {}}

    async with database.reading() as conn:
        cursor = await conn.execute(
            "SELECT %s::jsonb, %s::timestamptz, %s::timestamptz + '1 day'",
            [Jsonb(data), now, now],
        )
        row = await cursor.fetchone()

    assert row == (data, now, now + timedelta(days=1))
    assert row[1].tzname() == "UTC"


async def test_what_is_written_at_once_takes_a_connection_that_lives(
    database: Database, database_url: str
) -> None:
    async def write(conn: Connection) -> int:
        cursor = await conn.execute("INSERT INTO users DEFAULT VALUES RETURNING id")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    first = await database.at_once(write)
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True
    ) as admin:
        await admin.execute(
            """
            SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()
            """
        )

    assert await database.at_once(write) == first + 1
