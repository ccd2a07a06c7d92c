"""The streams: committed rows, read in order and handed to everyone who follows.

The Listener hears NOTIFY and reads on from where the Broadcaster stands; the
Broadcaster hands each event to its followers and remembers the position. So a
Listener that dies, a lost connection or a lost notification costs a little time
and never an event; what followers missed for other reasons they ask for, and read
themselves where that is too long ago.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, assert_never

from trustfabric.actors.followers import (
    Accepts,
    Event,
    Follower,
    Followers,
    Stream,
)
from trustfabric.actors.recent import Recent
from trustfabric.actors.room import Room
from trustfabric.db.positions import read_horizon, read_position
from trustfabric.db.session import Connection, Database
from trustfabric.domain.events import Position
from trustfabric.supervision import Actor, Address, Notice, Request

__all__ = ("Accepts", "Event", "Follower", "Stream")

Straight: TypeAlias = Callable[[Sequence[Event]], bool]
"""Hands events to a reader at once; False, having done nothing: it has to take them."""


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

    A reader that has taken everything and waits may be handed events straight, past
    the buffer. Past its bound, or where all of them lack room, the buffer keeps nothing
    more and says so: the reader goes back to the database, where everything is.
    """

    def __init__(
        self, stream: Stream, accepts: Accepts, capacity: int, room: Room | None = None
    ) -> None:
        self.stream = stream
        self.accepts = accepts
        self.lagged = False
        self.closed = False
        self._capacity = capacity
        self._room = room or Room(capacity)
        self._buffer: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._straight: Straight | None = None

    def offer(self, events: Sequence[Event]) -> bool:
        if self.closed:
            return False
        straight = self._straight
        # Whoever is about to wake may have something that came before these.
        if straight is not None and not self._ready.is_set() and straight(events):
            return True
        if not self.lagged:
            self._buffer.extend(events)
            if len(self._buffer) > self._capacity:
                self._room.release(self)
                self.lag()
            else:
                self._room.hold(self, len(events))
        if self._buffer or self.lagged:
            self._ready.set()
        return True

    def lag(self) -> None:
        """Keep nothing, and have the reader told."""
        self._buffer.clear()
        self.lagged = True
        self._ready.set()

    async def wait(self, straight: Straight | None = None) -> None:
        """Return when there is something to `take`, or it lagged, closed or woke.

        Meanwhile what comes is handed `straight`, as long as that can take it.
        """
        self._straight = straight
        try:
            await self._ready.wait()
        finally:
            self._straight = None

    def take(self) -> list[Event]:
        """Return what has come, and forget that it lagged."""
        events = list(self._buffer)
        self._buffer.clear()
        self._room.release(self)
        self.lagged = False
        self._ready.clear()
        return events

    @property
    def holds_some(self) -> bool:
        """Whether something waits to be taken."""
        return bool(self._buffer)

    def wake(self) -> None:
        """Let the reader look up although nothing came."""
        self._ready.set()

    def close(self) -> None:
        """Let the reader go and take nothing more."""
        self.closed = True
        self._buffer.clear()
        self._room.release(self)
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
class Following:
    """Where a stream stands for a follower."""

    head: Position
    """Later events are offered."""
    anew: bool
    """Earlier ones may have been missed; else each was offered that is wanted."""


@dataclass(frozen=True, slots=True)
class Follow(Request["Broadcaster", Following]):
    """Follow a stream. Repeating it finds out whether something was missed."""

    follower: Follower


@dataclass(frozen=True, slots=True)
class Unfollow(Notice["Broadcaster"]):
    follower: Follower


@dataclass(frozen=True, slots=True)
class Head(Request["Broadcaster", Position]):
    """Where a stream stands."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Missed(Request["Broadcaster", list[Event] | None]):
    """What a stream had after a position; None: only the store has all up to `upto`."""

    stream: Stream
    since: Position
    upto: Position


@dataclass(frozen=True, slots=True)
class Publish(Request["Broadcaster", bool]):
    """Hand on all events since a position; what was handed on before is left out.

    False: the stream doesn't stand there yet, so that some would be passed over. They
    were read for a Broadcaster that died since.
    """

    stream: Stream
    since: Position
    events: Sequence[Event]


class Broadcaster(Actor):
    def __init__(self, database: Database, feeds: Sequence[Feed], name: str) -> None:
        super().__init__()
        self._database = database
        self._streams = tuple(feed.stream for feed in feeds)
        self._name = name
        self._recent: dict[Stream, Recent] = {}
        self._followers = {stream: Followers() for stream in self._streams}

    async def on_start(self) -> None:
        async with self._database.reading() as conn:
            for stream in self._streams:
                known = await read_position(conn, position_name(self._name, stream))
                self._recent[stream] = Recent(known or await read_horizon(conn))

    async def on_stop(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                if isinstance(follower, Subscription):
                    follower.close()

    async def handle(
        self, message: Follow | Unfollow | Head | Missed | Publish
    ) -> Following | Position | list[Event] | bool | None:
        match message:
            case Follow(follower):
                anew = self._followers[follower.stream].add(follower)
                return Following(self._recent[follower.stream].head, anew)
            case Unfollow(follower):
                self._followers[follower.stream].remove(follower)
                return None
            case Head(stream):
                return self._recent[stream].head
            case Missed(stream, since, upto):
                return self._recent[stream].after(since, upto)
            case Publish(stream, since, events):
                return self._publish(stream, since, events)
            case _:
                assert_never(message)

    def _publish(
        self, stream: Stream, since: Position, events: Sequence[Event]
    ) -> bool:
        recent = self._recent[stream]
        if since > recent.head:
            return False
        fresh = [event for event in events if event.position > recent.head]
        if fresh:
            recent.add(fresh)
            self._followers[stream].offer(fresh)
        return True


def position_name(runtime: str, stream: Stream) -> str:
    """Return the key of a runtime's durable position in a stream."""
    return f"{runtime}/{stream}"
