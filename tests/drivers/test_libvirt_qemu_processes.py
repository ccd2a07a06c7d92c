"""QEMU, libvirtd and us as processes: a zombie, a fork, a daemon that sleeps."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from tests.drivers.links import BOOT, Heard, powers
from tests.drivers.private_libvirtd import (
    PrivateLibvirtd,
    a_running_vm,
    missing,
    until_printed,
)
from trustfabric.domain.vms import PowerChange, PowerState, VmSpec
from trustfabric.drivers import libvirt as driver_of
from trustfabric.drivers import libvirt_link
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_xml import VirtType
from trustfabric.errors import AlreadyRunningError, UnavailableError

libvirt = pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]

CHILD_S = 20


# --- a fork -------------------------------------------------------------------------


async def forked(act: Callable[[], bool]) -> bool:
    """Tell whether `act` came to True in a child, in time; it ends as forks do."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_S)
        went_well = False
        with contextlib.suppress(BaseException):
            went_well = act()
        os._exit(0 if went_well else 1)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    return os.waitstatus_to_exitcode(status) == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_can_neither_use_nor_break_a_link(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    link = qemu_driver._link
    assert link is not None
    inherited = list(link._connections.values())

    def refused() -> bool:
        try:
            qemu_driver.observe().send(None)
        except UnavailableError as error:
            return "forked" in str(error)
        return False

    def fails_at_once() -> bool:
        for conn in inherited:
            try:
                conn.listAllDomains()
            except (libvirt.libvirtError, TypeError):
                continue
            return False
        return True

    def lets_go() -> bool:
        inherited.clear()
        qemu_driver._link = None
        gc.collect()
        return True

    for act in (refused, fails_at_once, lets_go):
        assert await forked(act), act.__name__

    assert (await powers(qemu_driver))[spec.name] is PowerState.RUNNING
    os.kill(host.qemu_of(spec.name), signal.SIGKILL)
    await heard.until_heard(spec.name, PowerChange.FAILED)
    assert heard.lost == []


# --- zombies ------------------------------------------------------------------------


@pytest_asyncio.fixture
async def unreaped(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> AsyncIterator[PrivateLibvirtd]:
    """A daemon whose guests nobody reaps, and which knows its QEMU already."""
    await qemu_driver.define(host.spec())
    known = host.root / "cache"
    host = PrivateLibvirtd.make(reaped=False)
    subprocess.run(["cp", "-a", known, host.root], check=True)
    with host.running():
        yield host


@pytest_asyncio.fixture
async def among_zombies(
    unreaped: PrivateLibvirtd,
    events: EventLoop,
    executor: ThreadPoolExecutor,
    heard: Heard,
) -> AsyncIterator[LibvirtProvisioner]:
    driver = LibvirtProvisioner(
        unreaped.uri,
        events=events,
        executor=executor,
        runtime="tests",
        virt=VirtType.QEMU,
    )
    await driver.open(heard.on_event, heard.on_lost)
    yield driver
    await driver.close()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]


async def until_zombie(pid: int) -> None:
    async with asyncio.timeout(20):
        while state_of(pid) != "Z":
            await asyncio.sleep(0.05)


async def test_a_zombie_is_not_off_until_it_is_reaped_and_holds_up_nobody(
    among_zombies: LibvirtProvisioner, unreaped: PrivateLibvirtd, heard: Heard
) -> None:
    other = await a_running_vm(among_zombies, unreaped)
    spec = await a_running_vm(among_zombies, unreaped)
    qemu = unreaped.qemu_of(spec.name)

    stopping = asyncio.ensure_future(among_zombies.stop(spec.name, grace_s=0))
    await until_zombie(qemu)
    await until_printed(among_zombies, other.name, "tick 3")
    third = await a_running_vm(among_zombies, unreaped)
    assert not stopping.done()
    unreaped.reap()
    async with asyncio.timeout(30):
        await stopping

    assert (await powers(among_zombies))[spec.name] is PowerState.STOPPED
    assert heard.lost == []
    seen = await powers(among_zombies)
    assert {seen[other.name], seen[third.name]} == {PowerState.RUNNING}
    await among_zombies.start(spec.name, BOOT)
    assert (await powers(among_zombies))[spec.name] is PowerState.RUNNING


async def test_one_that_died_is_seen_to_have_crashed_once_it_is_reaped(
    among_zombies: LibvirtProvisioner, unreaped: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(among_zombies, unreaped)
    qemu = unreaped.qemu_of(spec.name)

    os.kill(qemu, signal.SIGKILL)
    await until_zombie(qemu)
    unreaped.reap()

    await heard.until_heard(spec.name, PowerChange.FAILED)
    assert (await powers(among_zombies))[spec.name] is PowerState.CRASHED


# --- a daemon that sleeps -----------------------------------------------------------


def qemus_of(name: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"guest={name}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


async def stopped_in_mid_create(
    driver: LibvirtProvisioner, host: PrivateLibvirtd, after_s: float
) -> VmSpec:
    """Stop the daemon in the midst of a start, and return what it was to start.

    libvirt tells nobody how far it is: if the start was over, another is met sooner.
    """
    while True:
        spec = host.spec()
        await driver.define(spec)
        starting = asyncio.ensure_future(driver.start(spec.name, BOOT))
        await asyncio.sleep(after_s)
        host.freeze()
        try:
            await starting
        except UnavailableError:
            return spec
        host.thaw()
        await driver.undefine(spec.name)
        after_s /= 2


@pytest.mark.parametrize("after_s", [0.02, 0.2])
async def test_a_daemon_stopped_in_mid_create_is_waited_for_and_makes_no_twin(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
    after_s: float,
) -> None:
    monkeypatch.setattr(libvirt_link, "_KEEPALIVE", (1, 1))
    monkeypatch.setattr(driver_of, "_START_S", 1.0)
    await qemu_driver.open(heard.on_event, heard.on_lost)

    try:
        spec = await stopped_in_mid_create(qemu_driver, host, after_s)
        await heard.until(lambda: bool(heard.lost))
        with pytest.raises(UnavailableError):
            await qemu_driver.look(spec.name)  # unknown, not off
        assert not {PowerChange.SHUT_DOWN, PowerChange.DESTROYED} & set(
            heard.changes(spec.name)
        )
    finally:
        host.thaw()
    monkeypatch.undo()
    await qemu_driver.open(heard.on_event, heard.on_lost)

    assert (await qemu_driver.define(spec)).adopted
    with contextlib.suppress(AlreadyRunningError):
        await qemu_driver.start(spec.name, BOOT)

    await until_printed(qemu_driver, spec.name, "tick 1")
    assert (await powers(qemu_driver))[spec.name] is PowerState.RUNNING
    assert len(qemus_of(spec.name)) == 1
