"""The gate in action: a launch and its decision are one, whoever else is at it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.builders import OWNER
from tests.fix_fabric import count, held, until
from tests.fix_machines import CALLER, WITH_TPM, Machines, some_machines
from trustfabric.actors.servers import (
    RedeployServer,
    StartServer,
    StopServer,
)
from trustfabric.actors.settling import Unsettled
from trustfabric.actors.trust import ApplyChange
from trustfabric.db import placement
from trustfabric.db.session import Connection, Database
from trustfabric.db.vms import Instance
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.servers import LaunchVerb, ServerStatus
from trustfabric.domain.trust import Lifecycle, Signal
from trustfabric.domain.vms import PowerState
from trustfabric.errors import FabricError, PlacementBlockedError

pytestmark = pytest.mark.libvirt

DECISIONS = "SELECT count(*) FROM runtime_policy_decisions WHERE server_id = %s"
INSTANCES = "SELECT count(*) FROM runtime_vm_instances WHERE server_id = %s"


@pytest_asyncio.fixture
async def other(
    machines: Machines, database_url: str, tmp_path: Path
) -> AsyncIterator[Machines]:
    """Another runtime on the same database, with VMs of its own."""
    opened = await Database.open(database_url)
    try:
        async with some_machines(
            opened, database_url, tmp_path, name=f"{machines.name}-too"
        ) as started:
            yield started
    finally:
        await opened.close()


async def stopped(machines: Machines) -> Instance:
    """Return a VM that ran and was stopped."""
    instance = await machines.started()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_server(instance.server_id, status=ServerStatus.STOPPED)
    return await machines.until_instance(instance.id, power_state=PowerState.STOPPED)


async def waiting(machines: Machines) -> Instance:
    """Return a VM that is off, and whose start the gate refused."""
    instance = await stopped(machines)
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    with pytest.raises(PlacementBlockedError):
        await machines.ask(StartServer(instance.server_id, CALLER))
    return instance


async def until_queued(machines: Machines, number: int = 1) -> list[int]:
    """Return the backends that wait for their turn, once there are so many."""

    async def look() -> list[int] | None:
        async with machines.database.reading() as conn:
            cursor = await conn.execute(
                """
                SELECT l.pid FROM pg_locks l
                  JOIN pg_database d ON d.oid = l.database
                 WHERE l.locktype = 'advisory' AND NOT l.granted
                   AND d.datname = current_database()
                """
            )
            found = [row[0] for row in await cursor.fetchall()]
        return found if len(found) >= number else None

    return await until(look, "somebody to wait for the turn")


async def quarantine_on(conn: Connection, instance: InstanceId) -> None:
    """Write a veto plainly, as part of somebody's transaction."""
    await conn.execute(
        """
        WITH moved AS (
            UPDATE runtime_vm_trust_registry
               SET lifecycle_state = 'quarantined', attestation_status = 'untrusted',
                   freshness_deadline = NULL, version = version + 1
             WHERE runtime_vm_instance_id = %s RETURNING *
        )
        INSERT INTO runtime_vm_trust_history (
               runtime_vm_instance_id, previous_status, current_status,
               previous_lifecycle_state, current_lifecycle_state, transition_reason,
               remediation_state, remediation_attempts, registry_version, actor)
        SELECT runtime_vm_instance_id, 'pending', 'untrusted', 'suspect',
               'quarantined', 'veto', remediation_state, remediation_attempts,
               version, 'test'
          FROM moved
        """,
        [instance],
    )


async def decisions(machines: Machines, server: ServerId) -> list[tuple[Any, ...]]:
    """Return verb, answer and inputs of what was decided, oldest first."""
    async with machines.database.reading() as conn:
        cursor = await conn.execute(
            """
            SELECT verb, allowed, blocking, inputs FROM runtime_policy_decisions
             WHERE server_id = %s ORDER BY id
            """,
            [server],
        )
        return await cursor.fetchall()


# --- a veto in between -------------------------------------------------------------


@pytest.mark.parametrize("verb", [StartServer, RedeployServer])
async def test_a_veto_that_is_being_written_is_waited_for(
    machines: Machines, verb: Any
) -> None:
    instance = await stopped(machines)

    async with held(machines.database, instance.id) as conn:
        asked = asyncio.ensure_future(machines.ask(verb(instance.server_id, CALLER)))
        await until_queued(machines)
        await quarantine_on(conn, instance.id)

    with pytest.raises(PlacementBlockedError) as refused:
        await asked
    assert "trust:lifecycle:quarantined" in refused.value.facts["notes"]  # type: ignore[operator]
    assert (await machines.read(instance.id)).desired_state == "stopped"
    assert await count(machines.database, INSTANCES, instance.server_id) == 1
    server = await machines.read_server(instance.server_id)
    assert server.status is ServerStatus.PENDING_REMEDIATION
    kept = await decisions(machines, instance.server_id)
    assert [one[:2] for one in kept] == [("start", True), (server.waits_for, False)]


async def test_a_veto_waits_for_a_launch_that_is_being_decided(
    machines: Machines,
) -> None:
    instance = await stopped(machines)
    registry = machines.trust

    async with machines.database.writing() as conn:
        await placement.take_turn(conn)
        veto = asyncio.ensure_future(
            registry.ask(
                ApplyChange(
                    instance_id=instance.id,
                    change=machines.a_change(Signal.QUARANTINED_BY_HAND),
                ),
                within_s=99,
            )
        )
        await until_queued(machines)
        situation = await placement.read_situation(
            conn, instance.server_id, machines.clock.now()
        )
        assert situation.trust is not None
        assert situation.trust.lifecycle is Lifecycle.SUSPECT
        assert not veto.done()

    assert (await veto).after.lifecycle is Lifecycle.QUARANTINED


async def test_a_hold_waits_for_a_launch_that_is_being_decided(
    machines: Machines, database_url: str
) -> None:
    server = await machines.server()

    async def hold(other: Database) -> None:
        async with other.writing() as conn:
            await conn.execute(
                """
                INSERT INTO trust_holds (scope, owner_id, reason, by)
                VALUES ('owner', %s, 'storm', 'test')
                """,
                [OWNER],
            )

    async with machines.database.writing() as conn:
        await placement.take_turn(conn)
        placing = asyncio.ensure_future(hold(machines.database))
        await until_queued(machines)
        now = machines.clock.now()
        before = await placement.read_situation(conn, server.id, now)
        assert before.holds == []
    await placing

    with pytest.raises(PlacementBlockedError):
        await machines.ask(StartServer(server.id, CALLER))
    assert await count(machines.database, INSTANCES, server.id) == 0


async def test_a_database_that_is_cut_off_in_the_middle_lets_nothing_pass(
    machines: Machines,
) -> None:
    new, old = await machines.server(), await stopped(machines)

    for server in (new.id, old.server_id):
        async with held(machines.database, old.id):
            asked = asyncio.ensure_future(machines.ask(StartServer(server, CALLER)))
            for backend in await until_queued(machines):
                await count(
                    machines.database,
                    "SELECT pg_terminate_backend(%s)::int",
                    backend,
                )
            with pytest.raises(FabricError):
                await asked

    assert await count(machines.database, INSTANCES, new.id) == 0
    assert (await machines.read(old.id)).desired_state == "stopped"
    assert (await machines.read_server(new.id)).status is ServerStatus.STOPPED


# --- what is kept of it ------------------------------------------------------------


async def test_a_decision_is_kept_with_its_notes_and_what_it_rests_on(
    machines: Machines,
) -> None:
    instance = await waiting(machines)

    first, refusal = await decisions(machines, instance.server_id)

    assert first[:3] == ("start", True, [])
    assert first[3] == {}  # there was no instance to look at
    verb, allowed, blocking, inputs = refusal
    assert (verb, allowed) == ("start", False)
    assert blocking == ["trust:lifecycle:quarantined"]
    row = await machines.posture(instance.id)
    newest = (await machines.history(instance.id))[-1]
    assert inputs == {
        "vm_instance_id": instance.id,
        "registry_version": row.version,
        "history_id": newest.history_id,
    }


async def test_a_refusal_that_stands_is_kept_once(machines: Machines) -> None:
    instance = await waiting(machines)
    before = await count(machines.database, DECISIONS, instance.server_id)

    for _ in range(5):
        machines.clock.advance(30)
        await machines.runtime.quiet()

    assert await count(machines.database, DECISIONS, instance.server_id) == before


# --- resuming ----------------------------------------------------------------------


async def test_a_redeployment_that_was_refused_is_made_when_the_gate_opens(
    machines: Machines,
) -> None:
    old = await machines.restored()
    machines.clock.advance(300)
    with pytest.raises(PlacementBlockedError):
        await machines.ask(RedeployServer(old.server_id, CALLER))
    server = await machines.read_server(old.server_id)
    assert server.waits_for is LaunchVerb.REDEPLOY
    assert server.status is ServerStatus.PENDING_ATTESTATION

    await machines.change(old.id, Signal.TRUSTED_VERDICT)

    async def look() -> Instance | None:
        newest = await machines.newest(old.server_id)
        return newest if newest.id != old.id else None

    new = await until(look, "the new instance")
    await machines.until_posture(new.id, lifecycle=Lifecycle.RESTORED)
    await machines.until_server(old.server_id, status=ServerStatus.RUNNING)
    assert await count(machines.database, INSTANCES, old.server_id) == 2


async def test_two_runtimes_resume_it_once(machines: Machines, other: Machines) -> None:
    """Those that lost their VM, of which each runtime could make a new one."""
    lost = [await waiting(machines) for _ in range(3)]
    async with machines.database.writing() as conn:
        await conn.execute(
            """
            UPDATE runtime_vm_instances
               SET desired_state = 'terminated', terminated_at = now()
            """
        )
        await conn.execute("UPDATE servers SET released_at = now() + interval '1 s'")

    for each in (machines, other):
        each.clock.advance(30)

    for one in lost:
        await machines.until_server(one.server_id, status=ServerStatus.RUNNING)
        assert await count(machines.database, INSTANCES, one.server_id) == 2
    made = "SELECT count(*) FROM runtime_policy_decisions WHERE allowed"
    assert await count(machines.database, made) == 6


async def test_only_its_own_runtime_acts_on_a_vm(
    machines: Machines, other: Machines
) -> None:
    instance = await stopped(machines)

    await other.ask(StartServer(instance.server_id, CALLER))
    assert other.vms.children() == {}
    machines.clock.advance(2)

    await machines.until_instance(instance.id, power_state=PowerState.RUNNING)
    await other.ask(StopServer(instance.server_id, CALLER))
    machines.clock.advance(2)
    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)
    assert other.vms.children() == {}
    assert await machines.power_log(instance.id) == [
        *(await machines.power_log(instance.id))[:-2],
        "started",
        "stopped",
    ]


async def test_who_cannot_carry_out_an_order_is_told_of_it_once(
    machines: Machines,
) -> None:
    instance = await stopped(machines)
    orders = Unsettled(machines.database, machines.name)
    machines.runtime.suspend("fabric/servers")
    async with machines.database.writing() as conn:
        await conn.execute("UPDATE runtime_vm_instances SET desired_state = 'running'")

    assert (await orders.read(0)).fresh == [instance.id]
    assert (await orders.read(0)).fresh == []
    async with machines.database.writing() as conn:
        await conn.execute("UPDATE runtime_vm_instances SET desired_state = 'stopped'")
    assert (await orders.read(0)).fresh == []
    async with machines.database.writing() as conn:
        await conn.execute("UPDATE runtime_vm_instances SET desired_state = 'running'")
    assert (await orders.read(0)).fresh == [instance.id]


async def test_a_crashed_one_passes_the_gate_or_waits(machines: Machines) -> None:
    instance = await machines.started(**WITH_TPM)
    await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)
    await machines.change(instance.id, Signal.QUARANTINED_BY_HAND)

    libvirt = pytest.importorskip("libvirt")
    libvirt.open("test:///default").lookupByName(instance.name).destroy()

    await machines.until_server(
        instance.server_id, status=ServerStatus.PENDING_REMEDIATION
    )
    refusal = (await decisions(machines, instance.server_id))[-1]
    assert refusal[:3] == ("relaunch", False, ["trust:lifecycle:quarantined"])
    assert (await machines.read(instance.id)).desired_state == "stopped"

    await machines.change(instance.id, Signal.RELEASED)

    await machines.until_server(instance.server_id, status=ServerStatus.RUNNING)
