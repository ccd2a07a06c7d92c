"""Hearing that something was written, and remembering up to where it was read.

A notification is only a hint: it is lost when nobody listens, and says nothing of
what came before. So whoever listens opens `Wakeups` first, then reads on from its
position, and reads on again at every wake-up and at every time-out of `wait`. Rows
are read in the order of (xid, id) and only below the snapshot's horizon: a row that
commits late is then held back, never skipped.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from typing import LiteralString, Self

import psycopg
from psycopg import sql

from trustfabric.db.faults import explained
from trustfabric.db.session import Connection, cut
from trustfabric.domain.events import Position

TRUST_CHANNEL = "runtime_vm_trust_transition"
REMEDIATION_CHANNEL = "runtime_vm_remediation"

ANSWER_S = 5.0
"""A server that is silent for longer than this is gone."""


class Wakeups:
    """One connection that does nothing but listen.

    Lost connections are the owner's to open again: every method raises
    UnavailableError for one, and `close` is due all the same.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    @classmethod
    async def open(cls, url: str, channels: Iterable[str]) -> Self:
        """Return when each of `channels` is listened to."""
        with explained():
            conn = await psycopg.AsyncConnection.connect(
                url,
                autocommit=True,
                application_name="trustfabric listener",
                connect_timeout=int(ANSWER_S),
            )
            wakeups = cls(conn)
            try:
                for channel in channels:
                    name = sql.Identifier(channel)
                    await wakeups._within(
                        conn.execute(sql.SQL("LISTEN {}").format(name))
                    )
            except BaseException:
                await wakeups.close()
                raise
        return wakeups

    async def wait(self, timeout_s: float) -> frozenset[str]:
        """Return the channels that were notified; none after `timeout_s`.

        After silence the connection is tried, so that a dead peer is noticed.
        """
        with explained():
            heard = {
                note.channel
                async for note in self._conn.notifies(timeout=timeout_s, stop_after=1)
            }
            if heard:
                heard.update(self._come_with_it())
            else:
                await self._within(self._conn.execute("SELECT 1"))
        return frozenset(heard)

    def _come_with_it(self) -> Iterator[str]:
        """Yield the channels of all that has come: many notes are one wake-up."""
        pgconn = self._conn.pgconn
        pgconn.consume_input()
        while (note := pgconn.notifies()) is not None:
            yield note.relname.decode()

    async def close(self) -> None:
        await self._conn.close()

    def drop(self) -> None:
        """Close it at once, where nobody waits on it and nothing can be awaited."""
        self._conn.pgconn.finish()

    async def _within(self, statement: Awaitable[object]) -> None:
        watch = asyncio.get_running_loop().call_later(ANSWER_S, cut, self._conn)
        try:
            await statement
        finally:
            watch.cancel()


_READ_SQL: LiteralString = """
    SELECT xid::text, id FROM listener_positions WHERE name = %(name)s
"""


async def read_position(conn: Connection, name: str) -> Position | None:
    """Return up to where the reader called `name` has read; None: it is new."""
    row = await (await conn.execute(_READ_SQL, {"name": name})).fetchone()
    return None if row is None else Position(int(row[0]), row[1])


_ADVANCE_SQL: LiteralString = """
    INSERT INTO listener_positions AS kept (name, xid, id)
    VALUES (%(name)s, %(xid)s::xid8, %(id)s)
        ON CONFLICT (name) DO UPDATE
       SET xid = excluded.xid, id = excluded.id, updated_at = now()
     WHERE (kept.xid, kept.id) < (excluded.xid, excluded.id)
"""


async def advance_position(conn: Connection, name: str, position: Position) -> None:
    """Remember that `name` has read up to `position`; never goes back."""
    await conn.execute(
        _ADVANCE_SQL, {"name": name, "xid": str(position.xid), "id": position.id}
    )


_HORIZON_SQL: LiteralString = """
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text
"""


async def read_horizon(conn: Connection) -> Position:
    """Return the position from which everything not yet readable follows.

    Where a reader starts that wants only what is new: it misses nothing that is
    being written now.
    """
    row = await (await conn.execute(_HORIZON_SQL)).fetchone()
    assert row is not None
    return Position(int(row[0]), 0)
