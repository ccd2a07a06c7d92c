"""Event streams of the runtime as served, beside aiohttp that only writes bytes.

The transitions come from a registry of this process: another runtime on the same
database, so what is measured is commit, notification, reading and delivery.
"""

import asyncio
import time
from collections.abc import Sequence

import aiohttp
import psycopg

from benchmarks import bare
from benchmarks.bench import Bench, Seed
from benchmarks.frame import By, Figure, Part, Sample, percentile
from benchmarks.listeners import listening
from benchmarks.registry import IN_FLIGHT, WITHIN_S, registry, verdict
from benchmarks.served import serving
from trustfabric.actors.trust import TrustRegistry
from trustfabric.supervision import Address

STREAM = "/api/trust/registry/stream"
FRAME = 660
"""Bytes of a transition's data as the product writes it."""

CLIENTS = 500
SERVERS = 50
"""Each client follows one, so a 50th of the fleet."""

LATENCY = Figure(
    name="commit → SSE client p99, 1 000/s, 500 clients that each follow a 50th",
    unit="ms",
    peer="bare aiohttp, the same writes",
    less_is_better=True,
    floor=20,
    aim=5,
)
DELIVERIES = Figure(
    name="SSE deliveries/s in one process",
    unit="/s",
    peer="bare aiohttp, prepared bytes, a write each",
    by=By.RATIO,
    floor=0.5,
    aim=0.8,
)
MEMORY = Figure(
    name="memory per SSE subscriber", unit="kB", less_is_better=True, floor=30, aim=12
)


async def measure_latency(bench: Bench) -> list[Sample]:
    count, rate = bench.size(5_000, 1_000), 1_000
    seed = Seed(instances=2_000, servers=SERVERS)
    async with (
        bench.database(seed) as url,
        serving(bench, url) as served,
        registry(bench, url) as address,
    ):
        paths = [f"{STREAM}?server_id={1 + n % SERVERS}" for n in range(CLIENTS)]
        expected = count * CLIENTS // SERVERS
        async with listening(
            served.url, served.token, paths, stamps=True, expected=expected
        ) as clients:
            await _transitions(address, count, rate)
            seen = await clients.seen()
        committed = await _commits(url)
    ours = [at - committed[name.split("-")[0]] for name, at in seen["stamps"]]
    beside = await _bare_latency(count, rate)
    return [
        Sample(
            LATENCY.name, percentile(ours, 0.99) * 1e3, percentile(beside, 0.99) * 1e3
        )
    ]


async def measure_deliveries(bench: Bench) -> list[Sample]:
    clients, count = bench.size(100, 50), bench.size(2_000, 400)
    async with (
        bench.database(Seed(instances=2_000)) as url,
        serving(bench, url, SSE_BUFFER_EVENTS="100000") as served,
        registry(bench, url) as address,
        listening(
            served.url, served.token, [STREAM] * clients, expected=count * clients
        ) as listeners,
    ):
        begun = time.time()
        await _transitions(address, count)
        seen = await listeners.seen()
    ours = seen["count"] / (seen["last"] - begun)
    return [Sample(DELIVERIES.name, ours, await _bare_deliveries(count, clients))]


async def measure_memory(bench: Bench) -> list[Sample]:
    few, many = 50, bench.size(1_000, 300)
    async with (
        bench.database(Seed(instances=100)) as url,
        serving(bench, url) as served,
        listening(served.url, served.token, [STREAM] * few),
    ):
        before = served.resident_bytes()
        async with listening(served.url, served.token, [STREAM] * many):
            each = (served.resident_bytes() - before) / many
    return [Sample(MEMORY.name, each / 1e3)]


PARTS = (
    Part("stream latency", (LATENCY,), measure_latency),
    Part("stream deliveries", (DELIVERIES,), measure_deliveries),
    Part("stream memory", (MEMORY,), measure_memory, once=True),
)


async def _transitions(
    address: Address[TrustRegistry], count: int, rate: float | None = None
) -> None:
    """Have each next instance attested; `rate` a second, else as fast as it goes."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def ask(number: int) -> None:
        async with room:
            await address.ask(verdict(1 + number % 2_000), within_s=WITHIN_S)

    sent, begun = 0, time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while sent < count:
            passed = time.perf_counter() - begun
            due = count if rate is None else min(count, int(1 + passed * rate))
            for number in range(sent, due):
                group.create_task(ask(number))
            sent = due
            await asyncio.sleep(0.001)


async def _commits(url: str) -> dict[str, float]:
    """Return when each transaction of the history was committed."""
    query = """
        SELECT xid::text, extract(epoch FROM pg_xact_commit_timestamp(xid::xid))
          FROM (SELECT DISTINCT xid FROM runtime_vm_trust_history) h
    """
    async with await psycopg.AsyncConnection.connect(url) as conn:
        rows: Sequence[tuple[str, float]] = await (await conn.execute(query)).fetchall()
    return {xid: float(at) for xid, at in rows}


async def _bare_latency(count: int, rate: int) -> list[float]:
    followers = CLIENTS // SERVERS
    async with (
        bare.serving() as url,
        listening(
            url,
            bare.TOKEN,
            ["/stream"] * CLIENTS,
            stamps=True,
            expected=count * followers,
        ) as clients,
    ):
        await _send(url, events=count, rate=rate, followers=followers, size=FRAME)
        seen = await clients.seen()
    return [at - float(sent) for sent, at in seen["stamps"]]


async def _bare_deliveries(count: int, clients: int) -> float:
    async with (
        bare.serving() as url,
        listening(
            url, bare.TOKEN, ["/stream"] * clients, expected=count * clients
        ) as listeners,
    ):
        begun = time.time()
        await _send(url, events=count, size=FRAME)
        seen = await listeners.seen()
    return float(seen["count"] / (seen["last"] - begun))


async def _send(url: str, **order: int) -> None:
    query = {name: str(value) for name, value in order.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/send", params=query) as answer,
    ):
        answer.raise_for_status()
