"""Ten thousand events, and everything is cut, killed and restarted meanwhile.

The writers are a registry of this process, another runtime on the same database, and
clients of the one that serves. That one is killed, PostgreSQL is stopped at once, and
the followers hang up anywhere; each must see every event once and in order.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fix_runtime import Served, serving
from tests.http.conftest import still_instance
from tests.several.clients import (
    Follower,
    Writer,
    conserved,
    following,
    have_all,
    history,
    until,
)
from tests.several.linear import violations
from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db.embedded import start_embedded
from trustfabric.db.migrate import migrate
from trustfabric.db.session import Database
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Change, Signal
from trustfabric.errors import FabricError, UnavailableError
from trustfabric.supervision import (
    Address,
    AskTimeoutError,
    ChildSpec,
    Runtime,
    SupervisorSpec,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

EVENTS = 10_000
WRITERS = 20
INSTANCES = 40


@asynccontextmanager
async def _a_registry(url: str) -> AsyncIterator[Address[TrustRegistry]]:
    address: Address[TrustRegistry] = Address("trust")
    runtime = Runtime(answers=(FabricError,))
    database = await Database.open(url)
    try:
        child = ChildSpec(address=address, start=lambda: TrustRegistry(database))
        await runtime.start(SupervisorSpec(name="other", children=(child,)))
        yield address
        await runtime.stop()
    finally:
        await database.close()


class Flood:
    """Changes by many writers, each one after the other, until there are enough."""

    def __init__(self, registry: Address[TrustRegistry], ids: list[int]) -> None:
        self._registry = registry
        self._ids = ids
        self.acknowledged: set[str] = set()
        self.unknown: set[str] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as writers:
            for number in range(WRITERS):
                writers.create_task(self._write(f"flood-{number}"))

    async def _write(self, writer: str) -> None:
        choice, made = random.Random(writer), 0
        while len(self.acknowledged) < EVENTS:
            made += 1
            name = f"{writer}-{made}"
            change = Change(signal=Signal.ANNOTATED, actor="test", reason=name)
            instance = InstanceId(choice.choice(self._ids))
            try:
                await self._registry.ask(
                    ApplyChange(instance_id=instance, change=change), within_s=20
                )
            except (UnavailableError, AskTimeoutError):
                self.unknown.add(name)
                await asyncio.sleep(0.05)
            else:
                self.acknowledged.add(name)


async def test_ten_thousand_events_through_cuts_kills_and_restarts(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("pg")
    server = await start_embedded(home)
    await migrate(server.url)

    async def kill_the_runtime(runtime: Served) -> None:
        await asyncio.to_thread(runtime.stop, signal.SIGKILL)
        await asyncio.to_thread(runtime.start)

    async def stop_postgresql_at_once() -> None:
        nonlocal server
        pid = (home / "pg" / "postmaster.pid").read_text().split()[0]
        os.kill(int(pid), signal.SIGQUIT)
        await server.stop()
        server = await start_embedded(home)

    try:
        with serving(tmp_path / "data", server.url) as runtime:
            ids = [still_instance(runtime, 1000 + at).id for at in range(INSTANCES)]
            clients = [
                Writer(f"w{at}", [runtime], ids, random.Random(at)) for at in range(2)
            ]
            followers = [
                Follower([runtime]),
                Follower([runtime], random.Random(1), bytes_at_once=400_000),
                Follower([runtime], random.Random(2), bytes_at_once=400_000),
                Follower(
                    [runtime], random.Random(3), at_frames=True, bytes_at_once=400_000
                ),
            ]
            async with _a_registry(server.url) as registry, following(*followers):
                flood = Flood(registry, ids)
                writing = asyncio.gather(flood.run(), *(one.run(25) for one in clients))

                async def reached(share: float) -> None:
                    goal = share * EVENTS
                    await until(lambda: len(flood.acknowledged) >= goal, 90)

                await reached(0.2)
                await kill_the_runtime(runtime)
                await reached(0.4)
                await stop_postgresql_at_once()
                await reached(0.6)
                await kill_the_runtime(runtime)
                await reached(0.8)
                await stop_postgresql_at_once()
                await writing
                await have_all(runtime, *followers)

            ops = [op for one in clients for op in one.ops]
            rows = history(runtime, ids)
    finally:
        await server.stop()

    assert violations(ops, rows) == []
    conserved(ops, rows)
    made = [why for each in rows.values() for _, why in each if why[:5] == "flood"]
    assert len(made) == len(set(made)) >= EVENTS
    assert flood.acknowledged <= set(made) <= flood.acknowledged | flood.unknown
    assert all(one.connections > 2 for one in followers)
    assert not {name for one in followers for name in one.others} - {"lagged"}
