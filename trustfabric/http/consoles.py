"""A server's console over HTTP: its newest lines, and live ones as events.

An event's id is where a client resumes: the instance and the line's number in it. A
client that is slow misses lines and is told which: nothing is held for it.
"""

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp import web

from trustfabric.db import vms
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.ports import ConsoleGap, ConsoleItem
from trustfabric.errors import (
    FabricError,
    MalformedError,
    NotFoundError,
    UnavailableError,
)
from trustfabric.http.auth import PRINCIPAL
from trustfabric.http.face import FACE, Face
from trustfabric.http.frames import make_frame
from trustfabric.http.parse import Query
from trustfabric.http.reply import reply
from trustfabric.http.servers import find_living, find_server
from trustfabric.http.sse import RETRY_MS, WRITE_S, hang_up, stream_response

log = structlog.get_logger(__name__)

routes = web.RouteTableDef()

LOGS: Final = r"/api/servers/{id:\d+}/vm/logs"
AGAIN_S: Final = 1.0
"""Between two looks for a domain that isn't there yet, or a link that is down."""
_MOST: Final = 100_000
_PLACE: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,18}|end)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client stands; as a text, an event's id."""

    instance: InstanceId
    seq: int | None
    """None: it was told that no more comes of this instance."""

    def __str__(self) -> str:
        return f"{self.instance}.{'end' if self.seq is None else self.seq}"


@routes.get(LOGS)
async def get_logs(request: web.Request) -> web.Response:
    face = request.app[FACE]
    query = Query(request, "tail")
    tail = query.integer("tail", minimum=1, maximum=_MOST) or face.limits.log_tail
    server = await find_server(request)
    instance = await find_living(request, server.id)
    console = await face.provisioner.console_tail(instance.name, tail)
    return reply(
        {
            "server_id": server.id,
            "instance_id": instance.name,
            "lines": console.lines,
            "why_empty": console.why_empty,
            "last_event_id": str(Place(instance.id, console.position)),
        }
    )


@routes.get(f"{LOGS}/stream")
async def stream_logs(request: web.Request) -> web.StreamResponse:
    query = Query(request, "last_event_id")
    place = _last_place(request, query)
    server = await find_server(request)
    instance = await find_living(request, server.id)
    if place == Place(instance.id, None):
        return web.Response(status=204)  # it was told so: don't come back
    response = stream_response()
    await response.prepare(request)
    await _Session(request, response, server.id).run(place)
    return response


def _last_place(request: web.Request, query: Query) -> Place | None:
    text = request.headers.get("Last-Event-ID") or query.text("last_event_id")
    if not text:
        return None
    match = _PLACE.fullmatch(text)
    if match is None:
        raise MalformedError("last_event_id: not an id of this stream")
    seq = None if match[2] == "end" else int(match[2])
    return Place(InstanceId(int(match[1])), seq)


class _Session:
    """One client's stream while it lasts."""

    def __init__(
        self, request: web.Request, response: web.StreamResponse, server_id: ServerId
    ) -> None:
        self._request = request
        self._response = response
        self._face: Face = request.app[FACE]
        self._server_id = server_id
        self._scope = asyncio.timeout(None)
        self._waiting: str | None = None
        """What the client was last told that it waits for."""

    def close(self) -> None:
        """End the stream in order, at once."""
        with suppress(RuntimeError):  # it is over
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def run(self, place: Place | None) -> None:
        """Stream until the console, the token, the client or the runtime ends."""
        expires_at = self._request[PRINCIPAL].expires_at
        left = (expires_at - self._face.now()).total_seconds()
        now = asyncio.get_running_loop().time()
        self._face.streams.add(self)
        try:
            async with self._scope:
                self._scope.reschedule(now + left)
                await self._write(b"retry: %d\n\n" % RETRY_MS)
                await self._follow(place)
        except TimeoutError:
            if not self._scope.expired():
                hang_up(self._request)  # it takes nothing
        except ConnectionError:
            hang_up(self._request)
        except FabricError as error:
            # Too late for a problem document: the client comes back where it stood.
            log.warning("console.cut", server_id=self._server_id, error=str(error))
        finally:
            self._face.streams.discard(self)

    async def _follow(self, place: Place | None) -> None:
        """Follow the server's VM, and the one that takes its place."""
        while (instance := await self._living()) is not None:
            if place is not None and place.instance != instance.id:
                place = Place(instance.id, 0)
                await self._tell("discontinuity", place, message="a new VM")
            try:
                place = await self._follow_one(instance, place)
            except (NotFoundError, UnavailableError) as error:
                # Not defined yet, or the link is down.
                place = place or Place(instance.id, 0)
                await self._wait(place, str(error))
                await asyncio.sleep(AGAIN_S)
                continue
            if place.seq is None:
                return
        if place is not None:
            end = Place(place.instance, None)
            await self._tell("end", end, message="the server has no VM any more")

    async def _follow_one(self, instance: vms.Instance, place: Place | None) -> Place:
        """Return where the client stands when this VM's console is over.

        It is over for good where the VM lives on.
        """
        provisioner = self._face.provisioner
        tail = await provisioner.console_tail(instance.name, 1)
        place = place or Place(instance.id, tail.position)
        if not tail.live:
            return await self._end(instance, tail.why_empty)
        if tail.why_empty is not None:
            await self._wait(place, tail.why_empty)
        batches = provisioner.console_follow(
            instance.name, after=place.seq, beat_s=self._face.limits.heartbeat_s
        )
        async with aclosing(batches):
            async for batch in batches:
                place = await self._send(place, batch)
                if not batch and await self._replaced(instance):
                    return place
        if await self._replaced(instance):
            return place
        return await self._end(instance, "its console has ended")

    async def _send(self, place: Place, batch: Sequence[ConsoleItem]) -> Place:
        if not batch:
            await self._write(b": heartbeat\n\n")
            return place
        self._waiting = None
        frames = [_frame(place.instance, item) for item in batch]
        await self._write(b"".join(frames))
        return Place(place.instance, batch[-1].seq)

    async def _end(self, instance: vms.Instance, why: str | None) -> Place:
        place = Place(instance.id, None)
        await self._tell("end", place, message=why or "its console has ended")
        return place

    async def _wait(self, place: Place, why: str) -> None:
        """Say once what keeps lines from coming."""
        if why == self._waiting:
            await self._write(b": heartbeat\n\n")
            return
        self._waiting = why
        await self._tell("waiting", place, message=why)

    async def _living(self) -> vms.Instance | None:
        async with self._face.database.reading() as conn:
            newest = await vms.list_newest(conn, self._server_id, limit=1)
        return newest[0] if newest and newest[0].terminated_at is None else None

    async def _replaced(self, instance: vms.Instance) -> bool:
        living = await self._living()
        return living is None or living.id != instance.id

    async def _tell(self, event: str, place: Place, **data: Any) -> None:
        await self._write(make_frame(event, str(place), data))

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_S):
            await self._response.write(data)


def _frame(instance: InstanceId, item: ConsoleItem) -> bytes:
    place = str(Place(instance, item.seq))
    match item:
        case ConsoleGap(first, seq):
            message = f"{seq - first + 1} lines were lost"
            data = {"from": first, "to": seq, "message": message}
            return make_frame("gap", place, data)
        case _ if item.breaks:
            data = {"seq": item.seq, "message": item.text}
            return make_frame("discontinuity", place, data)
        case _:
            return make_frame("log", place, {"seq": item.seq, "line": item.text})
