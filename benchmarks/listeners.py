"""Clients of event streams, many in one process, as light as they can be.

    python -m benchmarks.listeners '{"url": …, "token": …, "paths": […], "expected": N}'

Says `ready` when every stream has begun. When `expected` events have come, or stdin
ends, it prints what it saw as JSON: how many, when the last one came, and the id and
time of each where `stamps` asks for them.
"""

import asyncio
import gc
import json
import select
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

END = b"\n\n"
EVENT = b"\nevent: trust"
READ = 65_536


@dataclass(slots=True)
class Seen:
    """What all the clients of this process saw."""

    expected: int
    stamps: bool
    count: int = 0
    last: float = 0.0
    _frames: list[tuple[bytes, float]] = field(default_factory=list)

    def came(self, frames: bytes) -> None:
        number = frames.count(EVENT)
        if not number:
            return
        self.count += number
        self.last = time.time()
        if self.stamps:
            self._frames.append((frames, self.last))  # looked into when all have come

    def told(self) -> dict[str, Any]:
        stamps = [
            (one.split(b"\n", 1)[0].decode(), at)
            for frames, at in self._frames
            for one in frames.split(b"id: ")[1:]
        ]
        return {"count": self.count, "last": self.last, "stamps": stamps}


class Listener:
    """One client: what has come of an event that isn't whole yet."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        self.begun = False

    def read(self, seen: Seen) -> bool:
        """Take what came; False: the server ended the stream."""
        data = self._sock.recv(READ)
        if not data:
            return False
        if self._rest:
            data = self._rest + data
        if not self.begun:
            if b"retry: " not in data:
                self._rest = data
                return True
            assert data.startswith(b"HTTP/1.1 200"), data[:500]
            self.begun = True
        end = data.rfind(END) + len(END)
        if end >= len(END):
            seen.came(data[:end])
            data = data[end:]
        self._rest = data
        return True


def _listen(order: dict[str, Any]) -> None:
    """Read whatever comes, without an event loop: that would cost more than reading."""
    seen = Seen(order.get("expected", 2**62), bool(order.get("stamps")))
    address = urlsplit(order["url"])
    assert address.hostname is not None
    ready = select.epoll()
    ready.register(sys.stdin.fileno(), select.EPOLLIN)
    listeners: dict[int, Listener] = {}
    for path in order["paths"]:
        sock = socket.create_connection((address.hostname, address.port))
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {order['token']}\r\n\r\n".encode()
        )
        listeners[sock.fileno()] = Listener(sock)
        ready.register(sock.fileno(), select.EPOLLIN)
    waiting = len(listeners)
    gc.disable()  # nothing here is ever garbage
    while seen.count < seen.expected:
        for number, _ in ready.poll():
            listener = listeners.get(number)
            if listener is None:  # stdin has ended
                seen.expected = 0
                continue
            was_waiting = not listener.begun
            if not listener.read(seen):
                assert order.get("may_end"), "the server ended a stream"
                ready.unregister(number)
                continue
            if was_waiting and listener.begun:
                waiting -= 1
                if waiting == 0:
                    print("ready", flush=True)
    print(json.dumps(seen.told()), flush=True)


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
    _listen(json.loads(sys.argv[1]))
