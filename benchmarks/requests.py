"""A row over HTTP from the runtime as served, and changes of such rows.

Beside aiohttp with the same bytes; changes also beside the registry that nobody has to
reach over HTTP.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import SplitResult, urlsplit

import aiohttp

from benchmarks import bare
from benchmarks.bench import Bench, Seed
from benchmarks.frame import By, Figure, Part, Sample
from benchmarks.registry import INSTANCES, asked, registry
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


TRANSITIONS = Figure(
    name="REST transitions/s",
    unit="/s",
    peer="bare aiohttp handler that reads and answers the same",
    by=By.RATIO,
    floor=0.1,
    aim=0.3,
)
OF_THE_REGISTRY = Figure(
    name="REST transitions/s, of what the registry does by itself",
    unit="/s",
    peer="the registry actor, asked directly",
    by=By.RATIO,
    floor=0.02,
    aim=0.1,
)
"""Small: a request costs more than a change in a batch does."""

WRITERS = 64
"""Each changes an instance of its own; together they are the registry's batches."""


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


async def measure_transitions(bench: Bench) -> list[Sample]:
    seconds = bench.size(4, 1)
    async with bench.database(Seed(instances=INSTANCES)) as url:
        async with (
            serving(bench, url) as served,
            bare.serving() as peer,
            aiohttp.ClientSession() as session,
        ):
            credential = {"Authorization": f"Bearer {served.token}"}
            async with session.get(f"{served.url}{PATH}", headers=credential) as answer:
                row = await answer.read()
            async with session.put(f"{peer}/row", data=row) as answer:
                answer.raise_for_status()
            ours = await _requests_per_s(
                served.url, served.token, seconds, _writer, WRITERS
            )
            beside = await _requests_per_s(
                peer, bare.TOKEN, seconds, partial(_writer, path="/row"), WRITERS
            )
        async with registry(bench, url) as address:
            alone = await asked(address, seconds)
    return [
        Sample(TRANSITIONS.name, ours, beside),
        Sample(OF_THE_REGISTRY.name, ours, alone),
    ]


PARTS = (
    Part("requests", (ROW,), measure),
    Part("transitions", (TRANSITIONS, OF_THE_REGISTRY), measure_transitions),
)


Ask = Callable[[bytes], bytes]
"""Makes a request out of the last one's answer; out of nothing at first."""


class _Client(asyncio.Protocol):
    """Sends a request whenever the last one was answered."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._rest = b""
        self.answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._ask(b""))

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        head, end, body = data.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            self._rest = data
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        self._rest = b""
        self.answered += 1
        self._transport.write(self._ask(body))

    def close(self) -> None:
        self._transport.abort()


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


AskerOf = Callable[[SplitResult, str, int], Ask]
"""Who asks: of which address, with which token, and which one of all."""


def _reader(address: SplitResult, token: str, _: int) -> Ask:
    request = _head("GET", address, address.path, token) + b"\r\n"
    return lambda _: request


def _writer(address: SplitResult, token: str, number: int, path: str = "") -> Ask:
    """Note something on a row again and again, each time on the version it has."""
    path = path or f"/api/trust/registry/{1 + number}/transition"
    head = _head("POST", address, path, token)
    wish = {"attestation_status": "trusted", "lifecycle_state": "restored"}

    def ask(answer: bytes) -> bytes:
        found = re.search(rb'"version":(\d+)', answer)
        version = int(found[1]) if found else 1
        body = json.dumps({**wish, "expected_version": version}).encode()
        return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)

    return ask


def _head(method: str, address: SplitResult, path: str, token: str) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    ).encode()


async def _requests_per_s(
    url: str,
    token: str,
    seconds: float,
    asker: AskerOf = _reader,
    clients: int = CONNECTIONS,
) -> float:
    """Ask again and again over some connections; return how often it was answered."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    assert address.hostname is not None
    assert address.port is not None
    asking = [
        (
            await loop.create_connection(
                partial(_Client, asker(address, token, number)),
                address.hostname,
                address.port,
            )
        )[1]
        for number in range(clients)
    ]
    await asyncio.sleep(seconds / 4)  # prepared statements, caches
    before, begun = sum(one.answered for one in asking), time.perf_counter()
    await asyncio.sleep(seconds)
    done = sum(one.answered for one in asking) - before
    passed = time.perf_counter() - begun
    for one in asking:
        one.close()
    return done / passed
