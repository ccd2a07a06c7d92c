"""The Listener: hears NOTIFY, and reads on from where the Broadcaster stands."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import structlog

from trustfabric.actors.streams import (
    Broadcaster,
    Event,
    Feed,
    Head,
    Publish,
    Stream,
    position_name,
)
from trustfabric.db.listen import Wakeups
from trustfabric.db.positions import advance_position
from trustfabric.db.session import Connection, Database
from trustfabric.domain.events import Position
from trustfabric.errors import FabricError, UnavailableError
from trustfabric.supervision import Actor, Address, AskError, Notice
from trustfabric.supervision.exits import Exit

log = structlog.get_logger(__name__)

POLL_S = 2.0
"""Notifications are hints; this is how late a lost one is found."""

HORIZON_S = 0.02
"""Wait before looking again after something happened: a row that was heard may be
above the snapshot horizon as yet. Doubled with each look, up to the poll."""

BATCH = 1000
UNSAVED = 10 * BATCH
"""Events that the next start may have to read again after a flood."""

RECONNECT_S = (0.05, 5.0)
ASK_S = 5.0


@dataclass(frozen=True, slots=True)
class _Connect(Notice["Listener"]):
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class _Woken(Notice["Listener"]):
    heard: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Lost(Notice["Listener"]):
    error: BaseException


class Listener(Actor):
    """Hears that rows were committed, and reads them for the Broadcaster."""

    def __init__(
        self,
        database: Database,
        broadcaster: Address[Broadcaster],
        feeds: Sequence[Feed],
        name: str,
        open_wakeups: Callable[[Sequence[str]], Awaitable[Wakeups]],
    ) -> None:
        super().__init__()
        self._database = database
        self._open_wakeups = open_wakeups
        self._broadcaster = broadcaster
        self._feeds = tuple(feeds)
        self._name = name
        self._wakeups: Wakeups | None = None
        self._pause_s = POLL_S
        self._hearing: asyncio.Task[frozenset[str]] | None = None
        # At first as well: whoever starts without a position starts at the present.
        self._unsaved = dict.fromkeys((feed.stream for feed in feeds), 1)

    async def on_start(self) -> None:
        self.address.tell(_Connect())

    def on_death(self, exit_: Exit) -> None:
        super().on_death(exit_)
        if self._wakeups is not None and (
            self._hearing is None or self._hearing.done()
        ):
            self._wakeups.drop()

    async def handle(self, message: _Connect | _Woken | _Lost) -> None:
        match message:
            case _Connect(attempt):
                await self._connect(attempt)
            case _Woken(heard):
                await self._read_on(heard)
            case _Lost(error):
                log.warning("listener.lost", error=str(error))
                await self._drop()
                self.after(RECONNECT_S[0], _Connect())
            case _:
                assert_never(message)

    async def _connect(self, attempt: int) -> None:
        try:
            # LISTEN first, then look: what commits in between is heard.
            self._wakeups = await self._open_wakeups(
                tuple(feed.channel for feed in self._feeds)
            )
        except UnavailableError as error:
            log.warning("listener.unreachable", error=str(error), attempt=attempt)
            low, high = RECONNECT_S
            self.after(min(high, low * 2**attempt), _Connect(min(attempt + 1, 16)))
            return
        await self._read_on(frozenset())

    async def _read_on(self, heard: frozenset[str]) -> None:
        try:
            counts = [
                await self._drain(feed)
                for feed in self._feeds
                if not heard or feed.channel in heard
            ]
            for stream, unsaved in self._unsaved.items():
                if unsaved >= UNSAVED or (unsaved and not heard):
                    await self._save(stream)
        except (FabricError, AskError) as error:
            self.address.tell(_Lost(error))
            return
        happened = bool(heard) or any(counts)
        self._pause_s = HORIZON_S if happened else min(POLL_S, 2 * self._pause_s)
        self._wait(self._pause_s)

    async def _drain(self, feed: Feed) -> int:
        """Publish all that is new; return how many events that were."""
        count = 0
        while True:
            head = await self._broadcaster.ask(Head(feed.stream), within_s=ASK_S)
            events = await self._database.glance(partial(_read, feed, head))
            if events:
                publish = Publish(feed.stream, head, events)
                if not await self._broadcaster.ask(publish, within_s=ASK_S):
                    continue
                count += len(events)
                self._unsaved[feed.stream] += len(events)
            if len(events) < BATCH:
                return count

    async def _save(self, stream: Stream) -> None:
        """Keep the position: for the next start, so it may lag while much happens."""
        head = await self._broadcaster.ask(Head(stream), within_s=ASK_S)
        async with self._database.writing() as conn:
            await advance_position(conn, position_name(self._name, stream), head)
        self._unsaved[stream] = 0

    def _wait(self, timeout_s: float) -> None:
        if self._wakeups is None:
            self.address.tell(_Connect())
            return
        self._hearing = self.run(self._wakeups.wait(timeout_s), _woken)
        self._wakeups.drop_with(self._hearing)

    async def _drop(self) -> None:
        if self._wakeups is not None:
            await self._wakeups.close()
            self._wakeups = None


async def _read(feed: Feed, head: Position, conn: Connection) -> Sequence[Event]:
    return await feed.read(conn, head, limit=BATCH)


def _woken(result: frozenset[str] | BaseException) -> _Woken | _Lost:
    if isinstance(result, BaseException):
        return _Lost(result)
    return _Woken(result)
