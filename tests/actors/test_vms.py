"""One VM: led to what is wanted, booted once, its trust lost before its boot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fix_fabric import held, until
from tests.fix_machines import (
    CALLER,
    WITH_TPM,
    Machines,
    some_machines,
)
from trustfabric.actors.servers import (
    DeleteServer,
    RedeployServer,
    StartServer,
    StopServer,
)
from trustfabric.actors.vms import Look
from trustfabric.db import vms
from trustfabric.db.session import Database
from trustfabric.db.vms import Instance
from trustfabric.domain.power import Hold
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.trust import Lifecycle, Signal
from trustfabric.domain.vms import PowerState, VmSpec
from trustfabric.errors import ConflictError, FabricError, InvalidError

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt


@pytest.fixture
def operator() -> Any:
    """Somebody else at the same hypervisor."""
    return libvirt.open("test:///default")


@pytest.fixture
def starts(machines: Machines, operator: Any) -> list[str]:
    """The names of all domains that are started, as it happens."""
    seen: list[str] = []

    def told(_: Any, domain: Any, event: int, *_rest: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            seen.append(domain.name())

    operator.domainEventRegisterAny(
        None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, told, None
    )
    return seen


def is_active(operator: Any, instance: Instance) -> bool:
    active: int = operator.lookupByName(instance.name).isActive()
    return bool(active)


def actor_of(instance: Instance) -> str:
    return f"fabric/vms/{instance.id}"


async def test_a_server_s_vm_is_defined_and_runs(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()

    assert is_active(operator, instance)
    assert instance.boot_id is not None
    assert await machines.power_log(instance.id) == ["started"]
    server = await machines.read_server(instance.server_id)
    assert server.status is ServerStatus.RUNNING


async def test_a_boot_is_committed_before_the_domain_starts(
    machines: Machines, starts: list[str]
) -> None:
    server = await machines.server()
    blocker = await machines.instance()

    async with held(machines.database, blocker):
        starting = asyncio.ensure_future(machines.ask(StartServer(server.id, CALLER)))
        await asyncio.wait([starting], timeout=0.1)
    await starting
    first = await machines.until_running(server.id)
    await machines.ask(StopServer(server.id, CALLER))
    await machines.until_instance(first.id, power_state=PowerState.STOPPED)

    async with row_held(machines, first):
        await machines.ask(StartServer(server.id, CALLER))
        await until_asking(machines)
        assert starts == [first.name]
        assert (await machines.read(first.id)).boot_id == first.boot_id

    again = await machines.until_running(server.id)
    assert again.boot_id != first.boot_id
    assert starts == [first.name] * 2


@asynccontextmanager
async def row_held(machines: Machines, instance: Instance) -> AsyncIterator[None]:
    """Have whoever changes its trust wait; launches are decided meanwhile."""
    async with machines.database.writing() as conn:
        await conn.execute(
            """
            SELECT 1 FROM runtime_vm_trust_registry
             WHERE runtime_vm_instance_id = %s FOR UPDATE
            """,
            [instance.id],
        )
        yield


async def until_asking(machines: Machines) -> None:
    async def look() -> bool | None:
        return machines.trust.cell.current is not None or None

    await until(look, "a change to be in hand")


@pytest.fixture
def defining(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> "Defining":
    """Holds up the first definition until it is told how that ends."""
    held_up = Defining(machines.provisioner.define)
    monkeypatch.setattr(machines.provisioner, "define", held_up)
    return held_up


class Defining:
    def __init__(self, define: Any) -> None:
        self._define = define
        self._held: str | None = None
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.refusal: FabricError | None = None

    async def __call__(self, spec: VmSpec) -> Any:
        if self._held in {None, spec.name}:
            self._held = spec.name
            self.begun.set()
            await self.go_on.wait()
            if self.refusal is not None:
                raise self.refusal
        return await self._define(spec)


async def test_one_that_is_stopped_before_its_boot_is_committed_is_not_started(
    machines: Machines, starts: list[str], defining: Defining
) -> None:
    server = await machines.server()
    await machines.ask(StartServer(server.id, CALLER))
    await defining.begun.wait()

    await machines.ask(StopServer(server.id, CALLER))
    defining.go_on.set()
    await machines.until_server(server.id, status=ServerStatus.STOPPED)
    await machines.runtime.quiet()

    instance = await machines.newest(server.id)
    assert (starts, instance.boot_id) == ([], None)
    assert not instance.power_state.active
    await machines.ask(StartServer(server.id, CALLER))
    await machines.until_running(server.id)


async def test_one_that_was_replaced_blocks_its_server_no_more(
    machines: Machines, defining: Defining
) -> None:
    server = await machines.server()
    await machines.ask(StartServer(server.id, CALLER))
    await defining.begun.wait()
    old = await machines.newest(server.id)

    await machines.ask(RedeployServer(server.id, CALLER))
    await machines.until_running(server.id)
    defining.refusal = InvalidError("there is no such filter")
    defining.go_on.set()

    async def look() -> bool | None:
        return (await machines.read(old.id)).terminated_at is not None or None

    await until(look, "the old one to be removed")
    assert (await machines.read_server(server.id)).status is ServerStatus.RUNNING


async def test_a_new_boot_takes_trust_away(machines: Machines) -> None:
    instance = await machines.restored()

    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)
    await machines.ask(StartServer(instance.server_id, CALLER))
    await machines.until_running(instance.server_id)

    story = [
        (event.lifecycle, event.reason) for event in await machines.history(instance.id)
    ]
    assert (Lifecycle.SUSPECT, "new boot") in story
    await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)


async def test_a_crash_is_noted_and_the_vm_boots_again(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.restored()

    operator.lookupByName(instance.name).destroy()

    async def booted_again() -> Instance | None:
        row = await machines.read(instance.id)
        running = row.power_state is PowerState.RUNNING
        return row if running and row.boot_id != instance.boot_id else None

    await until(booted_again, "a new boot")
    row = await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)
    story = [event.reason for event in await machines.history(instance.id)]
    assert "domain crashed" in story
    assert "crashed" in await machines.log(instance.id)
    assert row.remediation_attempts == 0


async def test_a_domain_that_vanished_is_made_again(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()

    domain = operator.lookupByName(instance.name)
    domain.destroy()
    domain.undefine()

    async def booted_again() -> Instance | None:
        row = await machines.read(instance.id)
        running = row.power_state is PowerState.RUNNING
        return row if running and row.boot_id != instance.boot_id else None

    await until(booted_again, "a new boot")
    assert is_active(operator, instance)


async def test_a_crash_of_a_distrusted_one_waits_for_trust(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.restored()
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)

    operator.lookupByName(instance.name).destroy()

    await machines.until_server(
        instance.server_id, status=ServerStatus.PENDING_REMEDIATION
    )
    assert not is_active(operator, instance)
    assert (await machines.read(instance.id)).desired_state == "stopped"

    await machines.change(instance.id, Signal.RELEASED)
    await machines.until_running(instance.server_id)


async def test_a_stop_is_a_stop(machines: Machines, operator: Any) -> None:
    instance = await machines.started()

    await machines.ask(StopServer(instance.server_id, CALLER))

    await machines.until_server(instance.server_id, status=ServerStatus.STOPPED)
    assert not is_active(operator, instance)
    assert await machines.power_log(instance.id) == ["started", "stopped"]


async def test_a_stop_that_is_refused_is_tried_again(
    machines: Machines, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await machines.restored()
    stop, refusals = machines.provisioner.stop, [ConflictError("not now")] * 2

    async def refuse_at_first(name: str, *, grace_s: float) -> None:
        if refusals:
            raise refusals.pop()
        await stop(name, grace_s=grace_s)

    monkeypatch.setattr(machines.provisioner, "stop", refuse_at_first)
    await machines.ask(StopServer(instance.server_id, CALLER))

    async def look() -> bool | None:
        machines.clock.advance(0.5)
        row = await machines.read(instance.id)
        return row.power_state is PowerState.STOPPED or None

    await until(look, "it to be off")
    assert not is_active(operator, instance)


async def test_one_that_is_stopped_while_it_waits_to_boot_again_is_stopped(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()
    operator.lookupByName(instance.name).destroy()
    await booted_again(machines, instance)
    operator.lookupByName(instance.name).destroy()
    await machines.until_instance(instance.id, power_state=PowerState.CRASHED)

    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.runtime.quiet()

    server = await machines.read_server(instance.server_id)
    assert server.status is ServerStatus.STOPPED
    machines.clock.advance(10.0)
    await machines.runtime.quiet()
    assert not is_active(operator, instance)


async def test_one_that_is_deleted_leaves_nothing_at_the_hypervisor(
    machines: Machines, operator: Any, tpm_dir: Path
) -> None:
    instance = await machines.restored()

    await machines.ask(DeleteServer(instance.server_id, CALLER))

    async def gone() -> bool | None:
        row = await machines.read(instance.id)
        return row.terminated_at is not None or None

    await until(gone, "the end of the instance")

    async def let_go() -> bool | None:
        return machines.vms.child(str(instance.id)) is None or None

    await until(let_go, "the end of its actor")
    with pytest.raises(libvirt.libvirtError):
        operator.lookupByName(instance.name)
    assert list(tpm_dir.iterdir()) == []
    assert (await machines.log(instance.id))[-1] == "torn-down"


async def test_killed_while_it_boots_it_boots_once(
    machines: Machines, starts: list[str]
) -> None:
    server = await machines.server()
    await machines.ask(StartServer(server.id, CALLER))
    instance = await machines.newest(server.id)

    for _ in range(8):
        await machines.kill(actor_of(instance))
        await machines.runtime.quiet()

    await machines.until_running(server.id)
    assert starts == [instance.name]
    assert await machines.power_log(instance.id) == ["started"]


async def test_killed_before_its_boot_is_committed_it_begins_again(
    machines: Machines, starts: list[str]
) -> None:
    instance = await machines.started()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)

    async with row_held(machines, instance):
        await machines.ask(StartServer(instance.server_id, CALLER))
        await until_asking(machines)
        await machines.kill(actor_of(instance))

    await machines.until_running(instance.server_id)
    assert starts == [instance.name] * 2


async def test_a_registry_that_dies_under_it_only_delays_it(
    machines: Machines, starts: list[str]
) -> None:
    instance = await machines.started()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)

    async with row_held(machines, instance):
        await machines.ask(StartServer(instance.server_id, CALLER))
        await until_asking(machines)
        await machines.kill("fabric/trust")
    await machines.runtime.quiet()
    machines.clock.advance(1.0)

    await machines.until_running(instance.server_id)
    assert starts == [instance.name] * 2


async def boots_of(machines: Machines, instance: Instance) -> int:
    history = await machines.history(instance.id)
    return sum(event.reason == "guest rebooted" for event in history)


async def test_a_guest_s_own_reboot_is_a_new_boot(machines: Machines) -> None:
    instance = await machines.restored()

    machines.reboot(instance)

    async def noted() -> bool | None:
        row = await machines.read(instance.id)
        return row.boot_id != instance.boot_id or None

    await until(noted, "the new boot")
    await machines.until_running(instance.server_id)
    await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)
    assert await boots_of(machines, instance) == 1


async def test_a_reboot_that_is_told_again_is_noted_once(machines: Machines) -> None:
    instance = await machines.restored()
    actor = machines.vms.child(str(instance.id))
    assert actor is not None

    for _ in range(3):  # as QEMU may
        machines.reboot(instance)

    async def all_noted() -> bool | None:
        row = await machines.read(instance.id)
        return (row.boot_id != instance.boot_id and not row.reboots_due) or None

    await until(all_noted, "every reboot to be noted")
    noted = await boots_of(machines, instance)
    assert 1 <= noted <= 3
    for _ in range(3):
        actor.tell(Look())
    await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)
    assert await boots_of(machines, instance) == noted


async def test_a_reboot_in_hand_at_a_kill_is_not_lost(machines: Machines) -> None:
    instance = await machines.restored()

    machines.runtime.suspend(actor_of(instance))
    machines.reboot(instance)
    await machines.kill(actor_of(instance))
    await machines.runtime.quiet()

    async def noted() -> bool | None:
        return await boots_of(machines, instance) == 1 or None

    await until(noted, "the new boot")


async def test_a_reboot_is_not_forgotten_while_the_registry_is_away(
    machines: Machines,
) -> None:
    instance = await machines.restored()

    async with held(machines.database, instance.id):
        machines.reboot(instance)
        await until_asking(machines)
        await machines.kill("fabric/trust")
    await machines.runtime.quiet()
    machines.clock.advance(1.0)

    async def noted() -> bool | None:
        row = await machines.read(instance.id)
        return row.boot_id != instance.boot_id or None

    await until(noted, "the new boot")


async def test_what_died_with_our_process_comes_back_as_a_new_boot(
    database: Database, database_url: str, tpm_dir: Path, operator: Any
) -> None:
    async with some_machines(database, database_url, tpm_dir, name="one") as before:
        instance = await before.restored()
    # The hypervisor lives in our process, and ours goes on here.
    domain = operator.lookupByName(instance.name)
    domain.destroy()
    domain.undefine()

    async with some_machines(
        database, database_url, tpm_dir, name="one", epoch=2
    ) as after:

        async def booted_again() -> Instance | None:
            row = await after.read(instance.id)
            running = row.power_state is PowerState.RUNNING
            return row if running and row.boot_id != instance.boot_id else None

        await until(booted_again, "a new boot")
        await after.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)
        assert await after.power_log(instance.id) == ["started", "vanished", "started"]


async def test_one_whose_configuration_cannot_be_had_blocks_its_server(
    machines: Machines,
) -> None:
    server = await machines.server(vm={"isolation_tier": "tdx"}, **WITH_TPM)

    await machines.ask(StartServer(server.id, CALLER))

    await machines.until_server(server.id, status=ServerStatus.BLOCKED)
    instance = await machines.newest(server.id)
    assert instance.desired_state == "stopped"
    assert instance.last_error


@pytest.mark.parametrize(
    ("action", "power"),
    [
        (Hold.NONE, PowerState.RUNNING),
        (Hold.PAUSE, PowerState.PAUSED),
        (Hold.STOP, PowerState.STOPPED),
    ],
)
async def test_quarantine_does_to_a_running_vm_what_it_is_told_to(
    database: Database,
    database_url: str,
    tpm_dir: Path,
    action: Hold,
    power: PowerState,
) -> None:
    async with some_machines(
        database, database_url, tpm_dir, quarantine_action=action
    ) as machines:
        instance = await machines.started()

        await machines.change(instance.id, Signal.QUARANTINED_BY_HAND)

        await machines.until_instance(instance.id, power_state=power)


async def test_a_vm_that_was_paused_goes_on_when_it_is_released(
    database: Database, database_url: str, tpm_dir: Path
) -> None:
    async with some_machines(
        database, database_url, tpm_dir, quarantine_action=Hold.PAUSE
    ) as machines:
        instance = await machines.started()
        await machines.change(instance.id, Signal.QUARANTINED_BY_HAND)
        await machines.until_instance(instance.id, power_state=PowerState.PAUSED)

        await machines.change(instance.id, Signal.RELEASED)

        await machines.until_instance(instance.id, power_state=PowerState.RUNNING)


async def booted_again(machines: Machines, before: Instance) -> Instance:
    async def look() -> Instance | None:
        row = await machines.read(before.id)
        running = row.power_state is PowerState.RUNNING
        return row if running and row.boot_id != before.boot_id else None

    return await until(look, "a new boot")


async def test_one_that_crashes_at_once_waits_before_it_boots_again(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()
    operator.lookupByName(instance.name).destroy()
    again = await booted_again(machines, instance)

    operator.lookupByName(instance.name).destroy()
    await machines.until_instance(instance.id, power_state=PowerState.CRASHED)
    await machines.runtime.quiet()
    assert not is_active(operator, instance)
    machines.clock.advance(1.0)

    await booted_again(machines, again)


@pytest.mark.parametrize("policy", ["never", "on-failure"])
async def test_one_that_shall_not_boot_again_stays_off(
    machines: Machines, operator: Any, starts: list[str], policy: str
) -> None:
    instance = await machines.started(vm={"restart": policy})

    operator.lookupByName(instance.name).destroy()

    row = await machines.until_instance(instance.id, power_state=PowerState.CRASHED)
    assert row.desired_state == "stopped"
    await machines.until_server(instance.server_id, status=ServerStatus.ERROR)
    await machines.runtime.quiet()
    assert starts == [instance.name]

    await machines.ask(StartServer(instance.server_id, CALLER))
    await booted_again(machines, instance)


async def test_a_start_of_the_runtime_that_was_replaced_writes_nothing(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()
    async with machines.database.writing() as conn:
        await vms.adopt_living(conn, machines.name, machines.epoch + 1)
    before = await machines.read(instance.id)

    operator.lookupByName(instance.name).destroy()
    await machines.runtime.quiet()
    machines.clock.advance(60.0)
    await machines.runtime.quiet()

    assert await machines.read(instance.id) == before
    assert await machines.power_log(instance.id) == ["started"]
    assert not is_active(operator, instance)


async def test_what_was_replaced_between_a_look_and_a_write_is_refused(
    machines: Machines,
) -> None:
    instance = await machines.started()

    async with machines.database.writing() as conn:
        await vms.fence(conn, instance.id, machines.epoch)
        with pytest.raises(ConflictError):
            await vms.fence(conn, instance.id, machines.epoch - 1)
