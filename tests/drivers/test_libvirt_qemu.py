"""The libvirt driver on real QEMU guests, through a libvirtd of our own."""

import asyncio
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.drivers.links import BOOT, Heard, powers
from tests.drivers.private_libvirtd import (
    PrivateLibvirtd,
    a_running_vm,
    missing,
    type_into,
    until_printed,
)
from trustfabric.domain.vms import (
    IsolationTier,
    PowerChange,
    PowerState,
    VolumeTemplate,
    is_structural,
)
from trustfabric.drivers.libvirt import LibvirtProvisioner
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


async def test_a_guest_is_asked_to_stop_and_its_last_words_are_kept(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    await qemu_driver.stop(spec.name, grace_s=10)

    assert (await powers(qemu_driver))[spec.name] is PowerState.STOPPED
    await heard.until_heard(spec.name, PowerChange.SHUT_DOWN)
    assert (await qemu_driver.console_tail(spec.name, 1)).lines == ("OFF",)


async def test_a_killed_qemu_is_a_crash(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    os.kill(host.qemu_of(spec.name), signal.SIGKILL)

    await heard.until_heard(spec.name, PowerChange.FAILED)
    assert (await powers(qemu_driver))[spec.name] is PowerState.CRASHED


async def test_a_panic_is_a_crash(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    type_into(host, spec.name, b"p")

    await heard.until_heard(spec.name, PowerChange.PANICKED)
    async with asyncio.timeout(30):
        while (await powers(qemu_driver))[spec.name] is not PowerState.CRASHED:
            await asyncio.sleep(0.05)


async def test_a_guest_that_resets_itself_has_booted_anew(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    type_into(host, spec.name, b"r")

    await heard.until_heard(spec.name, PowerChange.REBOOTED)
    assert (await powers(qemu_driver))[spec.name] is PowerState.RUNNING


async def test_a_crashed_vm_starts_again(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    os.kill(host.qemu_of(spec.name), signal.SIGKILL)
    await heard.until_heard(spec.name, PowerChange.FAILED)

    await qemu_driver.start(spec.name, BOOT)

    assert (await powers(qemu_driver))[spec.name] is PowerState.RUNNING


async def test_a_hung_guest_is_cut_off_and_its_neighbour_does_not_notice(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    hung, neighbour = (
        await a_running_vm(qemu_driver, host),
        await a_running_vm(qemu_driver, host),
    )
    os.kill(host.qemu_of(hung.name), signal.SIGSTOP)

    async with asyncio.TaskGroup() as group:
        stopping = group.create_task(qemu_driver.stop(hung.name, grace_s=1))
        for _ in range(20):
            await qemu_driver.pause(neighbour.name)
            await qemu_driver.resume(neighbour.name)
        assert not stopping.done()  # libvirt waits ten seconds before it kills

    states = await powers(qemu_driver)
    assert states == {
        hung.name: PowerState.STOPPED,
        neighbour.name: PowerState.RUNNING,
    }


async def test_guests_that_hang_while_paused_leave_the_link_to_the_others(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as there are slots: quarantine pauses them, and tries again."""
    defaults = LibvirtProvisioner._act.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "within_s", 1.0)
    neighbour = await a_running_vm(qemu_driver, host)
    hung = [(await a_running_vm(qemu_driver, host)).name for _ in range(4)]
    for name in hung:
        os.kill(host.qemu_of(name), signal.SIGSTOP)

    for why in ("no answer within", "an earlier call"):
        pauses = (qemu_driver.pause(name) for name in hung)
        for refused in await asyncio.gather(*pauses, return_exceptions=True):
            assert isinstance(refused, UnavailableError)
            assert why in str(refused)
        async with asyncio.timeout(5):
            await qemu_driver.pause(neighbour.name)
            assert (await powers(qemu_driver))[neighbour.name] is PowerState.PAUSED
            await qemu_driver.resume(neighbour.name)
    await asyncio.gather(*(qemu_driver.stop(name, grace_s=1) for name in hung))

    assert heard.lost == []
    assert await powers(qemu_driver) == {
        neighbour.name: PowerState.RUNNING,
        **dict.fromkeys(hung, PowerState.STOPPED),
    }


# --- isolation is had or refused -----------------------------------------------


@pytest.mark.parametrize("tier", [t for t in IsolationTier if t.confidential])
async def test_a_tier_that_this_host_lacks_is_refused(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, tier: IsolationTier
) -> None:
    with pytest.raises((UnsupportedError, InvalidError)) as refused:
        await qemu_driver.define(replace(host.spec(), tier=tier))

    assert is_structural(refused.value)
    assert await powers(qemu_driver) == {}


async def test_a_missing_disk_starts_nothing(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = host.spec()
    await qemu_driver.define(spec)
    Path(spec.volume.path).unlink()

    with pytest.raises(UnavailableError):
        await qemu_driver.start(spec.name, BOOT)

    assert not (await powers(qemu_driver))[spec.name].active


# --- disks ----------------------------------------------------------------------


async def test_a_disk_with_a_size_is_made_once(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = host.spec()
    disk = host.root / "volumes" / f"{spec.name}.img"
    volume = VolumeTemplate(path=str(disk), driver="raw", size_gib=1)

    await qemu_driver.define(replace(spec, volume=volume))
    disk.write_bytes(b"kept")
    await qemu_driver.define(replace(spec, volume=volume, memory_mib=128))
    other = host.root / "volumes" / "other.img"
    again = replace(host.spec(), volume=replace(volume, path=str(other)))
    await qemu_driver.define(again)

    assert disk.read_bytes() == b"kept"
    assert other.stat().st_size == 1 << 30


async def test_a_disk_in_a_pool_that_nobody_has_is_refused(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    volume = VolumeTemplate(path="/x.img", driver="raw", size_gib=1, pool="nobodys")

    with pytest.raises(FabricError):
        await qemu_driver.define(replace(host.spec(), volume=volume))

    assert await powers(qemu_driver) == {}


@pytest.mark.parametrize("driver_name", ["raw", "qcow2"])
async def test_a_base_image_that_cannot_be_one_is_refused(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, driver_name: str
) -> None:
    volume = VolumeTemplate(
        path=str(host.root / "volumes" / "based.qcow2"),
        driver=driver_name,
        base_image="/nowhere/base.qcow2",
    )

    with pytest.raises(InvalidError):
        await qemu_driver.define(replace(host.spec(), volume=volume))


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-utils")
async def test_a_guest_boots_from_an_overlay_of_its_base_image(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
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

    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)

    await until_printed(qemu_driver, spec.name, "GUEST-UP")
    assert base.read_bytes() == before
    await qemu_driver.undefine(spec.name)
    assert not Path(volume.path).exists()
    assert base.read_bytes() == before


async def test_a_disk_that_was_made_goes_with_its_vm_even_after_our_restart(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = host.spec()
    disk = host.root / "volumes" / f"{spec.name}.img"
    volume = VolumeTemplate(path=str(disk), driver="raw", size_gib=1)
    await qemu_driver.define(replace(spec, volume=volume))
    qemu_driver._specs.clear()
    host.kill()
    host.start()
    await qemu_driver.open(lambda _: None, lambda _: None)

    await qemu_driver.undefine(spec.name)
    await qemu_driver.undefine(spec.name)

    assert not disk.exists()
    assert await powers(qemu_driver) == {}


async def test_a_disk_that_was_there_or_is_shared_stays(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = host.spec()
    shared = host.root / "volumes" / "shared.img"
    volume = VolumeTemplate(path=str(shared), driver="raw", size_gib=1)
    sharing = replace(host.spec(), volume=volume)
    await qemu_driver.define(spec)
    await qemu_driver.define(sharing)

    await qemu_driver.undefine(spec.name)
    await qemu_driver.undefine(sharing.name)

    assert Path(spec.volume.path).exists()
    assert shared.exists()
