"""The peer of the front end: aiohttp alone, in a process of its own.

    python -m benchmarks.bare

Prints its port. `/row` answers the bytes that were put there, to a POST as well, whose
body it reads; `/stream` is written to
by `/send`, which takes how many events there shall be, how many a second at most, and
how many streams follow each.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

TOKEN = "none"


@dataclass(slots=True)
class Bare:
    row: bytes = b""
    streams: list[web.StreamResponse] = field(default_factory=list)

    async def get(self, _: web.Request) -> web.Response:
        return web.Response(body=self.row, content_type="application/json")

    async def put(self, request: web.Request) -> web.Response:
        self.row = await request.read()
        return web.Response()

    async def post(self, request: web.Request) -> web.Response:
        await request.json()
        return web.Response(body=self.row, content_type="application/json")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 2000\n\n")
        self.streams.append(response)
        await asyncio.Event().wait()
        return response

    async def send(self, request: web.Request) -> web.Response:
        """Write events, each to the next `followers` streams."""
        count = int(request.query["events"])
        rate = float(request.query.get("rate", "inf"))
        followers = int(request.query.get("followers", len(self.streams)))
        data = b"x" * int(request.query["size"])
        sent, begun = 0, time.perf_counter()
        while sent < count:
            due = (
                min(count, int(1 + (time.perf_counter() - begun) * rate))
                if (rate < float("inf"))
                else count
            )
            for number in range(sent, due):
                await self._write(number * followers, followers, data)
            sent = due
            await asyncio.sleep(0.001)
        return web.Response()

    async def _write(self, first: int, followers: int, data: bytes) -> None:
        frame = b"id: %r\nevent: trust\ndata: %b\n\n" % (time.time(), data)
        for at in range(first, first + followers):
            await self.streams[at % len(self.streams)].write(frame)


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Run it in a process of its own while the block runs; its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.bare"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def _serve() -> None:
    bare = Bare()
    application = web.Application()
    application.router.add_get("/row", bare.get)
    application.router.add_put("/row", bare.put)
    application.router.add_post("/row", bare.post)
    application.router.add_get("/stream", bare.stream)
    application.router.add_post("/send", bare.send)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
