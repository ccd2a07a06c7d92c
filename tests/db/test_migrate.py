"""Migrations: applied once, in order, by one process, or not at all."""

import asyncio
import sys
from pathlib import Path

import psycopg
import pytest

from trustfabric.db.migrate import Migration, load, migrate, pending
from trustfabric.errors import UnavailableError, UnsupportedError


def a_migration(version: int, sql: str) -> Migration:
    return Migration(version=version, name=f"step_{version}", sql=sql)


ONE = a_migration(1, "CREATE TABLE one (id int); INSERT INTO one VALUES (1)")
TWO = a_migration(2, "CREATE TABLE two (id int)")


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname='public'")
        return {name for (name,) in rows}


async def test_an_empty_database_gets_everything(blank_database_url: str) -> None:
    applied = await migrate(blank_database_url)

    assert applied == tuple(migration.name for migration in load())
    assert {"users", "runtime_vm_trust_registry"} <= tables(blank_database_url)


async def test_the_second_time_nothing_is_left_to_do(database_url: str) -> None:
    assert await pending(database_url) == ()
    assert await migrate(database_url) == ()


async def test_only_what_is_new_is_applied(blank_database_url: str) -> None:
    await migrate(blank_database_url, migrations=[ONE])

    assert await pending(blank_database_url, migrations=[ONE, TWO]) == ("step_2",)
    assert await migrate(blank_database_url, migrations=[ONE, TWO]) == ("step_2",)


async def test_looking_changes_nothing(blank_database_url: str) -> None:
    assert await pending(blank_database_url, migrations=[ONE]) == ("step_1",)

    assert tables(blank_database_url) == set()


async def test_a_migration_that_fails_leaves_nothing_of_itself(
    blank_database_url: str,
) -> None:
    broken = a_migration(2, "CREATE TABLE half (id int); SELECT 1/0")

    with pytest.raises(UnavailableError, match="division by zero"):
        await migrate(blank_database_url, migrations=[ONE, broken])

    assert tables(blank_database_url) == {"schema_migrations", "one"}
    assert await migrate(blank_database_url, migrations=[ONE, TWO]) == ("step_2",)


async def test_a_newer_database_is_refused(blank_database_url: str) -> None:
    await migrate(blank_database_url, migrations=[ONE, TWO])

    with pytest.raises(UnsupportedError, match="newer"):
        await migrate(blank_database_url, migrations=[ONE])


async def test_a_database_made_by_another_file_is_refused(
    blank_database_url: str,
) -> None:
    await migrate(blank_database_url, migrations=[ONE])

    with pytest.raises(UnsupportedError, match="0001_step_1"):
        await migrate(blank_database_url, migrations=[a_migration(1, "SELECT 1"), TWO])


async def test_of_many_processes_one_applies_and_all_succeed(
    blank_database_url: str,
) -> None:
    program = (
        "import asyncio, sys; from trustfabric.db.migrate import migrate; "
        "print(len(asyncio.run(migrate(sys.argv[1]))))"
    )

    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, blank_database_url),
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    told = [await process.communicate() for process in processes]

    counts = sorted(int(out) for out, _ in told)
    assert counts == [0, 0, 0, len(load())]


async def test_whoever_waits_too_long_says_so(blank_database_url: str) -> None:
    with psycopg.connect(blank_database_url) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", [0x7472757374])

        with pytest.raises(UnavailableError, match="another process"):
            await migrate(blank_database_url, migrations=[ONE], wait_s=0.1)


async def test_a_killed_migrator_blocks_nobody(blank_database_url: str) -> None:
    waits = a_migration(1, "CREATE TABLE one (id int); SELECT pg_sleep(60)")
    killed = asyncio.create_task(migrate(blank_database_url, migrations=[waits]))
    with psycopg.connect(blank_database_url, autocommit=True) as conn:
        query = """
            SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
             WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()
               AND datname = current_database()
        """
        while conn.execute(query).fetchone() is None:
            await asyncio.sleep(0.01)
    with pytest.raises(UnavailableError):
        await killed

    assert await migrate(blank_database_url, migrations=[ONE]) == ("step_1",)


def test_files_are_numbered_from_one_without_a_gap(tmp_path: Path) -> None:
    for name in ("0001_first.sql", "0003_third.sql"):
        (tmp_path / name).write_text("SELECT 1")

    with pytest.raises(UnsupportedError):
        load(tmp_path)


def test_other_files_do_not_count(tmp_path: Path) -> None:
    for name in ("0001_first.sql", "README.md", "2_second.sql", "0002_x.sql~"):
        (tmp_path / name).write_text("SELECT 1")

    assert [migration.name for migration in load(tmp_path)] == ["first"]
