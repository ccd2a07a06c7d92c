"""Server-Sent Events: catch up from the store, then follow live, without a seam.

The order is what makes it whole: first follow (what is committed from here on is
buffered), then send what lies between the client's position and that head, from memory
or else from the store, then drain the buffer. A client that keeps up is written to at
once, past its buffer; one that falls behind its buffer is told `lagged`, and sent what
it missed in the same way. Every event carries its position as its id.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from aiohttp import hdrs, web

from trustfabric.actors.counters import TOLD
from trustfabric.actors.streams import (
    Accepts,
    Event,
    Follow,
    Following,
    Missed,
    ReadAfter,
    Stream,
    Subscription,
    Unfollow,
)
from trustfabric.db import retention
from trustfabric.db.positions import read_horizon
from trustfabric.db.session import Connection
from trustfabric.domain.events import Position
from trustfabric.errors import FabricError
from trustfabric.http.auth import PRINCIPAL
from trustfabric.http.face import ASK_S, FACE, Face
from trustfabric.http.frames import FrameOf, frame_of, make_frame
from trustfabric.http.parse import Query
from trustfabric.http.watch import Watch
from trustfabric.supervision import AskError

log = structlog.get_logger(__name__)

RETRY_MS = 2000
WRITE_S = 10.0
BATCH = 200
"""Events, or rows of a snapshot, that one client has in memory at a time."""

STRAIGHT, STRAIGHT_BYTES = 16, 2**16
"""At most so many events, and bytes, are written past the buffer at a time."""

UNKNOWN = "unknown position"
PRUNED = "position pruned"


class Snapshot(Protocol):
    """Reads what there is, page by page, as it is to be seen."""

    async def __call__(
        self, conn: Connection, *, after: int, limit: int
    ) -> Sequence[tuple[int, Any]]:
        """Return views with their ids, by id from beyond `after`."""
        ...


@dataclass(frozen=True, slots=True)
class Channel:
    """One stream as one client sees it."""

    stream: Stream
    accepts: Accepts
    read: ReadAfter
    view: Callable[[Event], Any]
    """Clients with equal ones are sent the same bytes of an event that comes in."""
    snapshot: Snapshot | None = None
    """What `?snapshot=true` sends first."""


def last_position(request: web.Request, query: Query) -> Position | None:
    """Return what the client has seen, by header or by query. MalformedError."""
    header = request.headers.get("Last-Event-ID")
    text = header or query.text("last_event_id")
    return Position.read(text) if text else None


async def follow(
    request: web.Request, channel: Channel, since: Position | None
) -> web.StreamResponse:
    """Stream the channel until the client or the runtime goes away."""
    face = request.app[FACE]
    subscription = Subscription(
        channel.stream, channel.accepts, face.limits.stream_buffer, face.room
    )
    response = stream_response()
    face.streams.add(subscription)
    try:
        following = await face.broadcaster.ask(Follow(subscription), within_s=ASK_S)
        await response.prepare(request)
        if request.transport is not None:
            face.sockets[subscription] = request.transport
        session = _Session(request, response, channel, subscription, face)
        with closing(session):
            await session.run(following.head, since)
    except (FabricError, AskError) as error:
        if not response.prepared:
            raise
        # Too late for a problem document: the client comes back where it stood.
        log.warning("stream.cut", stream=channel.stream, error=str(error))
    except (ConnectionError, TimeoutError):
        hang_up(request)  # it went away, or takes nothing: it will come back
    finally:
        subscription.close()
        face.streams.discard(subscription)
        face.sockets.pop(subscription, None)
        face.broadcaster.tell(Unfollow(subscription))
    return response


def stream_response() -> web.StreamResponse:
    """Return the answer that a stream is written to."""
    return web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "X-Accel-Buffering": "no",
        }
    )


def hang_up(request: web.Request) -> None:
    """Close at once: an orderly end would wait for a client that takes nothing."""
    transport = request.transport
    if transport is not None:
        transport.abort()


def _straight_to(
    request: web.Request, response: web.StreamResponse
) -> asyncio.WriteTransport | None:
    """Return what chunks may be written to; None: the body isn't sent in chunks."""
    chunked = response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
    return request.transport if chunked else None


class _Session:
    """One client's stream while it lasts."""

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        channel: Channel,
        subscription: Subscription,
        face: Face,
    ) -> None:
        self._request = request
        self._response = response
        self._channel = channel
        self._subscription = subscription
        self._face = face
        self._sent = Position.FIRST
        self._transport = _straight_to(request, response)
        self._silence = Watch(face.limits.heartbeat_s, subscription.wake)
        self._writing = Watch(WRITE_S, self._give_up)

    def close(self) -> None:
        self._silence.close()
        self._writing.close()

    def _give_up(self) -> None:
        self._subscription.close()
        hang_up(self._request)

    async def run(self, head: Position, since: Position | None) -> None:
        await self._write(b"retry: %d\n\n" % RETRY_MS)
        self._sent = head if since is None else since
        if since is not None and (reason := await self._lost(since, head)):
            await self._reset(head, reason)
        if self._channel.snapshot is not None:
            await self._send_snapshot(self._channel.snapshot)
        await self._catch_up(head)
        while not self._is_over():
            await self._live()

    def _is_over(self) -> bool:
        """Whether the stream was ended, or the token that opened it has expired."""
        expires_at = self._request[PRINCIPAL].expires_at
        return self._subscription.closed or expires_at <= self._face.now()

    async def _lost(self, since: Position, head: Position) -> str | None:
        """Return why a position can't be resumed from; None: it can.

        One beyond the head may be good: after a crash the head begins where the
        last position was saved, and clients have seen more. One beyond all that was
        ever readable is none that this store gave out.
        """
        async with self._face.database.reading() as conn:
            if since > head and since >= await read_horizon(conn):
                return UNKNOWN
            return await self._pruned(conn, since)

    async def _pruned(self, conn: Connection, since: Position) -> str | None:
        horizon = await retention.read_horizon(conn, self._channel.stream)
        return PRUNED if horizon and since < horizon.position else None

    async def _reset(self, head: Position, reason: str) -> None:
        """Start over at the head, and say so."""
        async with self._face.database.reading() as conn:
            horizon = await retention.read_horizon(conn, self._channel.stream)
        # A listener that was away for long may itself stand before the horizon.
        head = self._sent = max(head, horizon.position) if horizon else head
        told = {"reason": reason, "action": "read the list again; this goes on from it"}
        self._face.counters.count(TOLD, self._channel.stream, "reset")
        await self._write(make_frame("reset", str(head), told))

    async def _live(self) -> None:
        self._silence.start()
        await self._subscription.wait(self._hand_on)
        lagged = self._subscription.lagged
        events = self._subscription.take()
        if lagged:
            head = (await self._refollow()).head
            self._face.counters.count(TOLD, self._channel.stream, "lagged")
            await self._write(
                make_frame("lagged", str(self._sent), {"upto": str(head)})
            )
            await self._catch_up(head)
        elif events:
            await self._send(events, self._face.frames.of)
        else:
            await self._heartbeat()

    def _hand_on(self, events: Sequence[Event]) -> bool:
        """Write at once to a client that has taken all there was; False: not to this.

        What the socket doesn't take of it is all that can be left lying, because the
        next ones then go to the buffer.
        """
        transport = self._transport
        if (
            transport is None
            or len(events) > STRAIGHT
            or events[0].position <= self._sent
            or transport.get_write_buffer_size()
            or transport.is_closing()
            or self._is_over()
        ):
            return False
        try:
            chunk = self._face.frames.chunk(
                self._channel.stream, self._channel.view, events
            )
        except Exception:  # noqa: BLE001  the stream is to break of it, not who calls
            return False
        if len(chunk) > STRAIGHT_BYTES:
            return False
        transport.write(chunk)
        self._sent = events[-1].position
        self._silence.start()
        return True

    async def _heartbeat(self) -> None:
        if self._is_over():
            return
        await self._write(b": heartbeat\n\n")
        # Also finds out whether a broadcaster's death made us miss something.
        following = await self._refollow()
        if following.anew:  # before what came since, which is sent after it
            await self._catch_up(following.head)
        elif not (self._subscription.lagged or self._subscription.holds_some):
            # There was nothing for this client.
            self._sent = max(self._sent, following.head)

    async def _refollow(self) -> Following:
        return await self._face.broadcaster.ask(
            Follow(self._subscription), within_s=ASK_S
        )

    async def _catch_up(self, head: Position) -> None:
        """Send what lies between what was sent and `head`."""
        if self._sent >= head:
            return
        missed = Missed(self._channel.stream, self._sent, head)
        events = await self._face.broadcaster.ask(missed, within_s=ASK_S)
        if events is None:
            await self._catch_up_from_store(head)
            return
        wanted = [event for event in events if self._channel.accepts(event)]
        for at in range(0, len(wanted), BATCH):
            await self._send(wanted[at : at + BATCH], frame_of)
        self._sent = max(self._sent, head)

    async def _catch_up_from_store(self, head: Position) -> None:
        while self._sent < head and not self._is_over():
            async with self._face.database.reading() as conn:
                reason = await self._pruned(conn, self._sent)
                events = await self._channel.read(
                    conn, self._sent, upto=head, limit=BATCH
                )
            if reason:
                await self._reset(head, reason)
                return
            await self._send([e for e in events if self._channel.accepts(e)], frame_of)
            if len(events) < BATCH:
                self._sent = head
                return
            self._sent = events[-1].position

    async def _send_snapshot(self, snapshot: Snapshot) -> None:
        # Its frames stand where the client stood: whoever loses it halfway gets all
        # of it again, and every event since.
        position, count, last = str(self._sent), 0, 0
        while not self._is_over():
            async with self._face.database.reading() as conn:
                rows = await snapshot(conn, after=last, limit=BATCH)
            frames = [
                make_frame(self._channel.stream, position, view) for _, view in rows
            ]
            if frames:
                await self._write(b"".join(frames))
            count += len(rows)
            if len(rows) < BATCH:
                break
            last = rows[-1][0]
        await self._write(make_frame("bookmark", position, {"snapshot": count}))

    async def _send(self, events: Sequence[Event], frame: FrameOf) -> None:
        frames = []
        for event in events:
            if event.position > self._sent:
                frames.append(frame(self._channel.stream, self._channel.view, event))
                self._sent = event.position
        if frames:
            await self._write(b"".join(frames))

    async def _write(self, data: bytes) -> None:
        self._writing.start()
        await self._response.write(data)
        self._writing.stop()
