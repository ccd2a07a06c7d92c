"""Clients of event streams, many in one process, as light as they can be.

    python -m benchmarks.listeners '{"url": …, "token": …, "paths": […], "expected": N}'

Says `ready` when every stream has begun. When `expected` events have come, or stdin
ends, it prints what it saw as JSON: how many, when the last one came, and the id and
time of each where `stamps` asks for them.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

END = b"\n\n"
EVENT = b"\nevent: trust"


@dataclass(slots=True)
class Seen:
    """What all the clients of this process saw."""

    waiting: int
    expected: int
    stamps: list[tuple[str, float]] | None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    count: int = 0
    last: float = 0.0

    def opened(self) -> None:
        self.waiting -= 1
        if self.waiting == 0:
            self.begun.set()

    def came(self, frames: bytes) -> None:
        number = frames.count(EVENT)
        if not number:
            return
        self.count += number
        self.last = time.time()
        if self.stamps is not None:
            ids = [one.split(b"\n", 1)[0] for one in frames.split(b"id: ")[1:]]
            self.stamps += [(one.decode(), self.last) for one in ids]
        if self.count >= self.expected:
            self.complete.set()


class Listener(asyncio.Protocol):
    def __init__(self, request: bytes, seen: Seen) -> None:
        self._request = request
        self._seen = seen
        self._rest = b""
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self._begun:
            if b"retry: " not in data:
                self._rest = data
                return
            assert data.startswith(b"HTTP/1.1 200"), data[:500]
            self._begun = True
            self._seen.opened()
        end = data.rfind(END) + len(END)
        if end >= len(END):
            self._seen.came(data[:end])
            data = data[end:]
        self._rest = data


async def _listen(order: dict[str, Any]) -> None:
    paths = order["paths"]
    stamps: list[tuple[str, float]] | None = [] if order.get("stamps") else None
    seen = Seen(len(paths), order.get("expected", 2**62), stamps)
    address = urlsplit(order["url"])
    loop = asyncio.get_running_loop()
    for path in paths:
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {order['token']}\r\n\r\n"
        ).encode()
        await loop.create_connection(
            partial(Listener, request, seen), address.hostname, address.port
        )
    await seen.begun.wait()
    print("ready", flush=True)
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    full = asyncio.create_task(seen.complete.wait())
    await asyncio.wait((ended, full), return_when=asyncio.FIRST_COMPLETED)
    told = {"count": seen.count, "last": seen.last, "stamps": seen.stamps}
    print(json.dumps(told), flush=True)
    os._exit(0)  # the thread may still wait for stdin


@dataclass(frozen=True, slots=True)
class Listeners:
    """The handle on such a process."""

    process: asyncio.subprocess.Process

    async def seen(self, within_s: float = 60.0) -> dict[str, Any]:
        """Return what was seen once all that was expected came."""
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            told: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return told

    async def stop(self) -> dict[str, Any]:
        """Return what has been seen so far."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.seen()


@asynccontextmanager
async def listening(
    url: str, token: str, paths: Sequence[str], **order: Any
) -> AsyncIterator[Listeners]:
    """Open a stream for each path in a process of their own while the block runs."""
    everything = {"url": url, "token": token, "paths": list(paths), **order}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.listeners", json.dumps(everything)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**30,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        yield Listeners(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


if __name__ == "__main__":
    asyncio.run(_listen(json.loads(sys.argv[1])))
