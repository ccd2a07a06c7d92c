"""The streams: committed rows, read in order and handed to everyone who follows.

The Listener hears NOTIFY and reads on from where the Broadcaster stands; the
Broadcaster hands each event to its followers and remembers the position. So a
Listener that dies, a lost connection or a lost notification costs a little time
and never an event; what followers missed for other reasons they read themselves.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any, Protocol, assert_never

import structlog

from trustfabric.db.listen import (
    Wakeups,
    advance_position,
    read_horizon,
    read_position,
)
from trustfabric.db.session import Connection, Database
from trustfabric.domain.events import Position, RemediationEvent, TrustEvent
from trustfabric.errors import FabricError, UnavailableError
from trustfabric.supervision import Actor, Address, AskError, Notice, Request
from trustfabric.supervision.exits import Exit

log = structlog.get_logger(__name__)

Event = TrustEvent | RemediationEvent
Accepts = Callable[[Event], bool]
"""Which events a follower wants. Those with equal ones share the work of choosing."""

POLL_S = 2.0
"""Notifications are hints; this is how late a lost one is found."""

HORIZON_S = 0.02
"""Wait before looking again after something happened: a row that was heard may be
above the snapshot horizon as yet. Doubled with each look, up to the poll."""

BATCH = 1000
RECONNECT_S = (0.05, 5.0)
ASK_S = 5.0


class Stream(StrEnum):
    """What can be followed."""

    TRUST = "trust"
    REMEDIATION = "remediation"


class Follower(Protocol):
    """Someone who wants a stream's events."""

    @property
    def stream(self) -> Stream:
        """Which stream."""
        ...

    @property
    def accepts(self) -> Accepts:
        """Which of its events are wanted."""
        ...

    def offer(self, events: Sequence[Event]) -> bool:
        """Take what is accepted, without waiting; False: forget this follower."""
        ...


def everything(_: Event) -> bool:
    """Accept any event."""
    return True


@dataclass(frozen=True, slots=True)
class ActorFollower:
    """Hands events to an actor as one notice; equal ones count once."""

    stream: Stream
    address: Address[Any]
    wrap: Callable[[tuple[Event, ...]], Notice[Any]]
    accepts: Accepts = everything

    def offer(self, events: Sequence[Event]) -> bool:
        self.address.tell(self.wrap(tuple(events)))
        return True


class Subscription:
    """A bounded buffer between the Broadcaster and one slow reader.

    Past its bound it keeps nothing more and says so: the reader goes back to the
    database, where everything is.
    """

    __slots__ = (
        "_buffer",
        "_capacity",
        "_ready",
        "accepts",
        "closed",
        "lagged",
        "stream",
    )

    def __init__(self, stream: Stream, accepts: Accepts, capacity: int) -> None:
        self.stream = stream
        self.accepts = accepts
        self.lagged = False
        self.closed = False
        self._capacity = capacity
        self._buffer: deque[Event] = deque()
        self._ready = asyncio.Event()

    def offer(self, events: Sequence[Event]) -> bool:
        if self.closed:
            return False
        if not self.lagged:
            self._buffer.extend(events)
            if len(self._buffer) > self._capacity:
                self._buffer.clear()
                self.lagged = True
        if self._buffer or self.lagged:
            self._ready.set()
        return True

    async def wait(self) -> None:
        """Return when there is something to `take`, or it lagged or closed."""
        await self._ready.wait()

    def take(self) -> list[Event]:
        """Return what has come, and forget that it lagged."""
        events = list(self._buffer)
        self._buffer.clear()
        self.lagged = False
        self._ready.clear()
        return events

    def close(self) -> None:
        """Let the reader go and take nothing more."""
        self.closed = True
        self._buffer.clear()
        self._ready.set()


class ReadAfter(Protocol):
    """Reads a stream's events after a position, up to another, in order."""

    async def __call__(
        self,
        conn: Connection,
        position: Position,
        *,
        upto: Position | None = None,
        limit: int,
    ) -> Sequence[Event]: ...


@dataclass(frozen=True, slots=True)
class Feed:
    """Where a stream's events come from."""

    stream: Stream
    channel: str
    read: ReadAfter


@dataclass(frozen=True, slots=True)
class Follow(Request["Broadcaster", Position]):
    """Follow a stream; the answer is where it stands: later events are offered.

    Repeating it is harmless, and finds out whether something was missed.
    """

    follower: Follower


@dataclass(frozen=True, slots=True)
class Unfollow(Notice["Broadcaster"]):
    follower: Follower


@dataclass(frozen=True, slots=True)
class Head(Request["Broadcaster", Position]):
    """Where a stream stands."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Publish(Request["Broadcaster", None]):
    """Hand events on; what was handed on before is left out."""

    stream: Stream
    events: Sequence[Event]


class Broadcaster(Actor):
    def __init__(self, database: Database, feeds: Sequence[Feed], name: str) -> None:
        super().__init__()
        self._database = database
        self._streams = tuple(feed.stream for feed in feeds)
        self._name = name
        self._heads: dict[Stream, Position] = {}
        self._followers: dict[Stream, dict[Accepts, dict[Follower, None]]] = {
            stream: {} for stream in self._streams
        }

    async def on_start(self) -> None:
        async with self._database.reading() as conn:
            for stream in self._streams:
                known = await read_position(conn, position_name(self._name, stream))
                self._heads[stream] = known or await read_horizon(conn)

    async def on_stop(self) -> None:
        for groups in self._followers.values():
            for follower in chain.from_iterable(groups.values()):
                if isinstance(follower, Subscription):
                    follower.close()

    async def handle(
        self, message: Follow | Unfollow | Head | Publish
    ) -> Position | None:
        match message:
            case Follow(follower):
                groups = self._followers[follower.stream]
                groups.setdefault(follower.accepts, {})[follower] = None
                return self._heads[follower.stream]
            case Unfollow(follower):
                self._forget(follower)
                return None
            case Head(stream):
                return self._heads[stream]
            case Publish(stream, events):
                self._publish(stream, events)
                return None
            case _:
                assert_never(message)

    def _publish(self, stream: Stream, events: Sequence[Event]) -> None:
        fresh = [event for event in events if event.position > self._heads[stream]]
        if not fresh:
            return
        self._heads[stream] = fresh[-1].position
        gone: list[Follower] = []
        for accepts, followers in self._followers[stream].items():
            if chosen := [event for event in fresh if accepts(event)]:
                gone += [one for one in followers if not one.offer(chosen)]
        for follower in gone:
            self._forget(follower)

    def _forget(self, follower: Follower) -> None:
        groups = self._followers[follower.stream]
        followers = groups.get(follower.accepts, {})
        followers.pop(follower, None)
        if not followers:
            groups.pop(follower.accepts, None)


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
            counts = [await self._drain(feed) for feed in self._feeds]
        except (FabricError, AskError) as error:
            self.address.tell(_Lost(error))
            return
        happened = bool(heard) or any(counts)
        self._pause_s = HORIZON_S if happened else min(POLL_S, 2 * self._pause_s)
        self._wait(self._pause_s)

    async def _drain(self, feed: Feed) -> int:
        """Publish all that is new; return how many events that were."""
        count = unsaved = 0
        while True:
            head = await self._broadcaster.ask(Head(feed.stream), within_s=ASK_S)
            async with self._database.reading() as conn:
                events = await feed.read(conn, head, limit=BATCH)
            if unsaved >= BATCH or (unsaved and not events):
                await self._save(feed.stream, head)
                unsaved = 0
            if not events:
                return count
            await self._broadcaster.ask(Publish(feed.stream, events), within_s=ASK_S)
            count += len(events)
            unsaved += len(events)

    async def _save(self, stream: Stream, position: Position) -> None:
        async with self._database.writing() as conn:
            await advance_position(conn, position_name(self._name, stream), position)

    def _wait(self, timeout_s: float) -> None:
        if self._wakeups is None:
            self.address.tell(_Connect())
            return
        self._hearing = self.run(_hear(self._wakeups, timeout_s), _woken)

    async def _drop(self) -> None:
        if self._wakeups is not None:
            await self._wakeups.close()
            self._wakeups = None


async def _hear(wakeups: Wakeups, timeout_s: float) -> frozenset[str]:
    """Wait; who is ended in it closes the connection, nobody else may meanwhile."""
    try:
        return await wakeups.wait(timeout_s)
    except asyncio.CancelledError:
        await wakeups.close()
        raise


def _woken(result: frozenset[str] | BaseException) -> _Woken | _Lost:
    if isinstance(result, BaseException):
        return _Lost(result)
    return _Woken(result)


def position_name(runtime: str, stream: Stream) -> str:
    """Return the key of a runtime's durable position in a stream."""
    return f"{runtime}/{stream}"
