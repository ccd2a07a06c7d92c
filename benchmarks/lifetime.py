"""Starting and ending the programs: `mcpctl --help`, a large fleet, SIGTERM."""

import asyncio
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import psycopg

from benchmarks.bench import Bench, Seed
from benchmarks.frame import Figure, Part, Sample
from benchmarks.listeners import listening
from benchmarks.served import RUNTIME, Served, serving
from benchmarks.streams import STREAM

STREAMS = 100
START_S = 120.0
"""Who is not ready by then has this as its figure."""

ALL_UP_S = 300.0
"""Until each instance has its actor: it is ready long before that."""

SETTLED_S = 2.0
"""Of little work, before memory is read; at most ten times."""

HELP = Figure(
    name="mcpctl --help",
    unit="ms",
    peer="python start alone",
    less_is_better=True,
    floor=200,
    aim=120,
)
STOP = Figure(
    name=f"SIGTERM → exit with {STREAMS} streams open",
    unit="s",
    less_is_better=True,
    floor=10,
    aim=2,
)
START = Figure(
    name="start with 100 000 instances: ready to serve",
    unit="s",
    peer="reading the rows alone",
    less_is_better=True,
    floor=10,
    aim=3,
)
MEMORY = Figure(
    name="memory with 100 000 instances on one runtime",
    unit="MB",
    less_is_better=True,
    floor=1_500,
    aim=600,
)


async def measure_help(bench: Bench) -> list[Sample]:
    mcpctl = str(Path(sys.executable).with_name("mcpctl"))
    ours, beside = [], []
    for _ in range(bench.size(11, 5)):
        ours.append(await _run(mcpctl, "--help"))
        beside.append(await _run(sys.executable, "-c", "pass"))
    return [
        Sample(
            HELP.name, statistics.median(ours) * 1e3, statistics.median(beside) * 1e3
        )
    ]


async def measure_stop(bench: Bench) -> list[Sample]:
    async with (
        bench.database(Seed(instances=100)) as url,
        serving(bench, url) as served,
        listening(served.url, served.token, [STREAM] * STREAMS, may_end=True),
    ):
        begun = time.perf_counter()
        await served.terminate()
        return [Sample(STOP.name, time.perf_counter() - begun)]


async def measure_start(bench: Bench) -> list[Sample]:
    count = bench.size(100_000, 5_000)
    seed = Seed(instances=count, runtime=f"rt-{RUNTIME}", desired="stopped")
    async with bench.database(seed) as url:
        alone = await _read_rows(url)
        quiet = {"LOG_LEVEL": "error", "METRICS_OPEN": "true"}
        async with serving(bench, url, ready=False, **quiet) as served:
            begun = time.perf_counter()
            with suppress(TimeoutError):
                await served.ready(START_S)
            ready = time.perf_counter() - begun
            await _until_all_are_up(served, count)
            await _settle(served)
            memory = served.resident_bytes()
    return [Sample(START.name, ready, alone), Sample(MEMORY.name, memory / 1e6)]


PARTS = (
    Part("lifetime: help", (HELP,), measure_help),
    Part("lifetime: stop", (STOP,), measure_stop),
    Part(
        "lifetime: large start",
        (START, MEMORY),
        measure_start,
        once=True,
        quick=False,
    ),
)


async def _until_all_are_up(served: Served, count: int) -> None:
    """Return once each instance has its actor."""
    wanted = f'trustfabric_actors{{kind="Vm"}} {count}.0'
    async with asyncio.timeout(ALL_UP_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{served.url}/metrics") as response:
                if wanted in (await response.text()).splitlines():
                    return
            await asyncio.sleep(SETTLED_S / 4)


async def _settle(served: Served) -> None:
    for _ in range(10):
        before = served.cpu_s()
        await asyncio.sleep(SETTLED_S)
        if served.cpu_s() - before < SETTLED_S / 10:
            return


async def _run(*command: str) -> float:
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    return time.perf_counter() - begun


async def _read_rows(url: str) -> float:
    begun = time.perf_counter()
    async with await psycopg.AsyncConnection.connect(url) as conn:
        cursor = await conn.execute("SELECT * FROM runtime_vm_trust_registry")
        await cursor.fetchall()
    return time.perf_counter() - begun
