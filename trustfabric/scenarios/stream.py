"""An event stream as a client keeps it: every event in order, across any outage."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from trustfabric.errors import FabricError
from trustfabric.scenarios.client import Person

_OPEN_S = 30.0
_AGAIN_S = 0.2
_OK = 200
_KEPT = {"history_id", "run_id", "hold_id"}
"""What an event of a stream is known by."""


class NotSeenError(FabricError):
    """What a scenario waited for did not come in time."""

    code = "not-seen"


@dataclass(frozen=True, slots=True)
class Event:
    """One frame of a stream."""

    id: str
    name: str
    data: dict[str, Any]


Wanted = Callable[[dict[str, Any]], bool]


class Recorder:
    """Follows one stream and keeps all of it; resumes from the last id it saw."""

    def __init__(self, person: Person, path: str, **params: str) -> None:
        self._person = person
        self._path = path
        self._params = params
        self._changed = asyncio.Condition()
        self._position = ""
        self.events: list[Event] = []
        """Every event; no snapshot row, and nothing about the stream itself."""
        self.resets = 0
        self.connections = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Recorder"]:
        """Record while the block runs; enters once the stream is open."""
        following = asyncio.create_task(self._follow())
        try:
            async with asyncio.timeout(_OPEN_S), self._changed:
                await self._changed.wait_for(lambda: self.connections > 0)
            yield self
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following

    def __len__(self) -> int:
        return len(self.events)

    async def wait_for(
        self, wanted: Wanted, *, within_s: float, what: str, since: int = 0
    ) -> dict[str, Any]:
        """Return the first event behind index `since` that is wanted."""
        try:
            async with asyncio.timeout(within_s):
                return await self._find(wanted, since)
        except TimeoutError:
            raise NotSeenError(f"not seen within {within_s:g} s: {what}") from None

    async def _find(self, wanted: Wanted, since: int) -> dict[str, Any]:
        async with self._changed:
            while True:
                for event in self.events[since:]:
                    if wanted(event.data):
                        return event.data
                since = len(self.events)
                await self._changed.wait()

    async def _follow(self) -> None:
        while True:
            try:
                # A snapshot is for the first time: later its frames would come before
                # what was missed, under a newer position.
                params = {} if self._position else self._params
                async with self._person.stream(
                    self._path, params, self._position
                ) as response:
                    if response.status == _OK:
                        await self._record(response)
            except (aiohttp.ClientError, TimeoutError):
                pass  # away: the next connection resumes where this one ended
            await asyncio.sleep(_AGAIN_S)

    async def _record(self, response: aiohttp.ClientResponse) -> None:
        async with self._changed:
            self.connections += 1
            self._changed.notify_all()
        async for event in _frames(response):
            async with self._changed:
                self._position = event.id
                if event.name == "reset":
                    self.resets += 1
                elif _KEPT & event.data.keys():
                    self.events.append(event)
                self._changed.notify_all()


async def _frames(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    """Cut a stream at its empty lines; what was not finished counts for nothing."""
    rest = b""
    async for chunk in response.content.iter_any():
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(_fields(block))
            if "data" in fields:
                yield Event(fields["id"], fields["event"], json.loads(fields["data"]))


def _fields(block: bytes) -> Iterator[tuple[str, str]]:
    for line in block.decode().split("\n"):
        name, _, value = line.partition(":")
        if name:
            yield name, value.removeprefix(" ")
