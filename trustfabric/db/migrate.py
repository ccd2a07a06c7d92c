"""Forward-only migrations: `migrations/NNNN_name.sql`, one transaction each.

Any number of processes may start at once: one applies, the others wait for it. They
poll for the lock, since a session that blocks in pg_advisory_lock holds a snapshot,
which deadlocks with CREATE INDEX CONCURRENTLY in the one that has it.
"""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import LiteralString

import psycopg
import structlog

from trustfabric.db.faults import explained
from trustfabric.db.restored import take_over
from trustfabric.db.session import Connection
from trustfabric.errors import UnavailableError, UnsupportedError

log = structlog.get_logger(__name__)

POLL_S = 0.05
WAIT_S = 120.0
"""How long to wait for another process that migrates."""

_LOCK = 0x7472757374  # "trust"


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


_TABLE_SQL: LiteralString = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        version    integer PRIMARY KEY,
        name       text NOT NULL,
        sha256     text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""
_EXISTS_SQL: LiteralString = "SELECT to_regclass('schema_migrations') IS NOT NULL"
_APPLIED_SQL: LiteralString = """
    SELECT version, sha256 FROM schema_migrations ORDER BY version
"""
_RECORD_SQL: LiteralString = """
    INSERT INTO schema_migrations (version, name, sha256)
    VALUES (%(version)s, %(name)s, %(sha256)s)
"""
_TRY_LOCK_SQL: LiteralString = "SELECT pg_try_advisory_lock(%(key)s)"
_UNLOCK_SQL: LiteralString = "SELECT pg_advisory_unlock(%(key)s)"


async def migrate(
    url: str, *, migrations: Sequence[Migration] | None = None, wait_s: float = WAIT_S
) -> tuple[str, ...]:
    """Bring the database up to date; return the names of what was applied.

    One that was restored from another cluster's dump is made this cluster's own.

    UnsupportedError when the database is newer than this program, or was made by
    other files of the same numbers. `url` must lead to the server itself: a pooler
    that lends connections per transaction breaks the lock.
    """
    known = load() if migrations is None else migrations
    with explained():
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
            await _lock(conn, wait_s)
            try:
                await conn.execute(_TABLE_SQL)
                todo = _todo(known, await _applied(conn))
                for migration in todo:
                    await _apply(conn, migration)
                if migrations is None and await take_over(conn):
                    log.warning("database.restored", what="streams begin anew")
            finally:
                if not conn.broken:
                    await conn.execute(_UNLOCK_SQL, {"key": _LOCK})
    return tuple(migration.name for migration in todo)


async def pending(
    url: str, *, migrations: Sequence[Migration] | None = None
) -> tuple[str, ...]:
    """Return the names of what `migrate` would apply; change nothing."""
    known = load() if migrations is None else migrations
    with explained():
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
            todo = _todo(known, await _applied(conn))
    return tuple(migration.name for migration in todo)


def load(folder: Traversable | None = None) -> tuple[Migration, ...]:
    """Read the package's migrations, numbered from 1 without a gap, in order."""
    folder = folder or resources.files("trustfabric.db") / "migrations"
    found = sorted(
        (int(match[1]), match[2], entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", entry.name))
    )
    if [version for version, _, _ in found] != list(range(1, len(found) + 1)):
        raise UnsupportedError("the installed migrations are not numbered 1, 2, 3")
    return tuple(Migration(version=v, name=n, sql=sql) for v, n, sql in found)


async def _lock(conn: Connection, wait_s: float) -> None:
    try:
        async with asyncio.timeout(wait_s):
            while True:
                if await _scalar(conn, _TRY_LOCK_SQL):
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise UnavailableError(
            f"another process has been migrating the database for {wait_s:.0f} s"
        ) from None


async def _applied(conn: Connection) -> dict[int, str]:
    if not await _scalar(conn, _EXISTS_SQL):
        return {}
    cursor = await conn.execute(_APPLIED_SQL)
    return dict(await cursor.fetchall())


def _todo(known: Sequence[Migration], applied: dict[int, str]) -> tuple[Migration, ...]:
    newest = max(applied, default=0)
    if newest > len(known):
        raise UnsupportedError(
            f"the database is newer (migration {newest:04}) than this program "
            f"({len(known):04}): install the newer version"
        )
    for migration in known[:newest]:
        if applied.get(migration.version) != migration.sha256:
            raise UnsupportedError(
                f"migration {migration.version:04}_{migration.name} is not the one "
                "that made this database"
            )
    return tuple(known[newest:])


async def _apply(conn: Connection, migration: Migration) -> None:
    async with conn.transaction():
        await conn.execute("SET LOCAL lock_timeout = '5s'")
        await conn.execute(migration.sql.encode())
        await conn.execute(
            _RECORD_SQL,
            {
                "version": migration.version,
                "name": migration.name,
                "sha256": migration.sha256,
            },
        )


async def _scalar(conn: Connection, sql: LiteralString) -> bool:
    row = await (await conn.execute(sql, {"key": _LOCK})).fetchone()
    assert row is not None
    return bool(row[0])
