"""The libvirt driver on libvirt's own test driver, which runs nothing but is real."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.drivers.links import BOOT, Heard, MakeDriver, a_spec, powers
from trustfabric.domain.vms import (
    IsolationTier,
    PowerChange,
    PowerState,
    VmSpec,
    is_structural,
)
from trustfabric.drivers import libvirt_ours as ours
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.errors import (
    AlreadyRunningError,
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt


@pytest.fixture
def operator() -> Any:
    """Somebody else's connection to the same hypervisor."""
    return libvirt.open("test:///default")


# --- what the test driver is ---------------------------------------------------


def test_its_domains_are_simulated_and_die_with_us(make: MakeDriver) -> None:
    driver = make()

    assert driver.simulated
    assert driver.volatile
    assert driver.observes
    assert driver.endpoint == "test:///default"


async def test_what_it_defines_is_marked_as_simulated(
    driver: LibvirtProvisioner,
) -> None:
    defined = await driver.define(a_spec())

    assert defined.simulated
    assert "libvirt:simulated" in defined.notes


@pytest.mark.parametrize("tier", [t for t in IsolationTier if t.confidential])
async def test_no_isolation_is_simulated(
    driver: LibvirtProvisioner, tier: IsolationTier
) -> None:
    with pytest.raises(UnsupportedError) as refused:
        await driver.define(a_spec(tier=tier))

    assert is_structural(refused.value)
    assert await powers(driver) == {}


async def test_an_empty_console_says_why(driver: LibvirtProvisioner) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)

    tail = await driver.console_tail(spec.name, 500)

    assert tail.lines == ()
    assert tail.why_empty is not None
    assert "no console" in tail.why_empty


async def test_domains_outlive_a_closed_link(
    driver: LibvirtProvisioner, heard: Heard
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)

    await driver.close()
    await driver.open(heard.on_event, heard.on_lost)

    assert await powers(driver) == {spec.name: PowerState.RUNNING}


# --- whose a domain is -----------------------------------------------------------


async def test_strangers_are_not_seen(
    driver: LibvirtProvisioner, make: MakeDriver, heard: Heard
) -> None:
    other = make(runtime=f"another-{uuid4().hex[:8]}")
    await other.open(heard.on_event, heard.on_lost)
    mine = a_spec()
    theirs = replace(a_spec(), uuid=uuid4())
    await driver.define(mine)
    await other.define(theirs)

    for _ in range(2):
        assert set(await powers(driver)) == {mine.name}
        assert set(await powers(other)) == {theirs.name}


async def test_strangers_are_not_touched(
    driver: LibvirtProvisioner, make: MakeDriver, heard: Heard
) -> None:
    other = make(runtime=f"another-{uuid4().hex[:8]}")
    await other.open(heard.on_event, heard.on_lost)
    theirs = replace(a_spec(), uuid=uuid4())
    await other.define(theirs)

    with pytest.raises(NotFoundError):
        await driver.start(theirs.name, BOOT)
    with pytest.raises(NotFoundError):
        await driver.stop(theirs.name, grace_s=0)
    await driver.undefine(theirs.name)
    await driver.undefine("test")

    assert set(await powers(other)) == {theirs.name}


async def test_strangers_events_are_not_told(
    driver: LibvirtProvisioner, make: MakeDriver, heard: Heard
) -> None:
    other, theirs_heard = make(runtime=f"another-{uuid4().hex[:8]}"), Heard()
    await other.open(theirs_heard.on_event, theirs_heard.on_lost)
    theirs = replace(a_spec(), uuid=uuid4())
    await other.define(theirs)

    await other.start(theirs.name, BOOT)

    await theirs_heard.until_heard(theirs.name, PowerChange.STARTED)
    assert heard.events == []


@pytest.mark.parametrize("taken", ["name", "uuid"])
async def test_a_strangers_name_or_uuid_is_a_conflict(
    driver: LibvirtProvisioner, operator: Any, taken: str
) -> None:
    spec = a_spec()
    name = spec.name if taken == "name" else "strange"
    uuid = spec.uuid if taken == "uuid" else uuid4()
    operator.defineXML(
        f"<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>"
        "<memory>1024</memory><os><type>hvm</type></os></domain>"
    )

    with pytest.raises(ConflictError) as refused:
        await driver.define(spec)

    assert refused.value.facts["other_uuid"] == str(uuid)
    assert await powers(driver) == {}


async def test_what_a_killed_process_left_is_adopted(
    driver: LibvirtProvisioner, make: MakeDriver, heard: Heard
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)
    heir, heirs_heard = make(), Heard()
    await heir.open(heirs_heard.on_event, heirs_heard.on_lost)

    assert await powers(heir) == {spec.name: PowerState.RUNNING}
    adopted = await heir.define(spec)
    await heir.stop(spec.name, grace_s=1)

    assert adopted.adopted
    await heirs_heard.until_heard(spec.name, PowerChange.SHUT_DOWN)


async def test_a_changed_specification_is_defined_over_the_old(
    driver: LibvirtProvisioner, operator: Any
) -> None:
    spec = a_spec()
    await driver.define(spec)

    again = await driver.define(replace(spec, memory_mib=128))

    assert not again.adopted
    info = operator.lookupByName(spec.name).info()
    assert info[1] == 128 * 1024


def test_an_error_that_the_collector_had_forgotten_is_asked_for_again(
    driver: LibvirtProvisioner, operator: Any
) -> None:
    """Freeing an object of libvirt's resets the error of the call before."""
    forgotten = [libvirt.libvirtError("freed in between")]

    def look_up() -> Any:
        if forgotten:
            raise forgotten.pop()
        return operator.lookupByName("nobody")

    assert libvirt.libvirtError("freed in between").get_error_code() is None
    assert ours.find(driver._host, look_up) is None


# --- powers and their events -----------------------------------------------------


async def test_events_come_in_order_over_a_life(
    driver: LibvirtProvisioner, heard: Heard
) -> None:
    spec = a_spec()
    await driver.define(spec)

    await driver.start(spec.name, BOOT)
    await driver.pause(spec.name)
    await driver.resume(spec.name)
    await driver.stop(spec.name, grace_s=0)
    await driver.undefine(spec.name)

    await heard.until_heard(spec.name, PowerChange.UNDEFINED)
    assert heard.changes(spec.name) == [
        PowerChange.STARTED,
        PowerChange.PAUSED,
        PowerChange.RESUMED,
        PowerChange.DESTROYED,
        PowerChange.UNDEFINED,
    ]


async def test_what_an_operator_does_behind_our_back_is_told(
    driver: LibvirtProvisioner, heard: Heard, operator: Any
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)

    operator.lookupByName(spec.name).destroy()
    await heard.until_heard(spec.name, PowerChange.DESTROYED)
    operator.lookupByName(spec.name).undefine()

    await heard.until_heard(spec.name, PowerChange.UNDEFINED)
    assert await powers(driver) == {}


async def test_a_crash_is_told_and_seen(
    driver: LibvirtProvisioner, heard: Heard, operator: Any, tmp_path: Path
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)

    dump_and_crash = 1
    operator.lookupByName(spec.name).coreDump(str(tmp_path / "core"), dump_and_crash)

    await heard.until_heard(spec.name, PowerChange.PANICKED)
    assert await powers(driver) == {spec.name: PowerState.CRASHED}


async def test_a_paused_vm_goes_on_when_started(driver: LibvirtProvisioner) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)
    await driver.pause(spec.name)

    await driver.start(spec.name, BOOT)

    assert await powers(driver) == {spec.name: PowerState.RUNNING}


async def test_a_paused_vm_is_stopped_without_waiting_for_it(
    driver: LibvirtProvisioner,
) -> None:
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)
    await driver.pause(spec.name)

    async with asyncio.timeout(5):
        await driver.stop(spec.name, grace_s=60)

    assert await powers(driver) == {spec.name: PowerState.STOPPED}


async def test_a_vm_that_is_off_cannot_be_paused(driver: LibvirtProvisioner) -> None:
    spec = a_spec()
    await driver.define(spec)

    with pytest.raises(ConflictError):
        await driver.pause(spec.name)
    with pytest.raises(ConflictError):
        await driver.resume(spec.name)


async def test_a_device_slipped_in_by_an_operator_keeps_it_from_running(
    driver: LibvirtProvisioner, operator: Any
) -> None:
    spec = a_spec()
    await driver.define(spec)
    xml = operator.lookupByName(spec.name).XMLDesc(0)
    second = "<disk type='file'><source file='/x'/><target dev='vdb'/></disk>"
    operator.defineXML(xml.replace("</devices>", f"{second}</devices>"))

    with pytest.raises(InvalidError) as refused:
        await driver.start(spec.name, BOOT)

    assert refused.value.facts["downgraded"] == ["2 disk instead of 1"]
    states = await powers(driver)
    assert not states[spec.name].active
    assert not (await driver.define(spec)).adopted
    await driver.start(spec.name, BOOT)


# --- many, and at once -------------------------------------------------------------


async def test_racing_starts_have_one_winner(driver: LibvirtProvisioner) -> None:
    spec = a_spec()
    await driver.define(spec)

    results = await asyncio.gather(
        *(driver.start(spec.name, BOOT) for _ in range(16)), return_exceptions=True
    )

    assert results.count(None) == 1
    losers = [type(result) for result in results if result is not None]
    assert losers == [AlreadyRunningError] * 15


async def test_racing_lives_of_one_name_end_in_our_errors_only(
    driver: LibvirtProvisioner,
) -> None:
    spec = a_spec()

    async def live() -> None:
        await driver.define(spec)
        await driver.start(spec.name, BOOT)
        await driver.stop(spec.name, grace_s=0)
        await driver.undefine(spec.name)

    results = await asyncio.gather(*(live() for _ in range(40)), return_exceptions=True)

    ours = (NotFoundError, ConflictError, UnavailableError, type(None))
    strange = [result for result in results if not isinstance(result, ours)]
    assert strange == []
    await driver.undefine(spec.name)
    assert await powers(driver) == {}


@pytest.mark.slow
async def test_two_thousand_vms_start_and_every_event_comes(
    driver: LibvirtProvisioner, heard: Heard
) -> None:
    specs = [a_spec() for _ in range(2000)]

    async def boot(spec: VmSpec) -> None:
        await driver.define(spec)
        await driver.start(spec.name, BOOT)

    async with asyncio.TaskGroup() as group:
        for spec in specs:
            group.create_task(boot(spec))

    await heard.until(lambda: len(heard.events) == len(specs), within_s=30)
    assert {event.name for event in heard.events} == {spec.name for spec in specs}
    clock = asyncio.get_running_loop().time
    before = clock()
    seen = await powers(driver)
    assert clock() - before < 5
    assert set(seen.values()) == {PowerState.RUNNING}
    assert len(seen) == len(specs)


async def test_an_event_of_an_earlier_link_that_comes_late_is_dropped(
    make: MakeDriver, heard: Heard
) -> None:
    driver = make()
    await driver.open(heard.on_event, heard.on_lost)
    spec = a_spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)
    await heard.until_heard(spec.name, PowerChange.STARTED)
    link = driver._link
    assert link is not None
    earlier = link._listeners
    assert earlier is not None
    again = Heard()
    await driver.open(again.on_event, again.on_lost)
    await driver.observe()

    stopped, failed = 5, 5
    earlier.lifecycle(str(spec.uuid), spec.name, stopped, failed)
    earlier.rebooted(str(spec.uuid), spec.name)
    earlier.lost("end of file")
    await driver.stop(spec.name, grace_s=0.0)
    await again.until_heard(spec.name, PowerChange.DESTROYED)

    assert again.changes(spec.name) == [PowerChange.DESTROYED]
    assert again.lost == []
    await driver.undefine(spec.name)
