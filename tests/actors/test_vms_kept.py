"""VMs on hypervisors that outlive us: what vanished, what was told, what is kept."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.drivers.private_libvirtd import PrivateLibvirtd, missing
from tests.drivers.reference_hypervisor import ReferenceHypervisor
from tests.fix_fabric import count, held, until
from tests.fix_machines import CALLER, Machines, some_machines
from trustfabric.actors import hypervisor
from trustfabric.actors.servers import DeleteServer, StartServer, StopServer
from trustfabric.actors.vms import MISSING_S, Look
from trustfabric.db import boots
from trustfabric.db.session import Database
from trustfabric.db.vms import Instance
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.trust import Lifecycle
from trustfabric.domain.vms import PowerState
from trustfabric.drivers.hypervisor import HttpProvisioner
from trustfabric.errors import UnavailableError

libvirt = pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]


@pytest.fixture
def uri() -> Iterator[str]:
    """libvirt's test driver behind a daemon: its domains outlive our links."""
    with PrivateLibvirtd.make().running() as host:
        yield f"test+unix:///default?socket={host.socket}"


@pytest.fixture
def operator(uri: str) -> Any:
    return libvirt.open(uri)


@pytest_asyncio.fixture
async def machines(
    uri: str, database: Database, database_url: str, tpm_dir: Path
) -> AsyncIterator[Machines]:
    async with some_machines(database, database_url, tpm_dir, uri=uri) as started:
        yield started


def undefine(operator: Any, instance: Instance) -> None:
    domain = operator.lookupByName(instance.name)
    domain.destroy()
    domain.undefine()


async def until_waiting(machines: Machines, instance: Instance) -> None:
    """Return once its actor has seen it missing and waits to look again."""

    async def look() -> bool | None:
        actor = machines.vms.children()[str(instance.id)].cell.actor
        return getattr(actor, "_missing_since", None) is not None or None

    await until(look, "its domain to be missed")


async def test_a_domain_that_vanished_ends_its_instance_and_another_is_made(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.restored()

    undefine(operator, instance)
    await until_waiting(machines, instance)
    machines.clock.advance(MISSING_S)
    ended = await machines.until_instance(instance.id, desired_state="terminated")

    assert ended.terminated_at is not None
    assert ended.power_state is PowerState.VANISHED
    assert "no domain" in (ended.last_error or "")
    reasons = [event.reason for event in await machines.history(instance.id)]
    assert "domain vanished" in reasons
    machines.clock.advance(30.0)  # the servers' sweep
    heir = await machines.until_running(instance.server_id)
    assert heir.id != instance.id
    assert heir.name != instance.name


async def test_where_nothing_shall_boot_again_the_server_stays_without_a_vm(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started(vm={"restart": "never"})

    undefine(operator, instance)
    await until_waiting(machines, instance)
    machines.clock.advance(MISSING_S)
    await machines.until_instance(instance.id, desired_state="terminated")
    machines.clock.advance(60.0)
    await machines.runtime.quiet()

    server = await machines.read_server(instance.server_id)
    assert server.status is ServerStatus.ERROR
    assert (await machines.newest(instance.server_id)).id == instance.id


async def a_stopped_one(machines: Machines, **config: Any) -> Instance:
    instance = await machines.started(**config)
    await machines.ask(StopServer(instance.server_id, CALLER))
    return await machines.until_instance(instance.id, power_state=PowerState.STOPPED)


async def test_one_that_was_off_ends_with_its_domain_and_a_start_makes_another(
    machines: Machines, operator: Any, tpm_dir: Path
) -> None:
    instance = await machines.restored()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)

    operator.lookupByName(instance.name).undefine()
    await until_waiting(machines, instance)
    machines.clock.advance(MISSING_S)
    ended = await machines.until_instance(instance.id, desired_state="terminated")

    assert ended.terminated_at is not None
    assert "no domain" in (ended.last_error or "")
    assert (await machines.log(instance.id))[-1] == "vanished"
    assert list(tpm_dir.iterdir()) == []
    server = await machines.read_server(instance.server_id)
    assert server.status is ServerStatus.STOPPED
    machines.clock.advance(60.0)
    await machines.runtime.quiet()
    assert (await machines.newest(instance.server_id)).id == instance.id

    await machines.ask(StartServer(instance.server_id, CALLER))
    heir = await machines.until_running(instance.server_id)
    assert (heir.id, heir.name) != (instance.id, instance.name)
    await machines.until_posture(heir.id, lifecycle=Lifecycle.RESTORED)


@pytest.mark.parametrize("restart", ["always", "never"])
async def test_one_that_is_started_when_its_domain_is_gone_is_another(
    machines: Machines, operator: Any, restart: str
) -> None:
    instance = await a_stopped_one(machines, vm={"restart": restart})
    actor = machines.vms.children()[str(instance.id)]

    machines.runtime.suspend(f"fabric/vms/{instance.id}")  # it hasn't looked yet
    operator.lookupByName(instance.name).undefine()
    await machines.ask(StartServer(instance.server_id, CALLER))
    machines.runtime.resume(f"fabric/vms/{instance.id}")
    actor.tell(Look())
    await until_waiting(machines, instance)
    machines.clock.advance(MISSING_S)
    await machines.until_instance(instance.id, desired_state="terminated")

    machines.clock.advance(30.0)  # the servers' sweep
    heir = await machines.until_running(instance.server_id)
    assert heir.id != instance.id


async def test_one_that_is_there_again_has_not_vanished(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()
    xml = operator.lookupByName(instance.name).XMLDesc()

    undefine(operator, instance)
    await until_waiting(machines, instance)
    operator.defineXML(xml).create()
    machines.clock.advance(MISSING_S)

    async def looked() -> bool | None:
        actor = machines.vms.children()[str(instance.id)].cell.actor
        return getattr(actor, "_missing_since", 0) is None or None

    await until(looked, "it to be found")
    row = await machines.read(instance.id)
    assert row.terminated_at is None


async def test_a_link_that_fails_between_two_looks_ends_nothing(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.started()
    actor = machines.vms.children()[str(instance.id)]

    undefine(operator, instance)
    await until_waiting(machines, instance)
    await machines.provisioner.close()
    machines.clock.advance(MISSING_S)
    actor.tell(Look())
    await machines.runtime.quiet()

    assert (await machines.read(instance.id)).terminated_at is None


async def test_a_stranger_is_never_touched(machines: Machines, operator: Any) -> None:
    xml = "<domain type='test'><name>theirs</name><memory>1024</memory>"
    theirs = operator.createXML(xml + "<os><type>hvm</type></os></domain>")

    instance = await machines.started()
    await machines.ask(DeleteServer(instance.server_id, CALLER))
    await machines.until_instance(instance.id, desired_state="terminated")
    machines.clock.advance(hypervisor.RECONCILE_S * 3)
    await machines.runtime.quiet()

    assert theirs.isActive()


async def test_crashes_are_remembered_over_our_own_restart(
    uri: str, database: Database, database_url: str, tpm_dir: Path, operator: Any
) -> None:
    parts = {"name": "one", "uri": uri}
    async with some_machines(database, database_url, tpm_dir, **parts) as before:  # type: ignore[arg-type]
        instance = await before.started()
        async with database.writing() as conn:
            for _ in range(5):
                await boots.add_crash(conn, instance.id, before.clock.now())

    async with some_machines(
        database,
        database_url,
        tpm_dir,
        **parts,  # type: ignore[arg-type]
        epoch=2,
    ) as after:
        operator.lookupByName(instance.name).destroy()
        row = await after.until_instance(instance.id, power_state=PowerState.CRASHED)
        await after.runtime.quiet()

        assert len(row.crashes) == 6
        assert not operator.lookupByName(instance.name).isActive()
        after.clock.advance(2.0**4)  # 1, 2, 4, 8, then 16 s
        await after.until_running(instance.server_id)


@pytest.mark.usefixtures("operator")  # without a link its hypervisor forgets all
async def test_reboots_that_were_heard_outlive_the_link_that_heard_them(
    machines: Machines,
) -> None:
    instance = await machines.started()
    async with held(machines.database, instance.id):
        machines.reboot(instance)

        async def heard() -> bool | None:
            return (await machines.read(instance.id)).reboots_due == 1 or None

        await until(heard, "the reboot to be written down")
        await machines.kill("fabric/link")
        await machines.kill(f"fabric/vms/{instance.id}")

    async def noted() -> bool | None:
        row = await machines.read(instance.id)
        return (row.boot_id != instance.boot_id and row.reboots_due == 0) or None

    await until(noted, "the new boot")


async def test_a_reboot_waits_for_a_database_that_is_away(machines: Machines) -> None:
    instance = await machines.started()
    actor = machines.hypervisor.cell.actor
    assert actor is not None
    write = actor._write  # type: ignore[attr-defined]
    failures = 0

    async def fails_once(heard: Any) -> None:
        nonlocal failures
        if not failures:
            failures += 1
            raise UnavailableError("the database is away")
        await write(heard)

    actor._write = fails_once  # type: ignore[attr-defined]
    machines.reboot(instance)

    async def failed() -> bool | None:
        return failures == 1 or None

    await until(failed, "the first attempt")
    await machines.runtime.quiet()
    machines.clock.advance(hypervisor.WRITE_AGAIN_S)

    async def noted() -> bool | None:
        return (await machines.read(instance.id)).boot_id != instance.boot_id or None

    await until(noted, "the new boot")


async def test_what_ended_while_we_were_away_is_seen_when_it_is_adopted(
    uri: str, database: Database, database_url: str, tpm_dir: Path, operator: Any
) -> None:
    parts = {"name": "one", "uri": uri}
    async with some_machines(database, database_url, tpm_dir, **parts) as before:  # type: ignore[arg-type]
        runs_on = await before.started()
        ends = await before.started(vm={"restart": "never"})
    operator.lookupByName(ends.name).destroy()

    async with some_machines(
        database,
        database_url,
        tpm_dir,
        **parts,  # type: ignore[arg-type]
        epoch=2,
    ) as after:
        await after.until_instance(ends.id, power_state=PowerState.CRASHED)

        row = await after.read(runs_on.id)
        assert (row.power_state, row.boot_id) == ("running", runs_on.boot_id)
        assert await after.power_log(runs_on.id) == ["started"]
        operator.lookupByName(runs_on.name).destroy()  # it is heard of all the same

        async def crashed() -> bool | None:
            return bool((await after.read(runs_on.id)).crashes) or None

        await until(crashed, "its crash")


@pytest.mark.usefixtures("operator")
async def test_what_ran_on_while_we_were_away_is_attested_when_it_is_adopted(
    uri: str, database: Database, database_url: str, tpm_dir: Path
) -> None:
    """Its guest may have rebooted meanwhile, and nobody would have told."""
    parts = {"name": "one", "uri": uri}
    async with some_machines(database, database_url, tpm_dir, **parts) as before:  # type: ignore[arg-type]
        instance = await before.started(attestation={"kind": "tpm", "source": "agent"})
        await before.until_posture(instance.id, attestation_status="unknown")

    async with some_machines(
        database,
        database_url,
        tpm_dir,
        **parts,  # type: ignore[arg-type]
        epoch=2,
    ) as after:

        async def asked() -> bool | None:
            purposes = await count(
                database,
                "SELECT count(*) FROM attestation_challenges"
                " WHERE runtime_vm_instance_id = %s AND purpose = 'scheduled'",
                instance.id,
            )
            return purposes == 1 or None

        await until(asked, "its challenge")
        row = await after.read(instance.id)
        assert (row.power_state, row.boot_id) == ("running", instance.boot_id)


class TestBehindHttp:
    """The whole life over an API that names its VMs itself and shows no power."""

    @pytest_asyncio.fixture
    async def machines(
        self,
        reference: ReferenceHypervisor,
        database: Database,
        database_url: str,
        tpm_dir: Path,
    ) -> AsyncIterator[Machines]:
        async with some_machines(
            database,
            database_url,
            tpm_dir,
            name="one",
            provisioner=HttpProvisioner(reference.url),
        ) as started:
            yield started

    @pytest_asyncio.fixture
    async def reference(self) -> AsyncIterator[ReferenceHypervisor]:
        async with ReferenceHypervisor() as hypervisor_api:
            yield hypervisor_api

    async def test_it_is_known_by_the_name_that_it_was_given(
        self, machines: Machines, reference: ReferenceHypervisor
    ) -> None:
        instance = await machines.started()

        assert [instance.name] == list(reference.machines)
        assert reference.machines[instance.name].running
        tail = await machines.provisioner.console_tail(instance.name, 10)
        assert tail.lines == ("booted",)

    async def test_a_stop_and_a_start_use_the_same_vm(
        self, machines: Machines, reference: ReferenceHypervisor
    ) -> None:
        instance = await machines.started()

        await machines.ask(StopServer(instance.server_id, CALLER))
        await machines.until_instance(instance.id, power_state=PowerState.STOPPED)
        assert not reference.machines[instance.name].running
        await machines.ask(StartServer(instance.server_id, CALLER))
        again = await machines.until_running(instance.server_id)

        assert (again.id, again.name) == (instance.id, instance.name)
        assert len(reference.machines) == 1

    async def test_our_restart_neither_stops_nor_boots_it(
        self,
        reference: ReferenceHypervisor,
        database: Database,
        database_url: str,
        tpm_dir: Path,
    ) -> None:
        async def life(epoch: int) -> Any:
            return some_machines(
                database,
                database_url,
                tpm_dir,
                name="one",
                epoch=epoch,
                provisioner=HttpProvisioner(reference.url),
            )

        async with await life(1) as before:
            instance = await before.started()
        async with await life(2) as after:
            await after.runtime.quiet()
            row = await after.read(instance.id)
            assert (row.power_state, row.boot_id) == ("running", instance.boot_id)
            await after.ask(StopServer(instance.server_id, CALLER))
            await after.until_instance(instance.id, power_state=PowerState.STOPPED)

        assert not reference.machines[instance.name].running

    async def test_one_that_its_hypervisor_forgot_is_ended(
        self, machines: Machines, reference: ReferenceHypervisor
    ) -> None:
        instance = await machines.started()
        await machines.ask(StopServer(instance.server_id, CALLER))
        await machines.until_instance(instance.id, power_state=PowerState.STOPPED)
        reference.machines.clear()

        await machines.ask(StartServer(instance.server_id, CALLER))

        ended = await machines.until_instance(instance.id, desired_state="terminated")
        assert ended.terminated_at is not None
        posture = await machines.posture(instance.id)
        assert posture.lifecycle is Lifecycle.SUSPECT
