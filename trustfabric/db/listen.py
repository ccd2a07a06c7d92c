"""Hearing that something was written.

A notification is only a hint: it is lost when nobody listens, and says nothing of
what came before. So whoever listens opens `Wakeups` first, then reads on from its
position, and reads on again at every wake-up and at every time-out of `wait`.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, Self

import psycopg
from psycopg import sql

from trustfabric.db.faults import explained
from trustfabric.db.session import Connection, cut

TRUST_CHANNEL = "runtime_vm_trust_transition"
REMEDIATION_CHANNEL = "runtime_vm_remediation"

ANSWER_S = 5.0
"""A server that is silent for longer than this is gone."""


class Listening:
    """One connection that does nothing but listen.

    Lost connections are the owner's to open again: every method raises
    UnavailableError for one, and `close` is due all the same.
    """

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    @classmethod
    async def open(
        cls, url: str, channels: Iterable[str], *, name: str = "listener"
    ) -> Self:
        """Return when each of `channels` is listened to."""
        with explained():
            conn = await psycopg.AsyncConnection.connect(
                url,
                autocommit=True,
                application_name=f"trustfabric {name}",
                connect_timeout=int(ANSWER_S),
            )
            listening = cls(conn)
            try:
                for channel in channels:
                    listen = sql.SQL("LISTEN {}").format(sql.Identifier(channel))
                    await listening._within(conn.execute(listen))
            except BaseException:
                await listening.close()
                raise
        return listening

    async def notes(self, timeout_s: float) -> list[psycopg.Notify]:
        """Return the next, and all that came with it; none after `timeout_s`.

        After silence the connection is tried, so that a dead peer is noticed.
        """
        with explained():
            notifies = self._conn.notifies(timeout=timeout_s, stop_after=1)
            notes = [note async for note in notifies]
            if notes:
                notes += self._come_with_them()
            else:
                await self._within(self._conn.execute("SELECT 1"))
        return notes

    def _come_with_them(self) -> Iterator[psycopg.Notify]:
        pgconn = self._conn.pgconn
        pgconn.consume_input()
        while (note := pgconn.notifies()) is not None:
            yield psycopg.Notify(
                note.relname.decode(), note.extra.decode(), note.be_pid
            )

    async def close(self) -> None:
        await self._conn.close()

    def drop(self) -> None:
        """Close it at once, where nobody waits on it and nothing can be awaited."""
        self._conn.pgconn.finish()

    def drop_with(self, wait: asyncio.Task[Any]) -> None:
        """Drop it when this wait is cancelled, be it before its first step."""
        wait.add_done_callback(lambda ended: self.drop() if ended.cancelled() else None)

    async def _within(self, statement: Awaitable[object]) -> None:
        watch = asyncio.get_running_loop().call_later(ANSWER_S, cut, self._conn)
        try:
            await statement
        finally:
            watch.cancel()


class Wakeups(Listening):
    """Hears which channels were notified."""

    async def wait(self, timeout_s: float) -> frozenset[str]:
        """Return the channels that were notified; none after `timeout_s`."""
        return frozenset(note.channel for note in await self.notes(timeout_s))
