"""Consoles of real QEMU guests, and those that say nothing."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import pytest

from tests.drivers.links import BOOT, Heard, powers
from tests.drivers.private_libvirtd import (
    PrivateLibvirtd,
    a_running_vm,
    missing,
    type_into,
    until_printed,
)
from trustfabric.domain.ports import ConsoleEntry, ConsoleItem
from trustfabric.domain.vms import (
    ConsoleKind,
    ConsoleSource,
    PowerChange,
    PowerState,
)
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_xml import VirtType

libvirt = pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]


async def test_a_guest_boots_and_prints(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    tail = await qemu_driver.console_tail(spec.name, 500)

    assert tail.lines[0] == "GUEST-UP"
    await heard.until_heard(spec.name, PowerChange.STARTED)
    assert (await powers(qemu_driver))[spec.name] is PowerState.RUNNING
    assert not qemu_driver.simulated
    assert not qemu_driver.volatile


async def test_lines_are_followed_as_they_come(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    seen: list[ConsoleItem] = []

    async with (
        asyncio.timeout(30),
        aclosing(qemu_driver.console_follow(spec.name)) as batches,
    ):
        while len(seen) < 2:
            seen += await anext(batches)

    assert all(isinstance(item, ConsoleEntry) for item in seen)
    assert all(item.text.startswith("tick ") for item in seen if is_line(item))
    assert [item.seq for item in seen] == list(range(seen[0].seq, seen[-1].seq + 1))


def is_line(item: ConsoleItem) -> TypeGuard[ConsoleEntry]:
    return isinstance(item, ConsoleEntry) and not item.breaks


async def until_told(
    batches: AsyncGenerator[Sequence[ConsoleItem], None], text: str
) -> list[ConsoleItem]:
    """Return what is told up to a line or break with this text."""
    told: list[ConsoleItem] = []
    async with asyncio.timeout(30):
        while not any(getattr(item, "text", None) == text for item in told):
            told += await anext(batches)
    return told


async def test_a_follower_outlives_the_guest_and_is_told_of_its_next_boot(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    lines = qemu_driver.console_follow(spec.name, after=0, beat_s=0.5)
    async with aclosing(lines) as batches:
        await qemu_driver.stop(spec.name, grace_s=10)
        await until_told(batches, "OFF")
        await qemu_driver.start(spec.name, BOOT)
        told = await until_told(batches, "GUEST-UP")

    break_, first = (item for item in told if isinstance(item, ConsoleEntry))
    assert (break_.text, break_.breaks) == ("a new boot", True)
    assert (first.text, first.seq) == ("GUEST-UP", break_.seq + 1)


async def test_a_guest_that_reboots_itself_breaks_its_console(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    async with aclosing(qemu_driver.console_follow(spec.name)) as batches:
        type_into(host, spec.name, b"r")
        told = await until_told(batches, "GUEST-UP")
        if not any(not is_line(item) for item in told):
            told += await until_told(batches, "the guest rebooted")

    breaks = [item for item in told if not is_line(item)]
    assert [getattr(item, "text", "") for item in breaks] == ["the guest rebooted"]


async def test_a_follower_ends_with_the_vm_itself(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    async with aclosing(qemu_driver.console_follow(spec.name)) as batches:
        await anext(batches)
        await qemu_driver.undefine(spec.name)
        async with asyncio.timeout(30):
            rest = [item async for batch in batches for item in batch]
    assert all(is_line(item) for item in rest)


async def test_lines_outlive_our_process(
    host: PrivateLibvirtd,
    events: EventLoop,
    executor: ThreadPoolExecutor,
    tmp_path: Path,
) -> None:
    def driver() -> LibvirtProvisioner:
        return LibvirtProvisioner(
            host.uri,
            events=events,
            executor=executor,
            runtime="tests",
            virt=VirtType.QEMU,
            console_dir=tmp_path,
        )

    first = driver()
    await first.open(lambda _: None, lambda _: None)
    spec = await a_running_vm(first, host)
    position = (await first.console_tail(spec.name, 1)).position
    await first.close()

    heir = driver()
    await heir.open(lambda _: None, lambda _: None)
    tail = await heir.console_tail(spec.name, 500)
    async with aclosing(heir.console_follow(spec.name, after=position)) as batches:
        told = await until_told(
            batches, "the console was opened again: lines between may be missing"
        )

    assert "GUEST-UP" in tail.lines
    assert told[0].seq == position + 1
    await heir.undefine(spec.name)
    assert list(tmp_path.iterdir()) == []
    await heir.close()


async def test_every_running_guest_is_read_before_anybody_asks(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    await qemu_driver.close()
    await qemu_driver.open(heard.on_event, heard.on_lost)

    await qemu_driver.observe()

    console = qemu_driver._consoles.get(spec.name)
    assert console is not None
    assert console.attached


async def test_while_the_link_is_down_the_kept_lines_are_shown(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    await qemu_driver.close()

    assert "GUEST-UP" in (await qemu_driver.console_tail(spec.name, 500)).lines


async def test_a_flood_stays_within_bounds(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    type_into(host, spec.name, b"f")

    await until_printed(qemu_driver, spec.name, "FLOOD-DONE")
    assert len((await qemu_driver.console_tail(spec.name, 99_999)).lines) <= 2001


async def test_any_bytes_come_as_text(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    type_into(host, spec.name, b"b")

    await until_printed(qemu_driver, spec.name, "bad:\\xff\\xfe\\x80 esc:red crlf")


async def test_a_console_that_another_holds_says_so(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    await qemu_driver.close()
    operator = libvirt.open(host.uri)
    stream = operator.newStream(libvirt.VIR_STREAM_NONBLOCK)
    operator.lookupByName(spec.name).openConsole(
        None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE
    )
    heir = LibvirtProvisioner(
        host.uri,
        events=qemu_driver._events,
        executor=qemu_driver._executor,
        runtime="tests",
        virt=VirtType.QEMU,
    )
    await heir.open(lambda _: None, lambda _: None)

    tail = await heir.console_tail(spec.name, 10)

    assert tail.why_empty == "another client holds its console"
    stream.abort()
    operator.close()
    await heir.close()


async def test_a_console_that_is_taken_by_force_is_read_again_once_it_is_free(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    console = qemu_driver._consoles.of(spec.name)
    operator = libvirt.open(host.uri)
    stream = operator.newStream(libvirt.VIR_STREAM_NONBLOCK)
    operator.lookupByName(spec.name).openConsole(
        None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE
    )
    await until(lambda: not console.attached)

    await powers(qemu_driver)  # the next look finds it held
    held = console.why_not
    stream.abort()
    operator.close()
    await powers(qemu_driver)
    type_into(host, spec.name, b"f")

    assert held == "another client holds its console"
    await until_printed(qemu_driver, spec.name, "FLOOD-DONE")
    assert console.why_not is None


async def until(met: Callable[[], bool], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not met():
            await asyncio.sleep(0.02)


async def test_a_console_that_goes_elsewhere_names_the_setting(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = replace(host.spec(), console=ConsoleSource(kind=ConsoleKind.NULL))
    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)

    tail = await qemu_driver.console_tail(spec.name, 10)

    assert tail.why_empty is not None
    assert "LIBVIRT_CONSOLE_SOURCE" in tail.why_empty
