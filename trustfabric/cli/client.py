"""The HTTP side of a command: requests, problem documents, lists over pages."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiohttp
from yarl import URL

from trustfabric.cli.errors import BrokenAnswerError, RefusedError, UnreachableError
from trustfabric.cli.session import Connection

PAGE = 100
"""Rows asked for at a time where there is a limit; else the host decides."""
_UNAUTHENTICATED = 401
SILENCE_S = 45.0
"""A stream that is silent for three heartbeats is dead."""

Params = Mapping[str, str | int | bool | None]


Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    rows: list[Row]
    more: bool
    """The host has further rows that the limit left out."""


class Client:
    """One connection pool to one host; made inside a running loop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._base = URL(connection.host.rstrip("/"))
        headers = {"User-Agent": "mcpctl", "Accept": "application/json"}
        if connection.token is not None:
            headers["Authorization"] = f"Bearer {connection.token}"
        self._http = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=connection.timeout_s),
        )

    async def close(self) -> None:
        await self._http.close()

    async def get(self, path: str, params: Params | None = None) -> Any:
        async with self._answer("GET", self._url(path, params)) as response:
            return await _document(response)

    async def row(self, path: str) -> Row:
        """Read what is known to be one object."""
        return _object(await self.get(path), path)

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Send `body` as JSON (none: an empty object for POST); None for no content."""
        payload = {} if body is None and method == "POST" else body
        async with self._answer(
            method, self._url(path, params), json=payload, headers=headers
        ) as response:
            return await _document(response)

    async def rows(self, path: str, params: Params | None, limit: int) -> Rows:
        """Read a list over as many pages as it takes; `limit` 0 is every row."""
        size = min(limit, PAGE) if limit else None
        url: URL | None = self._url(path, {**(params or {}), "limit": size})
        rows: list[Row] = []
        while url is not None:
            page, following = await self._page(url)
            if following == url:
                raise BrokenAnswerError(f"GET {path}: the next page is the same page")
            rows += page
            url = following
            if limit and len(rows) >= limit:
                return Rows(rows[:limit], more=url is not None or len(rows) > limit)
        return Rows(rows, more=False)

    async def page(self, path: str, params: Params) -> Rows:
        """Read the first page of a list only."""
        rows, following = await self._page(self._url(path, params))
        return Rows(rows, more=following is not None)

    async def _page(self, url: URL) -> tuple[list[Row], URL | None]:
        async with self._answer("GET", url) as response:
            page = await _document(response)
            if not isinstance(page, list):
                raise BrokenAnswerError(f"GET {url.path}: expected a list")
            return [_object(row, url.path) for row in page], self._next(response)

    async def pages(self, path: str, params: Params | None) -> AsyncIterator[Row]:
        """Each page's document, where a page is more than a list."""
        url: URL | None = self._url(path, params)
        while url is not None:
            async with self._answer("GET", url) as response:
                document = await _document(response)
                url = self._next(response)
            yield _object(document, path)

    async def raw(self, path: str, params: Params | None = None) -> bytes:
        """Read a body that need not be JSON."""
        async with self._answer("GET", self._url(path, params)) as response:
            return await response.read()

    @asynccontextmanager
    async def stream(
        self, path: str, params: Params | None, last_event_id: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        quiet = aiohttp.ClientTimeout(
            total=None, sock_connect=self.connection.timeout_s, sock_read=SILENCE_S
        )
        async with self._answer(
            "GET", self._url(path, params), headers=headers, timeout=quiet
        ) as response:
            yield response

    @asynccontextmanager
    async def _answer(
        self, method: str, url: URL, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer when it is a success; else raise what it stands for.

        Redirects are not followed: they could carry the token elsewhere.
        """
        answered = False
        try:
            async with self._http.request(
                method, url, allow_redirects=False, **options
            ) as response:
                answered = True
                if response.status >= 300:  # noqa: PLR2004 (not a success)
                    raise RefusedError(
                        response.status,
                        await _problem(response),
                        without_token=response.status == _UNAUTHENTICATED
                        and self.connection.token is None,
                    )
                yield response
        except TimeoutError as error:
            within = f"within {self.connection.timeout_s:g} s"
            silent = "fell silent" if answered else f"did not answer {within}"
            unknown = "" if method == "GET" else "; it may have been done all the same"
            raise UnreachableError(f"{self._base} {silent}{unknown}") from error
        except aiohttp.ClientError as error:
            raise UnreachableError(
                f"cannot reach {self._base}: {_reason(error)}"
            ) from error

    def _url(self, path: str, params: Params | None) -> URL:
        url = URL(f"{self._base}{path}", encoded=True)
        given = {k: _word(v) for k, v in (params or {}).items() if v is not None}
        return url.update_query(given) if given else url

    def _next(self, response: aiohttp.ClientResponse) -> URL | None:
        """Find the next page's address, which must be at the same host."""
        link = response.links.get("next")
        if link is None:
            return None
        url = response.url.join(URL(str(link["url"])))
        if url.origin() != self._base.origin():
            raise BrokenAnswerError("the next page is at another host")
        return url


async def _document(response: aiohttp.ClientResponse) -> Any:
    body = await response.read()
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        where = response.url.path
        raise BrokenAnswerError(f"{where}: the answer is not JSON") from error


def _object(document: object, path: str) -> Row:
    if not isinstance(document, dict):
        raise BrokenAnswerError(f"GET {path}: expected an object")
    return document


async def _problem(response: aiohttp.ClientResponse) -> Mapping[str, Any]:
    try:
        problem = json.loads(await response.read())
    except (ValueError, RecursionError):
        problem = None
    if isinstance(problem, dict):
        return problem
    return {"detail": f"HTTP {response.status} {response.reason or ''}".strip()}


def _word(value: str | int | bool) -> str:  # noqa: FBT001 (a query value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _reason(error: aiohttp.ClientError) -> str:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "the name is unknown"
        case aiohttp.ClientConnectorError() if error.os_error.errno:
            return os.strerror(error.os_error.errno)
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return "the connection was cut"
        case _:
            return str(error) or type(error).__name__
