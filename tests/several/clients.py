"""Clients of one or several runtimes: those who write, and those who follow."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.fix_runtime import Served
from tests.several.linear import History, Op, Outcome

STREAM = "/api/trust/registry/stream"
AWAY = (aiohttp.ClientError, TimeoutError, OSError)
Seen = tuple[str, dict[str, Any]]


def admin(runtime: Served) -> dict[str, str]:
    return {"Authorization": f"Bearer {runtime.token(1, 'admin')}"}


@dataclass
class Follower:
    """Keeps every event from the beginning; goes to the next runtime when cut off."""

    runtimes: Sequence[Served]
    cuts: random.Random | None = None
    """Hangs up at random, too, in the middle of whatever comes."""
    at_frames: bool = False
    """Hangs up only where a frame has ended."""
    bytes_at_once: int = 20_000
    """What it reads at most before it hangs up."""
    position: str = "0-0"
    events: list[Seen] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Names of frames that are no events of trust."""
    connections: int = 0
    visited: set[str] = field(default_factory=set)

    async def run(self) -> None:
        while True:
            runtime = self.runtimes[self.connections % len(self.runtimes)]
            self.connections += 1
            with suppress(*AWAY):
                await self._follow(runtime)
            await asyncio.sleep(0.05)

    async def _follow(self, runtime: Served) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=20)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(
                runtime.url + STREAM,
                headers={**admin(runtime), "Last-Event-ID": self.position},
            ) as response,
        ):
            if response.status != 200:
                return
            self.visited.add(runtime.url)
            left = self.cuts.randint(1, self.bytes_at_once) if self.cuts else 2**60
            rest = b""
            while chunk := await response.content.read(min(max(left, 1), 65_536)):
                *blocks, rest = (rest + chunk).split(b"\n\n")
                for block in blocks:
                    self._take(block)
                left -= len(chunk)
                if left <= 0 and not (self.at_frames and rest):
                    return

    def _take(self, block: bytes) -> None:
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
        if "data" not in fields:
            return
        self.position = fields["id"]
        if fields["event"] == "trust":
            self.events.append((fields["id"], json.loads(fields["data"])))
        else:
            self.others.append(fields["event"])

    def has_seen(self, position: str) -> bool:
        """Whether it has come to that event, or beyond."""
        xid, _, row = position.partition("-")
        at_xid, _, at_row = self.position.partition("-")
        return (int(at_xid), int(at_row)) >= (int(xid), int(row))


@asynccontextmanager
async def following(*followers: Follower) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one.run()) for one in followers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for done in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(done, asyncio.CancelledError), done


@dataclass
class Writer:
    """Races with others for the next version; notes what it was told."""

    name: str
    runtimes: Sequence[Served]
    instances: Sequence[int]
    random: random.Random
    ops: list[Op] = field(default_factory=list)

    async def run(self, count: int) -> None:
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            for at in range(count):
                runtime = self.random.choice(self.runtimes)
                instance = self.random.choice(self.instances)
                row = await self._read(http, runtime, instance, at)
                if row is not None:
                    await self._write(http, runtime, instance, row, at)

    async def _read(
        self, http: aiohttp.ClientSession, runtime: Served, instance: int, at: int
    ) -> dict[str, Any] | None:
        url = f"{runtime.url}/api/trust/registry/{instance}"
        began = time.monotonic()
        with suppress(*AWAY):
            async with http.get(url, headers=admin(runtime)) as response:
                body = await response.json()
            if response.status == 200:
                row: dict[str, Any] = body
                name = f"{self.name}-read-{at}"
                self._note(instance, name, Outcome.READ, began, version=row["version"])
                return row
        await asyncio.sleep(0.05)
        return None

    async def _write(
        self,
        http: aiohttp.ClientSession,
        runtime: Served,
        instance: int,
        row: dict[str, Any],
        at: int,
    ) -> None:
        name, began = f"{self.name}-{at}", time.monotonic()
        expected = row["version"]
        outcome, version = Outcome.UNKNOWN, 0
        body = {
            "attestation_status": row["attestation_status"],
            "lifecycle_state": row["lifecycle_state"],
            "transition_reason": name,
            "expected_version": expected,
        }
        url = f"{runtime.url}/api/trust/registry/{instance}/transition"
        with suppress(*AWAY):
            async with http.post(url, json=body, headers=admin(runtime)) as response:
                answer = await response.json()
            if response.status == 200:
                outcome, version = Outcome.DONE, answer["version"]
            elif response.status == 409:
                assert answer["type"] == "version-conflict", answer
                assert answer["current"]["version"] >= answer["current_version"]
                outcome, version = Outcome.CONFLICT, answer["current_version"]
            else:
                assert response.status in (503, 504), answer
        self._note(instance, name, outcome, began, version=version, expected=expected)

    def _note(
        self, instance: int, name: str, outcome: Outcome, began: float, **parts: int
    ) -> None:
        ended = time.monotonic()
        self.ops.append(Op(instance, name, outcome, began, ended, **parts))


def told(runtime: Served) -> list[tuple[str, int, int]]:
    """Return what the streams have to tell: position, instance, version."""
    return [
        (f"{xid}-{id_}", instance, version)
        for xid, id_, instance, version in runtime.rows(
            """
            SELECT xid::text, id, runtime_vm_instance_id, registry_version
              FROM runtime_vm_trust_history h ORDER BY h.xid, h.id
            """
        )
    ]


def history(runtime: Served, instances: Sequence[int]) -> History:
    rows = runtime.rows(
        """
        SELECT runtime_vm_instance_id, registry_version, transition_reason
          FROM runtime_vm_trust_history ORDER BY registry_version
        """
    )
    return {
        one: [
            (version, reason) for instance, version, reason in rows if instance == one
        ]
        for one in instances
    }


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.05)


async def have_all(runtime: Served, *followers: Follower) -> None:
    """Wait until they have heard of the last row; then hold them to all of it."""
    expected = told(runtime)
    with suppress(TimeoutError):
        await until(lambda: all(one.has_seen(expected[-1][0]) for one in followers))
    for one in followers:
        seen = [
            (id_, data["vm_instance_id"], data["version"]) for id_, data in one.events
        ]
        missing, strange = set(expected) - set(seen), len(seen) - len(set(seen))
        assert not missing, (sorted(missing), len(expected), one.connections)
        assert not strange, f"{strange} told again"
        assert seen[: len(expected)] == expected
        assert one.events[: len(expected)] == followers[0].events[: len(expected)]


def conserved(ops: Sequence[Op], rows: History) -> None:
    """Acknowledged and unknown-but-made are all that the history has of the writers."""
    made = [reason for each in rows.values() for _, reason in each if reason[0] == "w"]
    done = {op.name for op in ops if op.outcome is Outcome.DONE}
    unknown = {op.name for op in ops if op.outcome is Outcome.UNKNOWN}
    assert done
    assert len(made) == len(set(made))
    assert done <= set(made) <= done | unknown
