"""The way into PostgreSQL: a pool of connections, and a transaction for each use.

A connection of the pool may have died since its last use: that shows at BEGIN, when
nothing was done yet, so BEGIN alone is retried. Errors are translated here (faults.py).
"""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import LiteralString, Self, TypeAlias, TypeVar

import orjson
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg_pool import AsyncConnectionPool

from trustfabric.db.faults import (
    CommitUnknownError,
    connection_lost,
    explained,
    translate,
    translated,
)
from trustfabric.errors import UnavailableError, UnsupportedError

Connection: TypeAlias = psycopg.AsyncConnection[TupleRow]
Pool: TypeAlias = AsyncConnectionPool[Connection]
R = TypeVar("R")

OLDEST_SERVER = 14
OPEN_S = 10.0
"""How long opening, closing and waiting for a free connection may take."""

SINGLES = 2
"""Connections for statements that are a transaction each: one after another they go
over the same one, whose process has all it needs at hand."""

GLANCES = 4
"""Connections for single reads: each is used for less than a millisecond."""

TRANSACTION_S = 30.0
"""After this long a transaction is cut off, whatever it waits for."""

IDLE_S = 5.0
"""After this long one is cut off that we do nothing in: then we were stopped, and what
it has locked others wait for."""

_READ_SQL: LiteralString = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE_SQL: LiteralString = "BEGIN"

_KEEPALIVE = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

_SETTINGS_SQL: LiteralString = """
    SELECT set_config('TimeZone', 'UTC', false),
           set_config('lock_timeout', '10s', false),
           set_config('statement_timeout', %(limit)s, false),
           set_config('idle_in_transaction_session_timeout', %(idle)s, false)
"""


class Database:
    """Transactions on one PostgreSQL; made by `open`, shared by everybody."""

    def __init__(
        self,
        pool: Pool,
        singles: Pool,
        glances: Pool,
        limit_s: float,
    ) -> None:
        self._pool = pool
        self._singles = singles
        self._glances = glances
        self._limit_s = limit_s
        self._repair = asyncio.Lock()
        self._repairs = 0

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        pool_size: int = 8,
        application_name: str = "trustfabric",
        transaction_s: float = TRANSACTION_S,
        wait_s: float = OPEN_S,
    ) -> Self:
        """Connect, or raise UnavailableError saying why that is not possible.

        Nobody waits longer than `wait_s` for a free connection.
        """
        conninfo = await _probe(url, application_name)

        async def configure(conn: Connection) -> None:
            set_json_dumps(orjson.dumps, conn)
            set_json_loads(orjson.loads, conn)
            idle_s = min(transaction_s, IDLE_S)
            limits = {"limit": f"{transaction_s}s", "idle": f"{idle_s}s"}
            await conn.execute(_SETTINGS_SQL, limits)

        async def configure_glance(conn: Connection) -> None:
            await configure(conn)
            await conn.execute("SET default_transaction_read_only = on")

        def pool(
            least: int, most: int, prepare: Callable[[Connection], Awaitable[None]]
        ) -> Pool:
            return AsyncConnectionPool[Connection](
                conninfo,
                kwargs={"autocommit": True},
                configure=prepare,
                min_size=least,
                max_size=most,
                max_waiting=pool_size * 128,
                timeout=wait_s,
                open=False,
            )

        transactions = pool(min(2, pool_size), pool_size, configure)
        singles = pool(0, SINGLES, configure)
        glances = pool(0, GLANCES, configure_glance)
        with translated():
            await transactions.open(wait=True, timeout=OPEN_S)
            await singles.open()
            await glances.open()
        return cls(transactions, singles, glances, transaction_s)

    def usage(self) -> dict[str, dict[str, int]]:
        """Return the figures that each pool keeps of itself, by the pool's name."""
        pools = {
            "transactions": self._pool,
            "singles": self._singles,
            "glances": self._glances,
        }
        return {name: pool.get_stats() for name, pool in pools.items()}

    async def close(self) -> None:
        """Return when every connection is closed, those in use as well."""
        await self._glances.close(timeout=OPEN_S)
        await self._singles.close(timeout=OPEN_S)
        await self._pool.close(timeout=OPEN_S)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """One consistent view of everything; a write in it is refused."""
        async with self._transaction(_READ_SQL) as conn:
            with translated():
                yield conn

    async def glance(self, read: Callable[[Connection], Awaitable[R]]) -> R:
        """Return what one statement reads: without the two round trips around it.

        A write in it is refused; over a connection that had died it is done again.
        """
        with translated():
            try:
                return await self._glance(read)
            except psycopg.OperationalError as error:
                if not connection_lost(error):
                    raise
            await _to_the_end(self._glances.check())
            return await self._glance(read)

    async def at_once(self, statement: Callable[[Connection], Awaitable[R]]) -> R:
        """Return what one statement returns that is a transaction by itself.

        Nothing is held open around it, so nobody waits for a runtime that is frozen.
        CommitUnknownError where its answer is lost; it isn't done again.
        """
        with translated():
            conn = await self._sound()
        watch = asyncio.get_running_loop().call_later(self._limit_s, cut, conn)
        try:
            with translated():
                return await _committing(statement(conn))
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise UnavailableError("the database is read-only now") from error
        finally:
            watch.cancel()
            await _to_the_end(self._singles.putconn(conn))

    async def _sound(self) -> Connection:
        """Return a connection that hasn't died since its last use, as far as known."""
        conn = await self._singles.getconn()
        if not _has_mail(conn):
            return conn
        await self._singles.putconn(conn)
        await _to_the_end(self._singles.check())
        return await self._singles.getconn()

    async def _glance(self, read: Callable[[Connection], Awaitable[R]]) -> R:
        conn = await self._glances.getconn()
        watch = asyncio.get_running_loop().call_later(self._limit_s, cut, conn)
        try:
            return await read(conn)
        finally:
            watch.cancel()
            await _to_the_end(self._glances.putconn(conn))

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """All or nothing: committed at the end, or rolled back if anything raises.

        The commit is finished even when the caller is cancelled meanwhile.
        """
        async with self._transaction(_WRITE_SQL) as conn:
            try:
                with translated():
                    yield conn
            except psycopg.errors.ReadOnlySqlTransaction as error:
                raise UnavailableError("the database is read-only now") from error
            if conn.info.transaction_status == TransactionStatus.INERROR:
                raise RuntimeError("a statement failed: this can't be committed")
            await _to_the_end(_commit(conn))

    @asynccontextmanager
    async def _transaction(self, begin: LiteralString) -> AsyncIterator[Connection]:
        with translated():
            conn = await self._begin(begin)
        watch = asyncio.get_running_loop().call_later(self._limit_s, cut, conn)
        try:
            yield conn
        finally:
            watch.cancel()
            await _to_the_end(self._give_back(conn))

    async def _begin(self, begin: LiteralString) -> Connection:
        repairs = self._repairs
        try:
            return await self._try_begin(begin)
        except psycopg.OperationalError as error:
            if not connection_lost(error):
                raise
        await self._mend(repairs)
        return await self._try_begin(begin)

    async def _mend(self, repairs: int) -> None:
        """Have dead connections replaced, once for all who found one."""
        async with self._repair:
            if repairs == self._repairs:
                await _to_the_end(self._pool.check())
                self._repairs += 1

    async def _try_begin(self, begin: LiteralString) -> Connection:
        conn = await self._pool.getconn()
        watch = asyncio.get_running_loop().call_later(self._limit_s, cut, conn)
        try:
            await conn.execute(begin)
        except BaseException:
            await _to_the_end(self._give_back(conn))
            raise
        finally:
            watch.cancel()
        return conn

    async def _give_back(self, conn: Connection) -> None:
        if conn.info.transaction_status in _OPEN:
            with contextlib.suppress(psycopg.Error):  # broken: the pool sees to it
                await conn.rollback()
        await self._pool.putconn(conn)


_OPEN = {TransactionStatus.INTRANS, TransactionStatus.INERROR}


@asynccontextmanager
async def savepoint(conn: Connection) -> AsyncIterator[None]:
    """Undo only what was done inside if it raises; the transaction goes on."""
    with translated():
        async with conn.transaction():
            yield


async def _probe(url: str, application_name: str) -> str:
    """Return what to connect with, tried once: the pool would only time out."""
    with explained():
        conninfo = make_conninfo(url, application_name=application_name, **_KEEPALIVE)
        conn = await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, connect_timeout=int(OPEN_S)
        )
    async with conn:
        version = conn.info.server_version // 10_000
        encoding = conn.info.parameter_status("server_encoding")
    if version < OLDEST_SERVER:
        raise UnsupportedError(
            f"PostgreSQL {version} is too old: {OLDEST_SERVER} or newer is needed"
        )
    if encoding != "UTF8":
        raise UnsupportedError(
            f"the database's encoding is {encoding}: make one with ENCODING 'UTF8'"
        )
    return conninfo


async def _commit(conn: Connection) -> None:
    await _committing(conn.commit())


async def _committing(statement: Awaitable[R]) -> R:
    try:
        return await statement
    except psycopg.OperationalError as error:
        if connection_lost(error):
            raise CommitUnknownError from error
        raise translate(error) or error from error
    except psycopg.Error as error:
        raise translate(error) or error from error


def _has_mail(conn: Connection) -> bool:
    """Whether the server said something unasked: as a rule, that it hung up."""
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def _to_the_end(work: Awaitable[None]) -> None:
    """Let `work` end even if we are cancelled; then pass the cancellation on."""
    task = asyncio.ensure_future(work)  # noqa: TID251  a commit half waited for is worse
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def cut(conn: Connection) -> None:
    """End whatever the connection waits for: a silent link would wait for ever."""
    if not conn.closed:
        with socket.socket(fileno=os.dup(conn.fileno())) as link:
            link.shutdown(socket.SHUT_RDWR)
