"""The scheduler: decay is written once, and evidence renewed before it runs out."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fix_fabric import ASK_S, Fabric, held, until
from tests.fix_machines import CADENCE, Machines, some_machines
from trustfabric.actors.attestation import InFlight
from trustfabric.actors.placement import explain
from trustfabric.db import trust
from trustfabric.db.session import Database
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Signal, is_stale

EXPIRED = "freshness deadline passed"
TICK = "fabric/evaluations"


@pytest_asyncio.fixture
async def scheduled(
    database: Database, database_url: str, tpm_dir: Path
) -> AsyncIterator[Machines]:
    async with some_machines(
        database, database_url, tpm_dir, schedules=True
    ) as started:
        yield started


async def pass_time(machines: Machines, seconds: float) -> None:
    """Let time go by tick after tick, each with all that comes of it."""
    for _ in range(int(seconds / CADENCE.tick_s)):
        machines.clock.advance(CADENCE.tick_s)
        await settled(machines)


async def settled(machines: Machines) -> None:
    async def look() -> bool | None:
        await machines.runtime.quiet()
        busy = await machines.attestation.ask(InFlight(), within_s=ASK_S)
        ticking = machines.scheduler.cell.current is not None
        return (not busy and not ticking) or None

    await until(look, "the tick to be over")


async def expiries(fabric: Fabric, instance: InstanceId) -> int:
    return [event.reason for event in await fabric.history(instance)].count(EXPIRED)


@pytest.mark.libvirt
async def test_a_healthy_one_never_goes_stale(scheduled: Machines) -> None:
    instance = await scheduled.restored()
    row = first = await scheduled.posture(instance.id)

    for _ in range(12):
        await pass_time(scheduled, 50)
        row = await scheduled.posture(instance.id)
        assert row.freshness_deadline is not None
        assert row.freshness_deadline > scheduled.clock.now()

    assert row.freshness_deadline != first.freshness_deadline
    assert await expiries(scheduled, instance.id) == 0
    assert row.lifecycle is Lifecycle.RESTORED


@pytest.mark.libvirt
async def test_one_that_falls_silent_decays_once(scheduled: Machines) -> None:
    instance = await scheduled.restored()

    await scheduled.tpms.stop(instance.name)
    await pass_time(scheduled, 400)

    row = await scheduled.posture(instance.id)
    assert row.lifecycle is Lifecycle.SUSPECT
    assert row.attestation_status is AttestationStatus.UNKNOWN
    assert await expiries(scheduled, instance.id) == 1


@pytest.mark.libvirt
async def test_one_that_speaks_again_is_restored(scheduled: Machines) -> None:
    instance = await scheduled.restored()
    await scheduled.tpms.stop(instance.name)
    await pass_time(scheduled, 400)

    await scheduled.tpms.start(instance.name)
    for _ in range(20):  # the longer it was silent, the longer it is left alone
        await pass_time(scheduled, 30)

    row = await scheduled.posture(instance.id)
    assert row.lifecycle is Lifecycle.RESTORED


@pytest.mark.libvirt
async def test_a_deadline_that_passed_while_nobody_lived_is_found(
    scheduled: Machines,
) -> None:
    instance = await scheduled.instance()
    await scheduled.change(instance, Signal.TRUSTED_VERDICT)
    scheduled.runtime.suspend(TICK)
    scheduled.clock.advance(3600)

    await scheduled.kill(TICK)

    await scheduled.until_posture(instance, lifecycle=Lifecycle.SUSPECT)
    assert await expiries(scheduled, instance) == 1


@pytest.mark.libvirt
async def test_a_deadline_that_passed_while_no_process_lived_counts_at_once(
    database: Database, database_url: str, tpm_dir: Path
) -> None:
    async with some_machines(database, database_url, tpm_dir, schedules=True) as first:
        server = await first.server()
        instance = await first.instance_of(server.id)
        await first.change(instance, Signal.TRUSTED_VERDICT)

    async with database.writing() as conn:
        await conn.execute("UPDATE runtime_vm_instances SET power_state = 'running'")
    async with some_machines(database, database_url, tpm_dir, name="reader") as reader:
        reader.clock.advance(3600)
        now = reader.clock.now()
        row = await reader.posture(instance)
        async with database.reading() as conn:
            wanted = trust.PostureFilter(stale=True)
            stale = await trust.list_postures(conn, wanted, now)

        # Nobody has written it yet, and nobody takes it for trusted.
        assert row.lifecycle is Lifecycle.RESTORED
        assert is_stale(row.freshness_deadline, now)
        assert [one.instance_id for one in stale] == [instance]
        decision, _ = await explain(database, server.id, now)
        assert not decision.allowed
        assert decision.stale

    async with some_machines(
        database, database_url, tpm_dir, schedules=True, name="heir"
    ) as heir:
        heir.clock.advance(3600)
        await pass_time(heir, 30)
        await heir.until_posture(instance, lifecycle=Lifecycle.SUSPECT)
        assert await expiries(heir, instance) == 1


@pytest.mark.libvirt
async def test_a_challenge_lost_with_its_actor_is_made_up_for(
    scheduled: Machines,
) -> None:
    instance = await scheduled.restored()
    before = await scheduled.posture(instance.id)

    for _ in range(4):
        scheduled.clock.advance(CADENCE.tick_s)
        await scheduled.kill("fabric/attestation")
    await pass_time(scheduled, 250)

    row = await scheduled.posture(instance.id)
    assert row.lifecycle is Lifecycle.RESTORED
    assert row.freshness_deadline is not None
    assert before.freshness_deadline is not None
    assert row.freshness_deadline > before.freshness_deadline


@pytest.mark.libvirt
async def test_a_registry_that_dies_under_a_tick_does_not_end_the_ticks(
    scheduled: Machines,
) -> None:
    instance = await scheduled.instance()
    await scheduled.change(instance, Signal.TRUSTED_VERDICT)
    await settled(scheduled)

    async with held(scheduled.database, instance):
        scheduled.clock.advance(3600)

        async def ticking() -> bool | None:
            return scheduled.trust.cell.current is not None or None

        await until(ticking, "the tick")
        await scheduled.kill("fabric/trust")
    await pass_time(scheduled, 20)

    await scheduled.until_posture(instance, lifecycle=Lifecycle.SUSPECT)
    assert await expiries(scheduled, instance) == 1


@pytest.mark.libvirt
async def test_more_than_a_batch_is_not_left_for_the_next_tick(
    scheduled: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trustfabric.actors.evaluations.BATCH", 3)
    instances = await scheduled.instances(7)
    for each in instances:
        await scheduled.change(each, Signal.TRUSTED_VERDICT)
    scheduled.runtime.suspend(TICK)
    scheduled.clock.advance(3600)
    await scheduled.kill(TICK)

    for _ in range(2):
        await settled(scheduled)
        scheduled.clock.advance(1)
    await settled(scheduled)

    for each in instances:
        await scheduled.until_posture(each, lifecycle=Lifecycle.SUSPECT)
        assert await expiries(scheduled, each) == 1


async def test_of_two_runtimes_that_find_it_one_writes_it(
    fabric: Fabric, second: Fabric
) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    for each in (fabric, second):
        each.clock.advance(3600)

    await asyncio.gather(
        *(
            each.change(instance, Signal.EXPIRED, reason=EXPIRED)
            for _ in range(5)
            for each in (fabric, second)
        )
    )

    assert await expiries(fabric, instance) == 1
