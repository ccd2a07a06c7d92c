"""A database of its own for each test, cloned from a migrated template.

The cluster lives in memory where there is any and does not fsync: tests of what
survives a crash start one of their own. All workers of a run share it, and it ends
with the last of them, however that ends.
"""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from trustfabric.db.embedded import start_embedded
from trustfabric.db.migrate import migrate
from trustfabric.db.session import Database

TEMPLATE = "template_migrated"

_QUICK = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
    "autovacuum": "off",
    "deadlock_timeout": "20ms",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "_cluster_url" in getattr(item, "fixturenames", ()):
            item.add_marker("db")


@pytest.fixture(scope="session")
def _cluster_url(testrun_uid: str) -> Iterator[str]:
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else Path("/tmp")
    home = parent / f"trustfabric-tests-{testrun_uid}"
    server = asyncio.run(start_embedded(home, settings=_QUICK))
    try:
        yield server.url
    finally:
        asyncio.run(server.stop())
        if not (home / "pg" / "postmaster.pid").exists():
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def _template_url(_cluster_url: str) -> str:
    url = make_conninfo(_cluster_url, dbname=TEMPLATE)
    with psycopg.connect(_cluster_url, autocommit=True) as conn:
        conn.execute("SELECT pg_advisory_lock(1)")
        found = conn.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", [TEMPLATE]
        ).fetchone()
        if not found:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
            asyncio.run(migrate(url))
    return url


def _with_database(cluster_url: str, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(cluster_url, autocommit=True) as conn:
        conn.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        yield make_conninfo(cluster_url, dbname=name)
        conn.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        )


@pytest.fixture
def database_url(_cluster_url: str, _template_url: str) -> Iterator[str]:
    """A migrated, empty database."""
    yield from _with_database(_cluster_url, TEMPLATE)


@pytest.fixture
def blank_database_url(_cluster_url: str) -> Iterator[str]:
    """A database without any table."""
    yield from _with_database(_cluster_url, "template1")


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The same database, opened."""
    opened = await Database.open(database_url)
    try:
        yield opened
    finally:
        await opened.close()
