"""A libvirtd that dies, hangs and comes back while its guests run on."""

import asyncio
import contextlib
import os
import signal
import threading
import weakref
from pathlib import Path
from uuid import UUID

import pytest

from tests.drivers.links import BOOT, Heard, powers
from tests.drivers.private_libvirtd import (
    PrivateLibvirtd,
    a_running_vm,
    missing,
    until_printed,
)
from trustfabric.domain.power import Seen
from trustfabric.domain.vms import (
    PowerChange,
    PowerState,
)
from trustfabric.drivers import libvirt_domains, libvirt_link
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_connect import Credentials
from trustfabric.errors import (
    AlreadyRunningError,
    ConfigError,
    UnavailableError,
)

libvirt = pytest.importorskip("libvirt")

OTHER_BOOT = UUID(int=2)

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]


def files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def until_at_most(number: int) -> None:
    """Wait for libvirt's thread to close what was let go."""
    async with asyncio.timeout(20):
        while files() > number:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("again", ["another start", "a saved state"])
async def test_what_somebody_else_began_has_no_mark(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, again: str
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    marked = (await qemu_driver.observe())[spec.name]
    operator = libvirt.open(host.uri)
    domain = operator.lookupByName(spec.name)

    if again == "another start":
        domain.destroy()
    else:
        domain.managedSave()
    domain.create()

    assert marked == Seen(PowerState.RUNNING, BOOT)
    assert (await qemu_driver.observe())[spec.name] == Seen(PowerState.RUNNING)
    assert await qemu_driver.look(spec.name) == Seen(PowerState.RUNNING)
    await qemu_driver.adopt(spec.name, OTHER_BOOT)
    assert (await qemu_driver.observe())[spec.name].boot == OTHER_BOOT
    await qemu_driver.mark(spec.name, BOOT)
    assert await qemu_driver.look(spec.name) == Seen(PowerState.RUNNING, BOOT)
    assert str(BOOT) not in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


async def test_one_that_ends_while_it_is_started_may_be_started_again(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = host.spec()
    await qemu_driver.define(spec)
    operator = libvirt.open(host.uri)

    def end_it(*_: object) -> None:
        operator.lookupByName(spec.name).destroy()

    with monkeypatch.context() as before_its_first_instruction:
        before_its_first_instruction.setattr(qemu_driver._consoles, "boot", end_it)
        with pytest.raises(UnavailableError, match="ended while it was started"):
            await qemu_driver.start(spec.name, BOOT)

    await qemu_driver.start(spec.name, BOOT)
    assert await qemu_driver.look(spec.name) == Seen(PowerState.RUNNING, BOOT)


async def test_a_start_that_nobody_waits_for_ends_before_the_first_instruction(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = host.spec()
    await qemu_driver.define(spec)
    verify, compared = libvirt_domains._verify, threading.Event()

    def be_slow(*parts: object) -> None:
        assert compared.wait(30)
        verify(*parts)  # type: ignore[arg-type]

    with monkeypatch.context() as slowly:
        slowly.setattr(libvirt_domains, "_verify", be_slow)
        starting = asyncio.ensure_future(qemu_driver.start(spec.name, BOOT))
        await heard.until_heard(spec.name, PowerChange.PAUSED)
        starting.cancel()
        await asyncio.wait([starting])
        compared.set()
        async with asyncio.timeout(30):
            while await qemu_driver.look(spec.name) != Seen(PowerState.PAUSED, BOOT):
                await asyncio.sleep(0.02)

    await asyncio.sleep(0.5)  # in which it might have gone on
    assert await qemu_driver.look(spec.name) == Seen(PowerState.PAUSED, BOOT)
    await qemu_driver.start(spec.name, OTHER_BOOT)
    assert await qemu_driver.look(spec.name) == Seen(PowerState.RUNNING, OTHER_BOOT)


async def test_a_killed_daemon_is_a_lost_link_and_its_guests_are_found_again(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    host.kill()
    await heard.until(lambda: bool(heard.lost))
    with pytest.raises(UnavailableError):
        await qemu_driver.observe()
    with pytest.raises(UnavailableError):
        await qemu_driver.open(heard.on_event, heard.on_lost)
    host.start()
    later = Heard()
    await qemu_driver.open(later.on_event, later.on_lost)

    seen = (await qemu_driver.observe())[spec.name]
    assert seen == Seen(PowerState.RUNNING, BOOT)
    assert len(heard.lost) == 1
    assert (await qemu_driver.define(spec)).adopted
    await qemu_driver.stop(spec.name, grace_s=10)
    await later.until_heard(spec.name, PowerChange.SHUT_DOWN)


async def test_what_died_while_nobody_looked_is_seen_afterwards(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    qemu = host.qemu_of(spec.name)

    host.kill()
    os.kill(qemu, signal.SIGKILL)
    host.start()
    await qemu_driver.open(heard.on_event, heard.on_lost)

    async with asyncio.timeout(30):
        while (await powers(qemu_driver))[spec.name].active:
            await asyncio.sleep(0.05)


async def test_what_was_started_anew_under_an_old_number_has_no_mark(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    marked = (await qemu_driver.observe())[spec.name]
    qemu, number = host.qemu_of(spec.name), running_as(host, spec.name)

    # As its host's own restart looks: a daemon counts what runs from one again.
    host.kill()
    os.kill(qemu, signal.SIGKILL)
    host.start()
    await until_off(host, spec.name)
    host.kill()
    host.start()
    domain = libvirt.open(host.uri).lookupByName(spec.name)
    domain.create()
    while domain.ID() < number:
        domain.destroy()
        domain.create()
    await qemu_driver.open(heard.on_event, heard.on_lost)

    assert domain.ID() == number
    assert marked == Seen(PowerState.RUNNING, BOOT)
    assert (await qemu_driver.observe())[spec.name] == Seen(PowerState.RUNNING)


def running_as(host: PrivateLibvirtd, name: str) -> int:
    number: int = libvirt.open(host.uri).lookupByName(name).ID()
    return number


async def until_off(host: PrivateLibvirtd, name: str) -> None:
    operator = libvirt.open(host.uri)
    async with asyncio.timeout(30):
        while operator.lookupByName(name).isActive():
            await asyncio.sleep(0.05)


async def test_a_frozen_daemon_is_a_lost_link(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libvirt_link, "_KEEPALIVE", (1, 1))
    await qemu_driver.open(heard.on_event, heard.on_lost)

    host.freeze()
    try:
        await heard.until(lambda: bool(heard.lost))
        with pytest.raises(UnavailableError):
            await qemu_driver.observe()
    finally:
        host.thaw()


@pytest.mark.parametrize("dies", [True, False])
async def test_a_connection_is_freed_on_the_thread_that_may_be_telling_of_its_end(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard, *, dies: bool
) -> None:
    """Elsewhere libvirt's thread goes on with freed memory, and the process dies."""
    link = qemu_driver._link
    assert link is not None
    freed: list[str] = []
    number = len(link._connections)
    for conn in link._connections.values():
        weakref.finalize(conn, lambda: freed.append(threading.current_thread().name))
    del conn

    if dies:
        host.kill()
        await heard.until(lambda: bool(heard.lost))
        host.start()
    await qemu_driver.close()

    async with asyncio.timeout(30):
        while len(freed) < number:
            await asyncio.sleep(0.01)
    assert freed == ["libvirt-events"] * 6


async def test_a_link_opened_and_closed_leaks_no_file(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    await qemu_driver.open(heard.on_event, heard.on_lost)
    before = files()
    for _ in range(10):
        await qemu_driver.open(heard.on_event, heard.on_lost)

    await until_at_most(before + 2)


async def test_a_renewed_link_goes_on_where_the_old_one_was(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    before = qemu_driver._link

    await qemu_driver.renew()

    assert before is not None
    assert before.lost is not None
    assert qemu_driver._link is not before
    assert (await powers(qemu_driver))[spec.name] is PowerState.RUNNING
    console = qemu_driver._consoles.get(spec.name)
    assert console is not None
    assert console.attached
    os.kill(host.qemu_of(spec.name), signal.SIGKILL)
    await heard.until_heard(spec.name, PowerChange.FAILED)
    assert heard.lost == []


async def test_a_secret_that_does_not_work_leaves_the_old_link(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    def unreadable() -> None:
        raise ConfigError(["LIBVIRT_PASSWORD_FILE: gone"])

    monkeypatch.setattr(qemu_driver, "_credentials", Credentials("vm", unreadable))
    with pytest.raises(ConfigError):
        await qemu_driver.renew()

    assert (await powers(qemu_driver))[spec.name] is PowerState.RUNNING
    os.kill(host.qemu_of(spec.name), signal.SIGKILL)
    await heard.until_heard(spec.name, PowerChange.FAILED)


async def test_renewing_leaks_no_file(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    await a_running_vm(qemu_driver, host)

    for _ in range(2):
        await qemu_driver.renew()
        await qemu_driver.observe()
    before = files()
    for _ in range(10):
        await qemu_driver.renew()
        await qemu_driver.observe()

    await until_at_most(before + 2)


@pytest.mark.parametrize("after_s", [0.05, 0.3])
async def test_a_daemon_that_dies_in_the_middle_of_a_start_boots_nothing_twice(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    heard: Heard,
    after_s: float,
) -> None:
    spec = host.spec()
    await qemu_driver.define(spec)
    starting = asyncio.ensure_future(qemu_driver.start(spec.name, BOOT))
    await asyncio.sleep(after_s)  # into the call: libvirt tells nobody how far it is
    host.kill()
    with contextlib.suppress(UnavailableError):
        await starting
    host.start()
    await qemu_driver.open(heard.on_event, heard.on_lost)

    await qemu_driver.define(spec)
    with contextlib.suppress(AlreadyRunningError):
        await qemu_driver.start(spec.name, BOOT)

    await until_printed(qemu_driver, spec.name, "tick 1")
    assert (await powers(qemu_driver))[spec.name] is PowerState.RUNNING
    guests = [
        each
        for each in Path("/proc").glob("[0-9]*/cmdline")
        if f"guest={spec.name}".encode() in _cmdline(each)
    ]
    assert len(guests) == 1


def _cmdline(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
