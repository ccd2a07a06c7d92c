"""What it costs a request over HTTP to ask an actor on its way.

One process serves two routes with the same bytes, one of them by asking for them, and
has aiohttp's own client call them: the setting in which "no more than noise" was tried.
"""

import asyncio
import time
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from benchmarks.actors_world import Get, Ours
from benchmarks.bench import Bench
from benchmarks.frame import By, Figure, Part, Sample

CLIENTS = 16
CALLS = 50
"""Of each client in one turn: short, as the pace of a machine changes."""
ASKED = Figure(
    name="actor: requests over HTTP per CPU second, one ask each",
    unit="/s",
    peer="the same without the ask",
    by=By.RATIO,
    floor=0.95,
    aim=0.98,
)


@dataclass(slots=True)
class Spent:
    """Processor time, not the clock's: a neighbour's load is no cost of ours."""

    session: aiohttp.ClientSession
    url: str
    requests: int = 0
    seconds: float = 0.0

    async def take_turn(self) -> None:
        before = time.process_time()
        await asyncio.gather(*(self._call() for _ in range(CLIENTS)))
        self.seconds += time.process_time() - before
        self.requests += CLIENTS * CALLS

    async def _call(self) -> None:
        for _ in range(CALLS):
            async with self.session.get(self.url) as answer:
                await answer.read()


async def measure(bench: Bench) -> list[Sample]:
    async with Ours() as ours, aiohttp.ClientSession() as session:
        (worker,) = await ours.spawn(1)

        async def asked(_: web.Request) -> web.Response:
            return _answer(await worker.ask(Get(), within_s=5.0))

        async def plain(_: web.Request) -> web.Response:
            return _answer(1)

        application = web.Application()
        application.router.add_get("/asked", asked)
        application.router.add_get("/plain", plain)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ours_spent = Spent(session, f"{url}/asked")
        peers_spent = Spent(session, f"{url}/plain")
        for _ in range(bench.size(40, 8)):
            await ours_spent.take_turn()
            await peers_spent.take_turn()
        await runner.cleanup()
    return [Sample(ASKED.name, _rate(ours_spent), _rate(peers_spent))]


PARTS = (Part("actors: asked over HTTP", (ASKED,), measure),)


def _rate(spent: Spent) -> float:
    return spent.requests / spent.seconds


def _answer(count: int) -> web.Response:
    return web.Response(body=b"%012d" % count, content_type="application/json")
