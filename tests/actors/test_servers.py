"""Servers: launched through the gate, waiting before it, resumed by themselves."""

import asyncio

import pytest

from tests.builders import OWNER
from tests.fix_fabric import held, until
from tests.fix_machines import CALLER, WITH_TPM, Machines
from trustfabric.actors.launcher import Caller
from trustfabric.actors.servers import (
    DeleteServer,
    RedeployServer,
    ReleaseServer,
    StartServer,
    StopServer,
)
from trustfabric.db.vms import set_desired
from trustfabric.domain.ids import OwnerId, ServerId
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.trust import Lifecycle, Signal
from trustfabric.domain.vms import PowerState
from trustfabric.errors import (
    AlreadyRunningError,
    NotFoundError,
    PlacementBlockedError,
)

pytestmark = pytest.mark.libvirt

STRANGER = Caller(OwnerId(OWNER + 1), f"user:{OWNER + 1}")


async def until_terminated(machines: Machines, instance: int) -> None:
    async def look() -> bool | None:
        row = await machines.read(instance)  # type: ignore[arg-type]
        return row.terminated_at is not None or None

    await until(look, "the end of the instance")


async def test_a_new_server_is_not_started(machines: Machines) -> None:
    server = await machines.server()

    await machines.runtime.quiet()

    assert server.status is ServerStatus.STOPPED
    assert machines.vms.children() == {}


async def test_starting_twice_is_refused(machines: Machines) -> None:
    instance = await machines.started()

    with pytest.raises(AlreadyRunningError):
        await machines.ask(StartServer(instance.server_id, CALLER))


async def test_two_starts_at_once_make_one_instance(machines: Machines) -> None:
    server = await machines.server()

    outcomes = await asyncio.gather(
        *(machines.ask(StartServer(server.id, CALLER)) for _ in range(5)),
        return_exceptions=True,
    )

    refused = [one for one in outcomes if isinstance(one, AlreadyRunningError)]
    assert len(refused) == 4
    await machines.until_running(server.id)
    assert len(machines.vms.children()) == 1


async def test_stopping_what_is_stopped_is_fine(machines: Machines) -> None:
    server = await machines.server()

    stopped = await machines.ask(StopServer(server.id, CALLER))

    assert stopped.status is ServerStatus.STOPPED


async def test_others_servers_are_not_there(machines: Machines) -> None:
    server = await machines.server()
    for verb in (StartServer, StopServer, RedeployServer, DeleteServer):
        with pytest.raises(NotFoundError):
            await machines.ask(verb(server.id, STRANGER))
        with pytest.raises(NotFoundError):
            await machines.ask(verb(ServerId(999), CALLER))
    with pytest.raises(NotFoundError):
        await machines.ask(ReleaseServer(server.id, STRANGER, "mine now"))


# --- the gate ----------------------------------------------------------------------


async def test_a_distrusted_one_is_not_started(machines: Machines) -> None:
    instance = await machines.started()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)

    with pytest.raises(PlacementBlockedError) as blocked:
        await machines.ask(StartServer(instance.server_id, CALLER))

    notes = blocked.value.facts["notes"]
    assert isinstance(notes, list)
    assert "trust:lifecycle:quarantined" in notes
    server = await machines.read_server(instance.server_id)
    assert server.status is ServerStatus.PENDING_REMEDIATION
    assert (await machines.read(instance.id)).desired_state == "stopped"


async def test_it_is_started_by_itself_once_trust_is_back(machines: Machines) -> None:
    instance = await machines.started(**WITH_TPM)
    await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_server(instance.server_id, status=ServerStatus.STOPPED)
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    with pytest.raises(PlacementBlockedError):
        await machines.ask(StartServer(instance.server_id, CALLER))

    await machines.change(instance.id, Signal.RELEASED)

    await machines.until_server(instance.server_id, status=ServerStatus.RUNNING)
    await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)


async def test_who_was_stopped_while_it_waited_stays_so(machines: Machines) -> None:
    instance = await machines.started()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_server(instance.server_id, status=ServerStatus.STOPPED)
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    with pytest.raises(PlacementBlockedError):
        await machines.ask(StartServer(instance.server_id, CALLER))

    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.change(instance.id, Signal.RELEASED)
    await machines.runtime.quiet()

    server = await machines.read_server(instance.server_id)
    assert server.status is ServerStatus.STOPPED
    assert (await machines.read(instance.id)).desired_state == "stopped"


async def test_a_stale_one_waits_for_attestation(machines: Machines) -> None:
    instance = await machines.restored()
    machines.clock.advance(300)

    with pytest.raises(PlacementBlockedError):
        await machines.ask(RedeployServer(instance.server_id, CALLER))

    server = await machines.read_server(instance.server_id)
    assert server.status is ServerStatus.PENDING_ATTESTATION


# --- redeployment and the end ------------------------------------------------------


async def test_a_redeployment_is_a_new_instance_and_ends_the_old(
    machines: Machines,
) -> None:
    old = await machines.restored()

    await machines.ask(RedeployServer(old.server_id, CALLER))

    await until_terminated(machines, old.id)
    new = await machines.until_running(old.server_id)
    assert new.id != old.id
    await machines.until_posture(new.id, lifecycle=Lifecycle.RESTORED)
    server = await machines.until_server(old.server_id, status=ServerStatus.RUNNING)
    assert server.id == old.server_id
    assert list(machines.vms.children()) == [str(new.id)]


async def test_a_redeployment_that_dies_in_its_middle_ends_nothing(
    machines: Machines,
) -> None:
    old = await machines.started()

    async with held(machines.database, old.id):
        machines.runtime.suspend("fabric/trust")
        asked = asyncio.ensure_future(
            machines.ask(RedeployServer(old.server_id, CALLER))
        )

        async def asking() -> bool | None:
            return machines.trust.cell.depth > 0 or None

        await until(asking, "the new instance to be asked for")
        await machines.runtime.kill("fabric/servers")
        with pytest.raises(Exception, match="outcome is unknown"):
            await asked
        during = await machines.read(old.id)
        machines.runtime.resume("fabric/trust")

    assert during.desired_state == "running"


async def test_one_that_ended_distrusted_needs_a_release(machines: Machines) -> None:
    instance = await machines.started()
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    async with machines.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET desired_state = 'terminated'"
        )
    await machines.kill(f"fabric/vms/{instance.id}")
    await until_terminated(machines, instance.id)
    with pytest.raises(PlacementBlockedError):
        await machines.ask(StartServer(instance.server_id, CALLER))

    machines.clock.advance(1)
    await machines.ask(ReleaseServer(instance.server_id, CALLER, "seen"))

    await machines.until_server(instance.server_id, status=ServerStatus.RUNNING)
    new = await machines.newest(instance.server_id)
    assert new.id != instance.id


async def test_a_deleted_server_is_gone_at_once(machines: Machines) -> None:
    instance = await machines.started()

    await machines.ask(DeleteServer(instance.server_id, CALLER))

    with pytest.raises(NotFoundError):
        await machines.ask(StartServer(instance.server_id, CALLER))
    await until_terminated(machines, instance.id)


# --- faults ------------------------------------------------------------------------


async def test_a_restarted_one_looks_after_all_that_live(machines: Machines) -> None:
    instances = [await machines.started() for _ in range(3)]

    await machines.kill("fabric/servers")

    assert set(machines.vms.children()) == {str(each.id) for each in instances}
    for each in instances:
        assert await machines.power_log(each.id) == ["started"]
    await machines.ask(StopServer(instances[0].server_id, CALLER))
    await machines.until_server(instances[0].server_id, status=ServerStatus.STOPPED)


async def test_a_waiting_one_is_found_by_looking_when_the_stream_was_down(
    machines: Machines,
) -> None:
    instance = await machines.started()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_server(instance.server_id, status=ServerStatus.STOPPED)
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    with pytest.raises(PlacementBlockedError):
        await machines.ask(StartServer(instance.server_id, CALLER))

    await machines.kill("fabric/streams/broadcaster")
    await machines.change(instance.id, Signal.RELEASED)
    machines.clock.advance(30)

    await machines.until_server(instance.server_id, status=ServerStatus.RUNNING)


async def test_a_broadcaster_that_is_down_does_not_end_the_looking(
    machines: Machines,
) -> None:
    instance = await machines.started()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_server(instance.server_id, status=ServerStatus.STOPPED)
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    with pytest.raises(PlacementBlockedError):
        await machines.ask(StartServer(instance.server_id, CALLER))

    machines.runtime.suspend("fabric/streams/broadcaster")
    machines.clock.advance(30)
    await machines.runtime.quiet()
    machines.clock.advance(11)
    await machines.runtime.quiet()
    machines.runtime.resume("fabric/streams/broadcaster")
    await machines.change(instance.id, Signal.RELEASED)
    machines.clock.advance(31)

    await machines.until_server(instance.server_id, status=ServerStatus.RUNNING)


async def test_a_stop_that_was_ordered_and_never_told_is_carried_out(
    machines: Machines,
) -> None:
    instance = await machines.started()
    async with machines.database.writing() as conn:
        await set_desired(conn, instance.id, "stopped")

    await machines.kill("fabric/servers")

    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)


async def test_a_stop_asked_for_again_never_calls_a_running_vm_stopped(
    machines: Machines,
) -> None:
    instance = await machines.started()
    async with machines.database.writing() as conn:
        await set_desired(conn, instance.id, "stopped")

    answer = await machines.ask(StopServer(instance.server_id, CALLER))

    assert answer.status is ServerStatus.STOPPING
    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)
