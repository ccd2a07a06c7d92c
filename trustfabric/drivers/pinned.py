"""HTTP to allowed hosts only: what a name resolves to is checked, then connected to.

The addresses that were checked are the ones that the connection uses; nothing is
resolved twice, so that a name can't change in between.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from trustfabric.domain.allow_list import AllowList
from trustfabric.errors import ForbiddenError

Lookup: TypeAlias = Callable[[str, int], Awaitable[list[ResolveResult]]]


async def system_lookup(host: str, port: int) -> list[ResolveResult]:
    """Resolve as the system does. OSError where there is no such host."""
    return await aiohttp.ThreadedResolver().resolve(host, port, socket.AF_UNSPEC)


class RefusedError(OSError):
    """The allow-list refuses the host, or an address that it leads to."""


class CheckedResolver(AbstractResolver):
    """Resolves a name and refuses it whole if any of its addresses is refused."""

    def __init__(self, allowed: AllowList, lookup: Lookup) -> None:
        self._allowed = allowed
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._lookup(host, port)
        for one in found:
            try:
                self._allowed.check_address(host, one["host"], port)
            except ForbiddenError as error:
                raise RefusedError(str(error)) from None
        return [one for one in found if family in {socket.AF_UNSPEC, one["family"]}]

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, read to its end or to its bound."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool
    """There was more than the bound."""


class PinnedClient:
    """Sends single requests: no redirects, proxies, cookies or compression."""

    def __init__(
        self,
        allowed: AllowList,
        lookup: Lookup = system_lookup,
        tls: SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._lookup = lookup
        self._tls = tls
        """None: whom the system trusts."""

    def session(self) -> aiohttp.ClientSession:
        """Open a session for one execution; the caller closes it."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=CheckedResolver(self._allowed, self._lookup),
                use_dns_cache=False,
                force_close=True,
                ssl=True if self._tls is None else self._tls,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            auto_decompress=False,
            trust_env=False,
        )

    async def send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        limit: int,
    ) -> Answer:
        """Send one request and read at most `limit` bytes of its answer.

        ForbiddenError where the host may not be called; aiohttp.ClientError and
        TimeoutError otherwise.
        """
        self._check(url)
        try:
            async with session.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                data=body,
                allow_redirects=False,
            ) as response:
                content = bytearray()
                while len(content) <= limit and (
                    part := await response.content.read(65_536)
                ):
                    content += part
                return Answer(
                    status=response.status,
                    headers=dict(response.headers),
                    body=bytes(content[:limit]),
                    cut=len(content) > limit,
                )
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, RefusedError):
                raise ForbiddenError(str(error.os_error)) from None
            raise

    def _check(self, url: URL) -> None:
        host, port = url.host or "", url.port or 0
        self._allowed.check_host(host, port)
        try:
            ipaddress.ip_address(host.split("%")[0])
        except ValueError:
            return
        # The connector resolves no address, and so would not check it.
        self._allowed.check_address(host, host, port)
