"""The libvirt driver on real QEMU guests, through a libvirtd of our own."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.drivers.links import Heard
from tests.drivers.private_libvirtd import PrivateLibvirtd, missing
from trustfabric.domain.vms import (
    ConsoleKind,
    ConsoleSource,
    IsolationTier,
    PowerChange,
    PowerState,
    VmSpec,
    VolumeTemplate,
    is_structural,
)
from trustfabric.drivers import libvirt_link
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_xml import VirtType, parse
from trustfabric.errors import (
    FabricError,
    InvalidError,
    UnavailableError,
    UnsupportedError,
)

libvirt = pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateLibvirtd]:
    daemon = PrivateLibvirtd.make()
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def host(daemon: PrivateLibvirtd) -> PrivateLibvirtd:
    """The daemon, running, whatever an earlier test did to it."""
    if not daemon.alive:
        daemon.start()
    return daemon


@pytest.fixture
async def driver(
    host: PrivateLibvirtd,
    events: EventLoop,
    executor: ThreadPoolExecutor,
    heard: Heard,
) -> AsyncIterator[LibvirtProvisioner]:
    driver = LibvirtProvisioner(
        host.uri,
        events=events,
        executor=executor,
        runtime="tests",
        virt=VirtType.QEMU,
    )
    await driver.open(heard.on_event, heard.on_lost)
    yield driver
    await driver.open(heard.on_event, heard.on_lost)
    for name in await driver.observe():
        await driver.undefine(name)
    await driver.close()


async def a_running_vm(driver: LibvirtProvisioner, host: PrivateLibvirtd) -> VmSpec:
    spec = host.spec()
    await driver.define(spec)
    await driver.start(spec.name)
    await until_printed(driver, spec.name, "GUEST-UP")
    return spec


async def until_printed(driver: LibvirtProvisioner, name: str, line: str) -> None:
    async with asyncio.timeout(15):
        while line not in (await driver.console_tail(name, 2000)).lines:
            await asyncio.sleep(0.05)


def type_into(host: PrivateLibvirtd, name: str, key: bytes) -> None:
    """Send a byte to the guest's serial port, past libvirt."""
    conn = libvirt.open(host.uri)
    source = parse(conn.lookupByName(name).XMLDesc(0)).find("devices/serial/source")
    conn.close()
    assert source is not None
    Path(source.attrib["path"]).write_bytes(key)


async def test_a_guest_boots_and_prints(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(driver, host)

    tail = await driver.console_tail(spec.name, 500)

    assert tail.lines[0] == "GUEST-UP"
    assert PowerChange.STARTED in heard.changes(spec.name)
    assert (await driver.observe())[spec.name] is PowerState.RUNNING
    assert not driver.simulated
    assert not driver.volatile


async def test_lines_are_followed_as_they_come(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(driver, host)
    seen = []

    async with asyncio.timeout(15):
        async for line in driver.console_follow(spec.name):
            seen.append(line)
            if len(seen) == 2:
                break

    assert all(line.startswith("tick ") for line in seen)


async def test_a_follower_ends_with_the_guest(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(driver, host)

    async def follow() -> list[str]:
        return [line async for line in driver.console_follow(spec.name)]

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        await asyncio.sleep(0.2)
        await driver.stop(spec.name, grace_s=10)

    assert following.result()[-1] == "OFF"


async def test_a_guest_is_asked_to_stop_and_its_last_words_are_kept(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(driver, host)

    await driver.stop(spec.name, grace_s=10)

    assert (await driver.observe())[spec.name] is PowerState.STOPPED
    await heard.until_heard(spec.name, PowerChange.SHUT_DOWN)
    assert (await driver.console_tail(spec.name, 1)).lines == ("OFF",)


async def test_a_killed_qemu_is_a_crash(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(driver, host)

    os.kill(host.qemu_of(spec.name), signal.SIGKILL)

    await heard.until_heard(spec.name, PowerChange.FAILED)
    assert (await driver.observe())[spec.name] is PowerState.CRASHED


async def test_a_panic_is_a_crash(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(driver, host)

    type_into(host, spec.name, b"p")

    await heard.until_heard(spec.name, PowerChange.PANICKED)
    async with asyncio.timeout(10):
        while (await driver.observe())[spec.name] is not PowerState.CRASHED:
            await asyncio.sleep(0.05)


async def test_a_guest_that_resets_itself_has_booted_anew(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(driver, host)

    type_into(host, spec.name, b"r")

    await heard.until_heard(spec.name, PowerChange.REBOOTED)
    assert (await driver.observe())[spec.name] is PowerState.RUNNING


async def test_a_crashed_vm_starts_again(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(driver, host)
    os.kill(host.qemu_of(spec.name), signal.SIGKILL)
    await heard.until_heard(spec.name, PowerChange.FAILED)

    await driver.start(spec.name)

    assert (await driver.observe())[spec.name] is PowerState.RUNNING


async def test_a_hung_guest_is_cut_off_and_its_neighbour_does_not_notice(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    hung, neighbour = await a_running_vm(driver, host), await a_running_vm(driver, host)
    os.kill(host.qemu_of(hung.name), signal.SIGSTOP)

    async with asyncio.TaskGroup() as group:
        group.create_task(driver.stop(hung.name, grace_s=1))
        async with asyncio.timeout(3):
            for _ in range(20):
                await driver.pause(neighbour.name)
                await driver.resume(neighbour.name)

    states = await driver.observe()
    assert states == {
        hung.name: PowerState.STOPPED,
        neighbour.name: PowerState.RUNNING,
    }


async def test_a_flood_stays_within_bounds(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(driver, host)

    type_into(host, spec.name, b"f")

    await until_printed(driver, spec.name, "FLOOD-DONE")
    assert len((await driver.console_tail(spec.name, 99_999)).lines) <= 2001


async def test_any_bytes_come_as_text(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(driver, host)

    type_into(host, spec.name, b"b")

    await until_printed(driver, spec.name, "bad:\\xff\\xfe\\x80 esc:red crlf")


# --- consoles that say nothing say why -----------------------------------------


async def test_a_console_that_another_holds_says_so(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(driver, host)
    await driver.close()
    operator = libvirt.open(host.uri)
    stream = operator.newStream(libvirt.VIR_STREAM_NONBLOCK)
    operator.lookupByName(spec.name).openConsole(
        None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE
    )
    heir = LibvirtProvisioner(
        host.uri,
        events=driver._events,
        executor=driver._executor,
        runtime="tests",
        virt=VirtType.QEMU,
    )
    await heir.open(lambda _: None, lambda _: None)

    tail = await heir.console_tail(spec.name, 10)

    assert tail.why_empty == "another client holds its console"
    stream.abort()
    operator.close()
    await heir.close()


async def test_a_console_that_goes_elsewhere_names_the_setting(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = replace(host.spec(), console=ConsoleSource(kind=ConsoleKind.NULL))
    await driver.define(spec)
    await driver.start(spec.name)

    tail = await driver.console_tail(spec.name, 10)

    assert tail.why_empty is not None
    assert "LIBVIRT_CONSOLE_SOURCE" in tail.why_empty


# --- isolation is had or refused -----------------------------------------------


@pytest.mark.parametrize("tier", [t for t in IsolationTier if t.confidential])
async def test_a_tier_that_this_host_lacks_is_refused(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, tier: IsolationTier
) -> None:
    with pytest.raises((UnsupportedError, InvalidError)) as refused:
        await driver.define(replace(host.spec(), tier=tier))

    assert is_structural(refused.value)
    assert await driver.observe() == {}


async def test_a_missing_disk_starts_nothing(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = host.spec()
    await driver.define(spec)
    Path(spec.volume.path).unlink()

    with pytest.raises(UnavailableError):
        await driver.start(spec.name)

    assert not (await driver.observe())[spec.name].active


# --- disks ----------------------------------------------------------------------


async def test_a_disk_with_a_size_is_made_once(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = host.spec()
    disk = host.root / "volumes" / f"{spec.name}.img"
    volume = VolumeTemplate(path=str(disk), driver="raw", size_gib=1)

    await driver.define(replace(spec, volume=volume))
    disk.write_bytes(b"kept")
    await driver.define(replace(spec, volume=volume, memory_mib=128))
    other = host.root / "volumes" / "other.img"
    again = replace(host.spec(), volume=replace(volume, path=str(other)))
    await driver.define(again)

    assert disk.read_bytes() == b"kept"
    assert other.stat().st_size == 1 << 30


async def test_a_disk_in_a_pool_that_nobody_has_is_refused(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    volume = VolumeTemplate(path="/x.img", driver="raw", size_gib=1, pool="nobodys")

    with pytest.raises(FabricError):
        await driver.define(replace(host.spec(), volume=volume))

    assert await driver.observe() == {}


@pytest.mark.parametrize("driver_name", ["raw", "qcow2"])
async def test_a_base_image_that_cannot_be_one_is_refused(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, driver_name: str
) -> None:
    volume = VolumeTemplate(
        path=str(host.root / "volumes" / "based.qcow2"),
        driver=driver_name,
        base_image="/nowhere/base.qcow2",
    )

    with pytest.raises(InvalidError):
        await driver.define(replace(host.spec(), volume=volume))


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-utils")
async def test_a_guest_boots_from_an_overlay_of_its_base_image(
    driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = host.spec()
    base = Path(spec.volume.path)
    volume = VolumeTemplate(
        path=str(host.root / "volumes" / f"{spec.name}.qcow2"),
        base_image=str(base),
        size_gib=1,
    )
    spec = replace(spec, volume=volume)
    before = base.read_bytes()

    await driver.define(spec)
    await driver.start(spec.name)

    await until_printed(driver, spec.name, "GUEST-UP")
    assert base.read_bytes() == before


# --- the daemon goes away ------------------------------------------------------


async def test_a_killed_daemon_is_a_lost_link_and_its_guests_are_found_again(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(driver, host)

    host.kill()
    await heard.until(lambda: bool(heard.lost))
    with pytest.raises(UnavailableError):
        await driver.observe()
    with pytest.raises(UnavailableError):
        await driver.open(heard.on_event, heard.on_lost)
    host.start()
    later = Heard()
    await driver.open(later.on_event, later.on_lost)

    assert (await driver.observe())[spec.name] is PowerState.RUNNING
    assert len(heard.lost) == 1
    assert (await driver.define(spec)).adopted
    await driver.stop(spec.name, grace_s=10)
    await later.until_heard(spec.name, PowerChange.SHUT_DOWN)


async def test_what_died_while_nobody_looked_is_seen_afterwards(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(driver, host)
    qemu = host.qemu_of(spec.name)

    host.kill()
    os.kill(qemu, signal.SIGKILL)
    host.start()
    await driver.open(heard.on_event, heard.on_lost)

    async with asyncio.timeout(10):
        while (await driver.observe())[spec.name].active:
            await asyncio.sleep(0.05)


async def test_a_frozen_daemon_is_a_lost_link(
    driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libvirt_link, "_KEEPALIVE", (1, 1))
    await driver.open(heard.on_event, heard.on_lost)

    host.freeze()
    try:
        await heard.until(lambda: bool(heard.lost))
        with pytest.raises(UnavailableError):
            await driver.observe()
    finally:
        host.thaw()


async def test_a_link_opened_and_closed_leaks_no_file(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    def files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    await driver.open(heard.on_event, heard.on_lost)
    before = files()
    for _ in range(10):
        await driver.open(heard.on_event, heard.on_lost)

    assert files() <= before + 2
