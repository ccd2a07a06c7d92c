"""Locks in one order: of those who change the same rows at once, none is thrown out."""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import psycopg
import pytest

from tests.actors.test_placement import stopped, until_queued
from tests.builders import OWNER
from tests.fix_fabric import RUNTIME, Fabric, a_fabric, count, held, until
from tests.fix_machines import CALLER, Machines
from trustfabric.actors.servers import DeleteServer, RedeployServer, StartServer
from trustfabric.actors.settling import order_stop
from trustfabric.db import boots, holds, placement, servers, vms
from trustfabric.db.session import Database
from trustfabric.domain.holds import HoldOrder, HoldScope
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.trust import Signal
from trustfabric.domain.vms import PowerState
from trustfabric.errors import ConflictError, NotFoundError

DECISIONS = "SELECT count(*) FROM runtime_policy_decisions WHERE server_id = %s"
ENDS_SQL = b"UPDATE runtime_vm_instances SET terminated_at = %b WHERE id = %%s"
TIMES = 40


async def until_somebody_waits(database: Database) -> None:
    """Return once a transaction waits for another's lock."""
    query = """
        SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
         WHERE NOT l.granted AND a.datname = current_database()
    """

    async def look() -> bool | None:
        return await count(database, query) > 0 or None

    await until(look, "a lock to be waited for")


# --- two at once --------------------------------------------------------------------


@pytest.mark.libvirt
async def test_a_start_of_a_vm_that_goes_away_meanwhile_makes_a_new_one(
    machines: Machines,
) -> None:
    old = await stopped(machines)

    async with held(machines.database, old.id) as conn:
        asked = asyncio.ensure_future(machines.ask(StartServer(old.server_id, CALLER)))
        await until_queued(machines)
        await vms.set_desired(conn, old.id, "terminated")
    server = await asked

    assert server.status is ServerStatus.PROVISIONING
    new = await machines.until_running(old.server_id)
    assert new.id != old.id
    assert await count(machines.database, DECISIONS, old.server_id) == 2


@pytest.mark.libvirt
async def test_a_redeployment_waits_for_what_its_old_vm_is_noting(
    machines: Machines,
) -> None:
    old = await machines.started()

    async with machines.database.writing() as conn:
        await vms.fence(conn, old.id, 1)
        asked = asyncio.ensure_future(
            machines.ask(RedeployServer(old.server_id, CALLER))
        )
        await until_somebody_waits(machines.database)
        await servers.note_status(conn, old.server_id, ServerStatus.STOPPED)
    await asked

    assert (await machines.until_running(old.server_id)).id != old.id


@pytest.mark.libvirt
async def test_the_end_of_a_vm_waits_for_a_change_of_its_trust(
    machines: Machines,
) -> None:
    instance = await stopped(machines)
    actor = f"fabric/vms/{instance.id}"
    machines.runtime.suspend(actor)
    await machines.ask(DeleteServer(instance.server_id, CALLER))

    async with held(machines.database, instance.id) as conn:
        machines.runtime.resume(actor)
        await until_somebody_waits(machines.database)
        boot = boots.SetBoot(uuid.uuid4(), machines.clock.now(), 1)
        await boot.write(conn, await machines.posture(instance.id))

    async def look() -> bool | None:
        return (await machines.read(instance.id)).terminated_at is not None or None

    await until(look, "the end of the instance")


# --- many at once -------------------------------------------------------------------


@dataclass(frozen=True)
class One:
    """What locks rows of one instance: of its trust, its server, its holds."""

    fabric: Fabric
    id: InstanceId
    server: ServerId

    async def boots_anew(self) -> None:
        boot = boots.SetBoot(uuid.uuid4(), self.fabric.clock.now(), 1)
        change = self.fabric.a_change(Signal.BOOTED)
        await self.fabric.apply(self.id, change, companions=(boot,))

    async def notes(self) -> None:
        now = self.fabric.clock.now()
        async with self.fabric.database.writing() as conn:
            await vms.fence(conn, self.id, 1)
            await vms.set_power(conn, self.id, PowerState.RUNNING, now)
            await servers.note_status(conn, self.server, ServerStatus.RUNNING)

    async def stops(self) -> None:
        await order_stop(self.fabric.database, self.server, None)

    async def ends_and_is_back(self) -> None:
        """End as its actor ends it; and the trigger marks that it lives again."""
        for end in (b"now()", b"NULL"):
            async with self.fabric.database.writing() as conn:
                await placement.take_turn(conn)
                await vms.fence(conn, self.id, 1)
                await conn.execute(ENDS_SQL % end, [self.id])

    async def is_held_and_released(self) -> None:
        now = self.fabric.clock.now()
        order = HoldOrder(
            scope=HoldScope.INSTANCE,
            instance_id=self.id,
            reason=str(uuid.uuid4()),
            by=f"user:{OWNER}",
            caller=OwnerId(OWNER),
            until=now + timedelta(hours=1),
        )
        async with self.fabric.database.writing() as conn:
            hold, _ = await holds.place_hold(conn, order, None, now)
        async with self.fabric.database.writing() as conn:
            hold = await holds.lock_hold(conn, None, hold.id)
            await holds.release_hold(conn, hold, order.by, None, now)

    def acts(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        return (
            self.boots_anew,
            self.notes,
            self.stops,
            self.ends_and_is_back,
            self.is_held_and_released,
            self.has_holds_that_end,
        )

    async def has_holds_that_end(self) -> None:
        later = self.fabric.clock.now() + timedelta(hours=2)
        async with self.fabric.database.writing() as conn:
            await holds.tell_expired(conn, later, limit=10)


@pytest.mark.slow
async def test_of_many_who_lock_the_same_rows_none_is_thrown_out(
    database_url: str,
) -> None:
    database = await Database.open(database_url, pool_size=16)
    async with a_fabric(database, database_url) as fabric:
        ids = await fabric.instances(3)
        names = [f"vm-{(await fabric.posture(each)).server_id}" for each in ids]
        all_ = [
            One(fabric, each, (await fabric.posture(each)).server_id) for each in ids
        ]

        async def rebooted(name: str) -> None:
            async with database.writing() as conn:
                await boots.add_reboots(conn, {name: 1})

        async def adopted() -> None:
            async with database.writing() as conn:
                await vms.adopt_living(conn, RUNTIME, 1)

        async def again(act: Callable[[], Awaitable[None]]) -> None:
            for _ in range(TIMES):
                # Of what has ended by then nothing can be done.
                with contextlib.suppress(ConflictError, NotFoundError):
                    await act()

        acts: list[Callable[[], Awaitable[None]]] = [
            *(act for one in all_ for act in one.acts()),
            *(partial(rebooted, name) for name in names),
            adopted,
        ]
        async with asyncio.timeout(50):
            await asyncio.gather(*map(again, acts))
    await database.close()

    assert await asyncio.to_thread(deadlocks, database_url) == 0


def deadlocks(url: str) -> int:
    """Return how many there were, once every backend that met one has told."""
    others = """
        SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()
    """
    counted = (
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(others)
        row = conn.execute(counted).fetchone()
    assert row is not None
    return int(row[0])
