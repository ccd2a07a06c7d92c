"""How the tests speak to the runtime: plainly, with nothing that forgives."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.fix_runtime import Served

UNSET: Any = object()
Json = dict[str, Any]
PROBLEM = {"type", "title", "status", "detail", "instance", "error"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def problem(self, status: int, code: str) -> Json:
        """Return the problem document that this answer has to be."""
        document: Json = self.json()
        assert (self.status, document["type"]) == (status, code), document
        assert self.headers["Content-Type"] == "application/problem+json"
        assert document.keys() >= PROBLEM
        assert document["status"] == status
        assert document["error"] == document["detail"]
        assert document["title"]
        return document


class RefusedError(Exception):
    """A stream was not opened."""


@dataclass
class Caller:
    """One holder of a token, or of none."""

    runtime: Served
    http: aiohttp.ClientSession
    user: int = 0
    token: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = UNSET,
        *,
        raw: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        data = raw if body is UNSET else json.dumps(body).encode()
        given = {**self._credential(), **self.headers, **(headers or {})}
        if data is not None:
            given.setdefault("Content-Type", "application/json")
        async with self.http.request(
            method,
            self.runtime.url + path,
            data=None if data is None else io.BytesIO(data),
            params=query,
            headers=given,
            allow_redirects=False,
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **query: object) -> Answer:
        return await self.call(
            "GET", path, query={name: str(value) for name, value in query.items()}
        )

    async def post(self, path: str, body: Any = UNSET, **headers: str) -> Answer:
        return await self.call("POST", path, body, headers=headers)

    async def made(self, path: str, body: Any = UNSET) -> Json:
        """Post what can't fail and return the answer."""
        answer = await self.post(path, body)
        assert answer.status < 300, answer.body
        document: Json = answer.json()
        return document

    @asynccontextmanager
    async def stream(
        self, path: str, last_event_id: str | None = None, **query: object
    ) -> AsyncIterator["Stream"]:
        headers = self._credential()
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        async with self.http.get(
            self.runtime.url + path,
            params={name: str(value) for name, value in query.items()},
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as response:
            if response.status != 200:
                raise RefusedError(response.status, await response.read())
            yield Stream(response)

    def _credential(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True)
class Frame:
    """One block of a stream: its fields as they came."""

    fields: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> str:
        return dict(self.fields)[name]

    @property
    def event(self) -> str:
        """The event's name; of other frames the name of their first field."""
        return dict(self.fields).get("event", self.fields[0][0])

    @property
    def data(self) -> Json:
        document: Json = json.loads(self["data"])
        return document


class Stream:
    """Frames of an event stream, one by one."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def frame(self, within_s: float = 15.0) -> Frame | None:
        """Return the next frame, comments too; None at the end."""
        lines = []
        async with asyncio.timeout(within_s):
            while (line := await self.response.content.readline()) != b"\n":
                if not line:
                    return None
                name, _, value = line.decode().rstrip("\n").partition(":")
                lines.append((name, value.removeprefix(" ")))
        return Frame(tuple(lines))

    async def event(self, within_s: float = 15.0) -> Frame:
        """Return the next event."""
        while True:
            found = await self.frame(within_s)
            assert found is not None, "the stream ended"
            if found.event not in ("", "retry"):
                return found

    async def events(self, count: int) -> list[Frame]:
        return [await self.event() for _ in range(count)]

    async def until_end(self, within_s: float) -> list[Frame]:
        frames = []
        async with asyncio.timeout(within_s):
            while (found := await self.frame(within_s)) is not None:
                frames.append(found)
        return frames

    async def silence(self) -> None:
        """Wait for two heartbeats with nothing between them."""
        for _ in range(2):
            found = await self.frame()
            assert found is not None
            assert found.event == "", found
