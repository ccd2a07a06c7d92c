"""Consoles of real QEMU guests, and those that say nothing."""

import asyncio
from dataclasses import replace

import pytest

from tests.drivers.links import Heard
from tests.drivers.private_libvirtd import (
    PrivateLibvirtd,
    a_running_vm,
    missing,
    type_into,
    until_printed,
)
from trustfabric.domain.vms import (
    ConsoleKind,
    ConsoleSource,
    PowerChange,
    PowerState,
)
from trustfabric.drivers.libvirt import LibvirtProvisioner
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
    assert PowerChange.STARTED in heard.changes(spec.name)
    assert (await qemu_driver.observe())[spec.name] is PowerState.RUNNING
    assert not qemu_driver.simulated
    assert not qemu_driver.volatile


async def test_lines_are_followed_as_they_come(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    seen = []

    async with asyncio.timeout(15):
        async for line in qemu_driver.console_follow(spec.name):
            seen.append(line)
            if len(seen) == 2:
                break

    assert all(line.startswith("tick ") for line in seen)


async def test_a_follower_ends_with_the_guest(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = await a_running_vm(qemu_driver, host)

    async def follow() -> list[str]:
        return [line async for line in qemu_driver.console_follow(spec.name)]

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        following = group.create_task(follow())
        await asyncio.sleep(0.2)
        await qemu_driver.stop(spec.name, grace_s=10)

    assert following.result()[-1] == "OFF"


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


async def test_a_console_that_goes_elsewhere_names_the_setting(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = replace(host.spec(), console=ConsoleSource(kind=ConsoleKind.NULL))
    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name)

    tail = await qemu_driver.console_tail(spec.name, 10)

    assert tail.why_empty is not None
    assert "LIBVIRT_CONSOLE_SOURCE" in tail.why_empty
