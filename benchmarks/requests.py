"""A row over HTTP from the runtime as served, beside aiohttp with the same bytes."""

import asyncio
import time
from urllib.parse import urlsplit

import aiohttp

from benchmarks import bare
from benchmarks.bench import Bench, Seed
from benchmarks.frame import By, Figure, Part, Sample
from benchmarks.served import serving

CONNECTIONS = 16
PATH = "/api/trust/registry/1"

ROW = Figure(
    name="GET one registry row, requests/s",
    unit="/s",
    peer="bare aiohttp handler, the same bytes",
    by=By.RATIO,
    floor=0.2,
    aim=0.5,
)


async def measure(bench: Bench) -> list[Sample]:
    seconds = bench.size(4, 1)
    async with (
        bench.database(Seed(instances=1_000)) as url,
        serving(bench, url) as served,
        bare.serving() as peer,
        aiohttp.ClientSession() as session,
    ):
        credential = {"Authorization": f"Bearer {served.token}"}
        async with session.get(f"{served.url}{PATH}", headers=credential) as answer:
            answer.raise_for_status()
            row = await answer.read()
        async with session.put(f"{peer}/row", data=row) as answer:
            answer.raise_for_status()
        ours = await _requests_per_s(f"{served.url}{PATH}", served.token, seconds)
        beside = await _requests_per_s(f"{peer}/row", bare.TOKEN, seconds)
    return [Sample(ROW.name, ours, beside)]


PARTS = (Part("requests", (ROW,), measure),)


class _Client(asyncio.Protocol):
    """Sends a request whenever the last one was answered."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._rest = b""
        self.answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        head, end, body = data.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            self._rest = data
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        self._rest = b""
        self.answered += 1
        self._transport.write(self._request)

    def close(self) -> None:
        self._transport.abort()


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


async def _requests_per_s(url: str, token: str, seconds: float) -> float:
    await _requests_in(url, token, seconds / 4)  # prepared statements, caches
    begun = time.perf_counter()
    return await _requests_in(url, token, seconds) / (time.perf_counter() - begun)


async def _requests_in(url: str, token: str, seconds: float) -> int:
    """Ask again and again over some connections; return how often it was answered."""
    address = urlsplit(url)
    request = (
        f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()
    loop = asyncio.get_running_loop()
    assert address.hostname is not None
    assert address.port is not None
    clients = [
        (
            await loop.create_connection(
                lambda: _Client(request), address.hostname, address.port
            )
        )[1]
        for _ in range(CONNECTIONS)
    ]
    await asyncio.sleep(seconds)
    for one in clients:
        one.close()
    return sum(one.answered for one in clients)
