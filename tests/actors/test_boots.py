"""Which boot it is that runs: ours, or one that somebody else began."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from tests.drivers.private_libvirtd import PrivateLibvirtd, missing
from tests.fix_fabric import until
from tests.fix_machines import Machines, some_machines
from trustfabric.actors import hypervisor
from trustfabric.actors.vms import Look
from trustfabric.db.session import Database
from trustfabric.db.vms import Instance
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.vms import PowerState
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.errors import InvalidError

libvirt = pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]

DEVICE = """<hostdev mode='subsystem' type='pci' managed='yes'><source>
<address domain='0' bus='1' slot='0' function='0'/></source></hostdev></devices>"""
INACTIVE = 2


@pytest.fixture
def host() -> Iterator[PrivateLibvirtd]:
    """libvirt's test driver behind a daemon: its domains outlive our links."""
    with PrivateLibvirtd.make().running() as host:
        yield host


@pytest.fixture
def operator(host: PrivateLibvirtd) -> Any:
    return libvirt.open(uri_of(host))


@pytest_asyncio.fixture
async def machines(host: PrivateLibvirtd, starts: "Starts") -> AsyncIterator[Machines]:
    async with starts(1) as started:
        yield started


class Starts:
    """Starts of one runtime, one after the other."""

    def __init__(self, host: PrivateLibvirtd, *parts: Any) -> None:
        self._host = host
        self._parts = parts

    @asynccontextmanager
    async def __call__(self, epoch: int, uri: str = "") -> AsyncIterator[Machines]:
        async with some_machines(
            *self._parts, name="one", uri=uri or uri_of(self._host), epoch=epoch
        ) as machines:
            yield machines


@pytest.fixture
def starts(
    host: PrivateLibvirtd, database: Database, database_url: str, tpm_dir: Any
) -> Starts:
    return Starts(host, database, database_url, tpm_dir)


def uri_of(host: PrivateLibvirtd) -> str:
    return f"test+unix:///default?socket={host.socket}"


def with_a_device(operator: Any, instance: Instance) -> None:
    """Have its next start, whoever begins it, hand a device of the host to it."""
    definition = operator.lookupByName(instance.name).XMLDesc(INACTIVE)
    operator.defineXML(definition.replace("</devices>", DEVICE))


async def until_booted_again(machines: Machines, before: Instance) -> Instance:
    async def look() -> Instance | None:
        row = await machines.read(before.id)
        again = row.boot_id != before.boot_id and row.power_state == "running"
        return row if again else None

    return await until(look, "another boot")


async def reasons(machines: Machines, instance: Instance) -> list[str]:
    return [event.reason for event in await machines.history(instance.id)]


async def test_one_that_others_switch_off_and_on_at_once_is_distrusted_and_attested(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.restored()
    domain = operator.lookupByName(instance.name)

    async with machines.database.writing() as conn:  # so that nobody looks between
        await conn.execute("LOCK TABLE runtime_vm_instances IN ACCESS EXCLUSIVE MODE")
        domain.destroy()
        domain.create()

    await until_booted_again(machines, instance)
    await machines.until_posture(instance.id, lifecycle="restored")
    assert (await reasons(machines, instance)).count("booted outside") == 1
    assert (await machines.power_log(instance.id))[-1] == "started"


async def test_one_that_others_switched_off_and_on_while_we_were_down_is_distrusted(
    starts: Starts, operator: Any
) -> None:
    async with starts(1) as machines:
        instance = await machines.restored()
    domain = operator.lookupByName(instance.name)
    domain.destroy()
    domain.create()

    async with starts(2) as machines:
        await until_booted_again(machines, instance)
        await machines.until_posture(instance.id, lifecycle="restored")
        assert "booted outside" in await reasons(machines, instance)


@pytest.mark.usefixtures("operator")
async def test_one_that_ran_on_while_we_were_down_is_in_the_boot_it_was(
    starts: Starts,
) -> None:
    async with starts(1) as machines:
        instance = await machines.restored()
        before = await machines.posture(instance.id)

    async with starts(2) as machines:
        machines.vms.children()[str(instance.id)].tell(Look())
        await machines.runtime.quiet()
        assert (await machines.read(instance.id)).boot_id == instance.boot_id
        assert (await machines.posture(instance.id)).lifecycle == before.lifecycle


async def test_what_others_changed_and_started_is_switched_off_and_booted_as_asked(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.restored()
    operator.lookupByName(instance.name).destroy()
    with_a_device(operator, instance)
    operator.lookupByName(instance.name).create()

    await until_as_asked(machines, operator, instance)


async def test_what_others_changed_while_we_were_down_is_booted_as_asked_too(
    starts: Starts, operator: Any
) -> None:
    async with starts(1) as machines:
        instance = await machines.restored()
    operator.lookupByName(instance.name).destroy()
    with_a_device(operator, instance)
    operator.lookupByName(instance.name).create()

    async with starts(2) as machines:
        await until_as_asked(machines, operator, instance)


async def until_as_asked(machines: Machines, operator: Any, instance: Instance) -> None:
    await until_log(machines, instance, "not-as-asked")
    await until_booted_again(machines, instance)
    await machines.until_posture(instance.id, lifecycle="restored")
    domain = operator.lookupByName(instance.name)
    assert domain.isActive()
    assert "<hostdev" not in domain.XMLDesc(0)
    assert "<hostdev" not in domain.XMLDesc(INACTIVE)


async def until_log(machines: Machines, instance: Instance, event: str) -> None:
    async def look() -> bool | None:
        return event in await machines.log(instance.id) or None

    await until(look, event)


async def test_what_others_started_and_cannot_be_as_asked_is_off_when_it_is_said_to_be(
    starts: Starts, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with starts(1) as machines:
        instance = await machines.restored()
    domain = operator.lookupByName(instance.name)
    domain.destroy()
    domain.create()

    async def refuse(*_: object) -> None:
        raise InvalidError("there is no such filter")

    monkeypatch.setattr(LibvirtProvisioner, "define", refuse)
    async with starts(2) as machines:
        await machines.until_server(instance.server_id, status=ServerStatus.BLOCKED)
        await machines.runtime.quiet()
        row = await machines.read(instance.id)
        assert row.power_state is PowerState.STOPPED
        assert row.last_error == "there is no such filter"
        assert not domain.isActive()


async def test_a_mark_that_got_into_the_definition_marks_no_later_boot(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.restored()
    domain = operator.lookupByName(instance.name)
    live = domain.XMLDesc(0)
    assert str(instance.boot_id) in live

    operator.defineXML(live)
    domain.destroy()
    domain.create()

    assert str(instance.boot_id) in domain.XMLDesc(0)
    await until_booted_again(machines, instance)
    assert "booted outside" in await reasons(machines, instance)


async def test_a_start_that_was_cut_before_its_first_instruction_is_begun_anew(
    machines: Machines, operator: Any
) -> None:
    instance = await machines.restored()
    machines.runtime.suspend(machines.vms.children()[str(instance.id)].cell.path)
    domain = operator.lookupByName(instance.name)
    domain.suspend()
    async with machines.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET power_state = 'starting' WHERE id = %s",
            [instance.id],
        )
    machines.runtime.resume(machines.vms.children()[str(instance.id)].cell.path)

    await until_booted_again(machines, instance)

    assert domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING


# --- links -------------------------------------------------------------------------


@pytest.mark.usefixtures("operator")
async def test_what_ran_on_through_a_lost_link_is_attested(machines: Machines) -> None:
    instance = await machines.restored()
    before = (await machines.log(instance.id)).count("attested")

    machines.hypervisor.tell(hypervisor._Lost("cut"))

    async def look() -> bool | None:
        machines.clock.advance(0.5)
        return (await machines.log(instance.id)).count("attested") > before or None

    await until(look, "another attestation")
    assert (await machines.read(instance.id)).boot_id == instance.boot_id


# --- other hypervisors -------------------------------------------------------------


@pytest.fixture
def other_host() -> Iterator[PrivateLibvirtd]:
    with PrivateLibvirtd.make().running() as host:
        yield host


@pytest.mark.parametrize("elsewhere", ["daemon", "test:///default"])
async def test_one_of_another_hypervisor_is_left_alone_until_that_is_back(
    starts: Starts, operator: Any, other_host: PrivateLibvirtd, elsewhere: str
) -> None:
    uri = uri_of(other_host) if elsewhere == "daemon" else elsewhere
    async with starts(1) as machines:
        instance = await machines.restored()
        trusted = await machines.posture(instance.id)

    async with starts(2, uri) as machines:
        row = await machines.until_instance(instance.id, power_state="unknown")
        machines.clock.advance(60.0)
        await machines.runtime.quiet()
        assert "nothing is known of it" in (row.last_error or "")
        assert (await machines.read(instance.id)).terminated_at is None
        assert (await machines.newest(instance.server_id)).id == instance.id
        assert (await machines.log(instance.id)).count("elsewhere") == 1
        assert operator.lookupByName(instance.name).isActive()
        # (one `test:///default` is the whole process's: others' may be there)
        assert instance.name not in await machines.provisioner.observe()

    async with starts(3) as machines:
        row = await machines.until_instance(instance.id, power_state="running")
        assert row.boot_id == instance.boot_id
        assert row.last_error is None
        assert (await machines.posture(instance.id)).lifecycle == trusted.lifecycle


@pytest.mark.usefixtures("operator")
async def test_one_whose_hypervisor_has_another_address_goes_on(
    starts: Starts, host: PrivateLibvirtd
) -> None:
    async with starts(1) as machines:
        instance = await machines.restored()
    link = host.root / "moved.sock"
    link.symlink_to(host.socket)

    async with starts(2, f"test+unix:///default?socket={link}") as machines:
        there = machines.provisioner.endpoint
        row = await machines.until_instance(instance.id, endpoint=there)
        assert there != instance.endpoint
        assert row.boot_id == instance.boot_id
        assert row.power_state is PowerState.RUNNING


async def test_what_was_simulated_in_an_earlier_process_is_made_anew_elsewhere(
    starts: Starts,
) -> None:
    async with starts(1, "test:///default") as machines:
        instance = await machines.restored()

    async with starts(2) as machines:
        machines.clock.advance(2.0)

        async def heir() -> Instance | None:
            machines.clock.advance(1.0)
            newest = await machines.newest(instance.server_id)
            other = newest.id != instance.id and newest.power_state == "running"
            return newest if other else None

        assert (await until(heir, "another instance")).endpoint != instance.endpoint
        assert (await machines.read(instance.id)).terminated_at is not None


async def test_what_is_simulated_says_so_after_each_definition(
    starts: Starts, operator: Any
) -> None:
    async with starts(1) as machines:
        instance = await machines.restored()
        async with machines.database.writing() as conn:
            await conn.execute("UPDATE runtime_vm_instances SET capability_notes='{}'")
        operator.lookupByName(instance.name).destroy()

        again = await until_booted_again(machines, instance)

        assert again.capability_notes == ("libvirt:simulated",)
        assert re.match(r"test\+unix:///default\?socket=/", again.endpoint)
