"""A small running tree around the trust registry, and what tests do with it.

Time stands still until a test moves it; everything else is real: PostgreSQL, its
notifications, the actors.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from tests.builders import OWNER, insert_owner
from trustfabric.actors.listener import Listener
from trustfabric.actors.streams import Broadcaster, Feed, Stream
from trustfabric.actors.trust import Applied, ApplyChange, OpenInstance, TrustRegistry
from trustfabric.db import hold_events, listen, run_events, servers, trust, trust_events
from trustfabric.db.session import Connection, Database
from trustfabric.db.vms import NewInstance
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.servers import Server
from trustfabric.domain.trust import Change, Signal, Snapshot
from trustfabric.errors import FabricError
from trustfabric.supervision import (
    Address,
    AskError,
    ChildSpec,
    ManualClock,
    Runtime,
    State,
    Strategy,
    SupervisorSpec,
    exits,
)
from trustfabric.supervision.cell import Cell

T = TypeVar("T")

ASK_S = 9_999.0
"""By a clock that tests move: whoever hangs is found by pytest's time-out."""
RUNTIME = "here"
FEEDS = (
    Feed(Stream.TRUST, listen.TRUST_CHANNEL, trust_events.events_after),
    Feed(Stream.REMEDIATION, listen.REMEDIATION_CHANNEL, run_events.events_after),
    Feed(Stream.HOLDS, hold_events.CHANNEL, hold_events.events_after),
)


async def until(
    look: Callable[[], Awaitable[T | None]], what: str = "", within_s: float = 30
) -> T:
    """Return the first thing that `look` finds, however soon."""
    last: T | None = None
    try:
        async with asyncio.timeout(within_s):
            while (last := await look()) is None:
                await asyncio.sleep(0.005)
            return last
    except TimeoutError:
        pytest.fail(f"waited in vain for {what or look}; last seen: {last}")


async def add_server(database: Database, owner: int = OWNER, **config: Any) -> Server:
    async with database.writing() as conn:
        await insert_owner(conn, owner)
        return await servers.insert_server(
            conn,
            servers.NewServer(
                owner_id=OwnerId(owner), name="web", server_type=None, config=config
            ),
        )


def a_new_instance(server: ServerId, name: str, **changes: Any) -> NewInstance:
    return NewInstance(
        **{
            "server_id": server,
            "name": name,
            "isolation_tier": "standard",
            "driver": "libvirt",
            "image": "demo",
            "memory_mib": 64,
            "vcpu_count": 1,
            "config": {},
            "attestation_policy": "default",
            "endpoint": "test:///default",
            "credentials": {},
            "network": {},
            "volume": {},
            "gpu": {},
            "runtime_owner": RUNTIME,
            "owner_epoch": 1,
            **changes,
        }
    )


async def count(database: Database, query: str, *values: Any) -> int:
    async with database.reading() as conn:
        row = await (await conn.execute(query.encode(), values)).fetchone()
    assert row is not None
    return int(row[0])


@dataclass
class Fabric:
    """A running tree: the streams and the registry."""

    runtime: Runtime
    clock: ManualClock
    database: Database
    database_url: str
    name: str = RUNTIME
    broadcaster: Address[Broadcaster] = field(
        default_factory=lambda: Address("broadcaster")
    )
    listener: Address[Listener] = field(default_factory=lambda: Address("listener"))
    trust: Address[TrustRegistry] = field(default_factory=lambda: Address("trust"))

    def spec(self) -> SupervisorSpec:
        return SupervisorSpec(
            name="fabric",
            max_restarts=100,
            children=(
                SupervisorSpec(
                    name="streams",
                    strategy=Strategy.REST_FOR_ONE,
                    max_restarts=100,
                    children=(
                        ChildSpec(
                            address=self.broadcaster,
                            start=lambda: Broadcaster(self.database, FEEDS, self.name),
                        ),
                        ChildSpec(address=self.listener, start=self._listener),
                    ),
                ),
                ChildSpec(
                    address=self.trust, start=lambda: TrustRegistry(self.database)
                ),
            ),
        )

    def _listener(self) -> Listener:
        return Listener(
            self.database,
            self.broadcaster,
            FEEDS,
            self.name,
            lambda channels: listen.Wakeups.open(self.database_url, channels),
        )

    async def kill(self, path: str) -> None:
        """End an actor in the middle of whatever it does, and let it come back."""
        await self.runtime.kill(path)

        async def look() -> bool | None:
            if all(one.state == State.RUNNING.value for one in self.runtime.report()):
                return True
            self.clock.advance(0.05)
            return None

        await until(look, "all to be up again")

    async def instance(self, owner: int = OWNER) -> InstanceId:
        """Add a server with an instance that shall run: suspect, pending."""
        server = await add_server(self.database, owner)
        return await self.instance_of(server.id)

    async def instance_of(self, server: ServerId, name: str = "") -> InstanceId:
        insert = a_new_instance(server, name or f"vm-{server}")
        return await self.trust.ask(
            OpenInstance(insert=insert, actor="test"), within_s=ASK_S
        )

    async def instances(self, number: int) -> list[InstanceId]:
        return [await self.instance() for _ in range(number)]

    async def apply(self, instance: InstanceId, change: Any, **parts: Any) -> Applied:
        return await self.trust.ask(
            ApplyChange(instance_id=instance, change=change, **parts), within_s=ASK_S
        )

    async def change(
        self, instance: InstanceId, signal: Signal, **parts: Any
    ) -> Snapshot:
        return (await self.apply(instance, self.a_change(signal, **parts))).after

    def a_change(self, signal: Signal, **parts: Any) -> Change:
        parts = {"actor": "test", "reason": str(signal), **parts}
        if signal is Signal.TRUSTED_VERDICT:
            deadline = self.clock.now() + timedelta(seconds=300)
            parts = {"deadline": deadline, **parts}
        return Change(
            signal=signal, **{"challenge_issued_at": self.clock.now(), **parts}
        )

    async def posture(self, instance: InstanceId) -> Snapshot:
        async with self.database.reading() as conn:
            found = await trust.get_posture(conn, None, instance)
        assert found is not None
        return found

    async def history(self, instance: InstanceId) -> list[TrustEvent]:
        """Return what happened to it, oldest first."""
        async with self.database.reading() as conn:
            return (await trust_events.list_history(conn, None, instance, limit=200))[
                ::-1
            ]


@asynccontextmanager
async def a_fabric(
    database: Database, database_url: str, name: str = RUNTIME
) -> AsyncIterator[Fabric]:
    clock = ManualClock()
    runtime = Runtime(clock=clock, answers=(FabricError, AskError))
    fabric = Fabric(runtime, clock, database, database_url, name)
    await runtime.start(fabric.spec())
    try:
        yield fabric
    finally:
        await _stop(runtime)


async def _stop(runtime: Runtime) -> None:
    async with asyncio.timeout(15):
        await runtime.stop()


@pytest_asyncio.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Fabric]:
    async with a_fabric(database, database_url) as started:
        yield started


@pytest_asyncio.fixture
async def second(database: Database, database_url: str) -> AsyncIterator[Fabric]:
    """Another runtime on the same database, with connections of its own."""
    opened = await Database.open(database_url)
    try:
        async with a_fabric(opened, database_url, "there") as started:
            yield started
    finally:
        await opened.close()


@asynccontextmanager
async def held(database: Database, instance: InstanceId) -> AsyncIterator[Connection]:
    """Keep the registry waiting: somebody is in the middle of changing it."""
    async with database.writing() as conn:
        await trust.lock(conn, [instance])
        await conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield conn


async def waiting(fabric: Fabric) -> int:
    """Return how many wait for a lock."""
    return await count(
        fabric.database,
        """
        SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND wait_event_type = 'Lock'
        """,
    )


async def until_waiting(fabric: Fabric) -> None:
    async def look() -> int | None:
        return await waiting(fabric) or None

    await until(look, "the registry to wait")


async def queued(fabric: Fabric, number: int) -> None:
    async def look() -> bool | None:
        return fabric.trust.cell.depth == number or None

    await until(look, f"{number} changes to queue")


async def kill_as_it_begins_to_hear(fabric: Fabric, cell: Cell) -> None:
    """End an actor before the first step of the task in which it waits for news."""
    cell.kill(exits.killed("test"))
    while getattr(cell.actor, "_hearing", None) is None:
        fabric.clock.advance(0.05)
        await asyncio.sleep(0)
    cell.kill(exits.killed("test"))


async def only_one_listens(database: Database, name: str) -> None:
    """Wait until one connection of that name is left."""

    async def look() -> bool | None:
        listening = await count(
            database,
            """
            SELECT count(*) FROM pg_stat_activity
             WHERE application_name = %s AND datname = current_database()
            """,
            f"trustfabric {name}",
        )
        return listening == 1 or None

    await until(look, "the other connections to be gone")
