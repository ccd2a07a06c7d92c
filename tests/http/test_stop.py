"""Stopping, dying and coming back: quickly, and with no event lost or told twice."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.fix_runtime import Served
from tests.http.client import Caller, RefusedError, Stream
from tests.http.conftest import Still, still_instance

pytestmark = pytest.mark.slow

TRUST = "/api/trust/registry/stream"
OWNER = 7


@pytest_asyncio.fixture
async def owner(own_runtime: Served) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True)
    ) as http:
        yield Caller(own_runtime, http, OWNER, own_runtime.token(OWNER, "admin"))


@pytest.fixture
def own_vm(own_runtime: Served) -> Still:
    return still_instance(own_runtime, OWNER)


async def _stopped(runtime: Served) -> tuple[int, float]:
    began = time.monotonic()
    code = await asyncio.to_thread(runtime.stop)
    return code, time.monotonic() - began


async def test_z10_sigterm_with_100_open_streams_ends_at_once(
    own_runtime: Served, owner: Caller
) -> None:
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(owner.stream(TRUST)) for _ in range(100)
        ]
        for stream in streams:
            await stream.frame()

        code, seconds = await _stopped(own_runtime)

        for stream in streams:  # each was ended in order, not cut off
            await stream.until_end(within_s=5)
    assert code == 0
    assert seconds < 5


async def test_sigterm_does_not_wait_for_a_client_that_reads_nothing(
    own_runtime: Served, owner: Caller, own_vm: Still
) -> None:
    own_runtime.rows(
        """
        INSERT INTO runtime_vm_trust_history (
               runtime_vm_instance_id, current_status, current_lifecycle_state,
               transition_reason, remediation_state, remediation_attempts,
               registry_version, actor, provenance)
        SELECT %s, 'unknown', 'suspect', 'flood', 'remediation:none', 0, n, 'test',
               jsonb_build_object('x', repeat(md5(n::text), 625))
          FROM generate_series(2, 601) n
        """,
        own_vm.id,
    )
    _, writer = await asyncio.open_connection("127.0.0.1", own_runtime.port, limit=1024)
    path = f"{TRUST}?include=provenance&last_event_id=0-0"
    head = f"GET {path} HTTP/1.1\r\nAuthorization: Bearer {owner.token}"
    writer.write(f"{head}\r\nHost: x\r\n\r\n".encode())
    await asyncio.sleep(1)

    code, seconds = await _stopped(own_runtime)

    writer.transport.abort()
    assert code == 0
    assert seconds < 5


@dataclass
class Reader:
    """A client that comes back with the last id it saw, whatever happens."""

    caller: Caller
    wanted: int
    position: str
    seen: list[int] = field(default_factory=list)
    resets: int = 0

    async def run(self) -> None:
        while len(self.seen) < self.wanted:
            with contextlib.suppress(aiohttp.ClientError, RefusedError):
                async with self.caller.stream(TRUST, self.position) as stream:
                    await self._read(stream)
            await asyncio.sleep(0.02)

    async def _read(self, stream: Stream) -> None:
        while len(self.seen) < self.wanted:
            frame = await stream.frame()
            if frame is None:
                return
            if frame.event == "trust":
                self.seen.append(frame.data["version"])
            self.resets += frame.event == "reset"
            if frame.event not in ("", "retry"):
                self.position = frame["id"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_every_event_comes_exactly_once_across_a_restart(
    own_runtime: Served, owner: Caller, own_vm: Still, how: signal.Signals
) -> None:
    total = 120

    async def write() -> None:
        for at in range(total):
            status = "unknown" if at % 2 else "pending"
            await asyncio.to_thread(own_vm.move, "suspect", status)

    async def restart() -> None:
        for _ in range(2):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(own_runtime.stop, how)
            await asyncio.to_thread(own_runtime.start)

    async with owner.stream(TRUST, snapshot="true") as stream:
        bookmark = (await stream.events(2))[-1]
    reader = Reader(owner, total, bookmark["id"])
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        for work in (write(), restart(), reader.run()):
            tasks.create_task(work)

    assert reader.seen == list(range(2, total + 2))
    assert reader.resets == 0


def _descriptors(runtime: Served) -> int:
    return len(list(Path(f"/proc/{runtime.pid}/fd").iterdir()))


async def _asked(caller: Caller, path: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            try:
                return await caller.get(path)
            except aiohttp.ClientError:
                await asyncio.sleep(0.02)


async def test_a_killed_site_takes_its_connections_and_sockets_along(
    own_runtime: Served, owner: Caller, own_vm: Still
) -> None:
    before = 0
    for turn in range(3):
        async with owner.stream(TRUST) as stream:
            await stream.frame()
            with contextlib.suppress(aiohttp.ClientError):  # both die with it
                await owner.post("/api/system/actors/fabric/api/kill")
            with contextlib.suppress(aiohttp.ClientError):
                await stream.until_end(within_s=10)
        assert (await _asked(owner, own_vm.path)).status == 200
        if turn == 0:
            before = _descriptors(own_runtime)

    assert _descriptors(own_runtime) <= before + 3


async def test_sighup_renews_the_hypervisors_link_and_ends_nothing(
    own_runtime: Served, owner: Caller
) -> None:
    os.kill(own_runtime.pid, signal.SIGHUP)

    async with asyncio.timeout(10):
        while "hypervisor.renewed" not in own_runtime.log():
            await asyncio.sleep(0.05)
    assert (await owner.get("/api/servers")).status == 200
