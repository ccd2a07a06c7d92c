"""Instances: adopted by their runtime, never brought back from their end."""

import uuid
from datetime import timedelta

import pytest

from tests.builders import OWNER
from tests.fix_fabric import RUNTIME, Fabric, a_new_instance
from trustfabric.actors.trust import OpenInstance
from trustfabric.db import boots, vms
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.ports import Defined
from trustfabric.domain.trust import Signal
from trustfabric.domain.vms import IsolationTier, PowerState
from trustfabric.errors import ConflictError


async def read(
    fabric: Fabric, instance: InstanceId, owner: int | None = None
) -> vms.Instance | None:
    async with fabric.database.reading() as conn:
        return await vms.get_instance(
            conn, None if owner is None else OwnerId(owner), instance
        )


async def desire(fabric: Fabric, instance: InstanceId, *desired: str) -> str:
    async with fabric.database.writing() as conn:
        for each in desired:
            await vms.set_desired(conn, instance, each)
    row = await read(fabric, instance)
    assert row is not None
    return row.desired_state


async def terminate(fabric: Fabric, instance: InstanceId) -> None:
    async with fabric.database.writing() as conn:
        await vms.set_power(
            conn, instance, PowerState.STOPPED, fabric.clock.now(), terminated=True
        )


async def adopted(
    fabric: Fabric, runtime: str, epoch: int
) -> list[tuple[InstanceId, bool]]:
    async with fabric.database.writing() as conn:
        living = await vms.adopt_living(conn, runtime, epoch)
    return [(one.id, one.unsettled) for one in living]


async def test_an_instance_is_read_by_its_owner(fabric: Fabric) -> None:
    instance = await fabric.instance()

    row = await read(fabric, instance, OWNER)

    assert row is not None
    assert (row.desired_state, row.power_state) == ("running", PowerState.UNKNOWN)
    assert row.boot_id is None
    assert await read(fabric, instance, OWNER + 1) is None
    assert await read(fabric, InstanceId(999)) is None


async def test_the_newest_come_first(fabric: Fabric) -> None:
    first = await fabric.instance()
    server = (await fabric.posture(first)).server_id
    second = await fabric.instance_of(server, "second")

    async with fabric.database.reading() as conn:
        rows = await vms.list_newest(conn, server, limit=10)

    assert [row.id for row in rows] == [second, first]


async def test_a_runtime_adopts_its_own_living_ones(fabric: Fabric) -> None:
    mine, gone = await fabric.instances(2)
    await terminate(fabric, gone)

    assert await adopted(fabric, "another", 1) == []
    assert [row[0] for row in await adopted(fabric, RUNTIME, 2)] == [mine]


async def test_adopting_tells_which_are_not_yet_as_they_are_wanted(
    fabric: Fabric,
) -> None:
    settled, unsettled = await fabric.instances(2)
    async with fabric.database.writing() as conn:
        await vms.set_power(conn, settled, PowerState.RUNNING, fabric.clock.now())

    assert await adopted(fabric, RUNTIME, 2) == [(settled, False), (unsettled, True)]


async def test_what_nobody_owns_is_adopted_once(fabric: Fabric) -> None:
    instance = await fabric.instance()
    async with fabric.database.writing() as conn:
        await conn.execute("UPDATE runtime_vm_instances SET runtime_owner = NULL")

    assert [row[0] for row in await adopted(fabric, "another", 1)] == [instance]
    assert await adopted(fabric, RUNTIME, 2) == []


async def test_what_is_wanted_can_change_until_the_end_is_wanted(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()

    assert await desire(fabric, instance, "stopped") == "stopped"
    assert await desire(fabric, instance, "running") == "running"
    assert await desire(fabric, instance, "terminated") == "terminated"
    assert await desire(fabric, instance, "stopped", "running") == "terminated"


async def test_a_replacement_ends_the_old_in_the_same_commit(fabric: Fabric) -> None:
    old, other = await fabric.instances(2)
    server = (await fabric.posture(old)).server_id
    replacement = vms.ReplaceInstance(old, a_new_instance(server, "new"))

    new = await fabric.trust.ask(
        OpenInstance(insert=replacement, actor="test"), within_s=99
    )

    row = await read(fabric, old)
    assert row is not None
    assert row.desired_state == "terminated"
    assert (await fabric.posture(new)).version == 1
    taken = vms.ReplaceInstance(other, a_new_instance(server, "new"))
    with pytest.raises(ConflictError):
        await fabric.trust.ask(OpenInstance(insert=taken, actor="test"), within_s=99)
    kept = await read(fabric, other)
    assert kept is not None
    assert kept.desired_state == "running"


async def test_a_terminated_one_does_not_boot(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    await terminate(fabric, instance)
    boot = boots.SetBoot(uuid.uuid4(), fabric.clock.now(), epoch=1)

    with pytest.raises(ConflictError):
        await fabric.apply(instance, fabric.a_change(Signal.BOOTED), companions=(boot,))

    assert (await fabric.posture(instance)).version == 2
    row = await read(fabric, instance)
    assert row is not None
    assert row.boot_id is None


async def test_its_own_log_is_read_newest_first(fabric: Fabric) -> None:
    instance = await fabric.instance()
    async with fabric.database.writing() as conn:
        await vms.log_event(conn, instance, "started", {"by": "us"})
        await vms.log_event(conn, instance, "stopped")

    async with fabric.database.reading() as conn:
        events = await vms.list_events(conn, instance, limit=10)

    assert [event[:2] for event in events] == [
        ("stopped", {}),
        ("started", {"by": "us"}),
    ]


async def test_reboots_that_nobody_noted_make_one_unsettled(fabric: Fabric) -> None:
    instance = await fabric.instance()
    row = await read(fabric, instance, OWNER)
    assert row is not None
    async with fabric.database.writing() as conn:
        await vms.set_power(conn, instance, PowerState.RUNNING, fabric.clock.now())
    assert await adopted(fabric, RUNTIME, 1) == [(instance, False)]

    async with fabric.database.writing() as conn:
        await boots.add_reboots(conn, {row.name: 2, "nobody": 1})

    assert await adopted(fabric, RUNTIME, 2) == [(instance, True)]
    again = await read(fabric, instance, OWNER)
    assert again is not None
    assert again.reboots_due == 2


async def test_only_the_newest_crashes_are_kept(fabric: Fabric) -> None:
    instance = await fabric.instance()
    now = fabric.clock.now()

    async with fabric.database.writing() as conn:
        for second in range(25):
            await boots.add_crash(conn, instance, now + timedelta(seconds=second))

    row = await read(fabric, instance, OWNER)
    assert row is not None
    assert list(row.crashes) == [now + timedelta(seconds=n) for n in range(5, 25)]


async def test_a_name_that_is_another_s_is_refused(fabric: Fabric) -> None:
    first, second = await fabric.instances(2)
    row = await read(fabric, first, OWNER)
    assert row is not None
    theirs = Defined(hypervisor_name=row.name, tier=IsolationTier.STANDARD)

    with pytest.raises(ConflictError):
        async with fabric.database.writing() as conn:
            await boots.set_defined(conn, second, theirs, fabric.clock.now())


async def test_a_name_is_recorded_once_and_notes_with_each_definition(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    made = Defined(
        hypervisor_name="hv-1", tier=IsolationTier.STANDARD, notes=("a note",)
    )
    later = Defined(
        hypervisor_name="hv-2", tier=IsolationTier.STANDARD, notes=("another",)
    )

    async with fabric.database.writing() as conn:
        await boots.set_defined(conn, instance, made, fabric.clock.now())
        await boots.set_defined(conn, instance, later, fabric.clock.now())

    row = await read(fabric, instance, OWNER)
    assert row is not None
    assert (row.name, tuple(row.capability_notes)) == ("hv-1", ("another",))
