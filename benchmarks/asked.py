"""What it costs a request over HTTP to ask an actor on its way.

    python -m benchmarks.asked

Serves two routes with the same bytes, one of them by asking for them; prints its port.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from benchmarks import bare
from benchmarks.actors_world import Get, Ours
from benchmarks.bench import Bench
from benchmarks.frame import By, Figure, Part, Sample
from benchmarks.requests import requests_in

TURN_S = 0.25
ASKED = Figure(
    name="actor: requests over HTTP per CPU second, one ask each",
    unit="/s",
    peer="the same bare aiohttp handler without the ask",
    by=By.RATIO,
    floor=0.95,
    aim=0.98,
)


async def measure(bench: Bench) -> list[Sample]:
    """Take short turns: a machine's pace changes by more than an ask costs."""
    asked, plain = Spent(), Spent()
    async with serving() as (url, pid):
        for _ in range(bench.size(40, 8)):
            await asked.add(f"{url}/asked", pid)
            await plain.add(f"{url}/plain", pid)
    return [Sample(ASKED.name, asked.per_second, plain.per_second)]


PARTS = (Part("actors: asked over HTTP", (ASKED,), measure),)


@dataclass(slots=True)
class Spent:
    """Processor time of the serving process: a neighbour's load is no cost of ours."""

    requests: int = 0
    seconds: float = 0.0

    async def add(self, url: str, pid: int) -> None:
        before = _cpu_seconds(pid)
        self.requests += await requests_in(url, bare.TOKEN, TURN_S)
        self.seconds += _cpu_seconds(pid) - before

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, int]]:
    """Run it in a process of its own while the block runs; its address and its pid."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.asked"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        await process.wait()


async def _serve() -> None:
    async with Ours() as ours:
        (worker,) = await ours.spawn(1)

        async def asked(_: web.Request) -> web.Response:
            count = await worker.ask(Get(), within_s=5.0)
            return _answer(count)

        async def plain(_: web.Request) -> web.Response:
            return _answer(1)

        application = web.Application()
        application.router.add_get("/asked", asked)
        application.router.add_get("/plain", plain)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()


def _answer(count: int) -> web.Response:
    return web.Response(body=b"%012d" % count, content_type="application/json")


if __name__ == "__main__":
    asyncio.run(_serve())
