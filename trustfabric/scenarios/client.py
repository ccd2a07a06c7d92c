"""The runtime's REST side as one person uses it, patient where a fault is at work."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

import aiohttp

from trustfabric.errors import FabricError, UnavailableError

REQUEST_S = 15.0
PAGE = 200
_AGAIN_S = 0.1
_ERROR = 400
_LATER = frozenset({502, 503, 504})


class RefusedError(FabricError):
    """The runtime answered, and the answer is no."""

    code = "refused"

    def __init__(self, call: str, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.slug = str(problem.get("type") or "").rsplit("/", 1)[-1]
        self.problem = problem
        detail = problem.get("detail") or problem.get("error") or "no reason"
        super().__init__(f"{call}: {status} {self.slug}: {detail}")


class Person:
    """One token's holder: asks, and waits out what passes."""

    def __init__(self, url: str, token: str, *, patience_s: float) -> None:
        """Wait up to `patience_s` for a runtime that is away or busy recovering."""
        self.url = url
        self._patience_s = patience_s
        self._http = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def get(self, path: str, **params: str | int) -> Any:
        """Read a document; every page where it is a list."""
        answer, link = await self._patient("GET", path, params=params)
        while link is not None:
            more, link = await self._patient("GET", link)
            answer += more
        return answer

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for something that does no harm when it is asked for twice.

        Where the first answer was lost, the second may be a refusal.
        """
        answer, _ = await self._patient("POST", path, json=dict(body or {}))
        return answer

    async def once(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask exactly once; UnavailableError: nobody knows whether it was done."""
        answer, _ = await self._ask("POST", path, json=dict(body or {}))
        return answer

    async def delete(self, path: str) -> None:
        await self._patient("DELETE", path)

    def stream(
        self, path: str, params: Mapping[str, str], last_event_id: str
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Open an event stream behind the last event seen."""
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        return self._http.get(
            self.url + path,
            params=params,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=45),
        )

    async def _patient(
        self, method: str, path: str, **options: Any
    ) -> tuple[Any, str | None]:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while True:
            try:
                return await self._ask(method, path, **options)
            except UnavailableError:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def _ask(
        self, method: str, path: str, **options: Any
    ) -> tuple[Any, str | None]:
        """Return the answer and where its next page is."""
        call = f"{method} {path}"
        try:
            async with self._http.request(
                method, self.url + path, allow_redirects=False, **options
            ) as response:
                text = await response.read()
                following = response.links.get("next")
        except (TimeoutError, aiohttp.ClientError) as error:
            raise UnavailableError(f"{call}: {error!r}") from error
        if response.status in _LATER:
            raise UnavailableError(f"{call}: {response.status}")
        document = _document(call, text)
        if response.status >= _ERROR:
            problem = document if isinstance(document, dict) else {}
            raise RefusedError(call, response.status, problem)
        link = None if following is None else str(following["url"])
        return document, link and link.removeprefix(self.url)


def _document(call: str, text: bytes) -> Any:
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise UnavailableError(f"{call}: the answer is not JSON") from error
