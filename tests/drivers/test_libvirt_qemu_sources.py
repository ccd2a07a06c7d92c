"""Consoles of real guests that are a file, a UNIX socket or a TCP port."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from tests.drivers.links import BOOT, Heard, powers
from tests.drivers.private_libvirtd import (
    PrivateLibvirtd,
    missing,
    until_printed,
)
from trustfabric.domain.vms import (
    ConsoleKind,
    ConsoleSource,
    PowerState,
    VmSpec,
    fill_console,
)
from trustfabric.drivers.console_lines import LineRing
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_xml import VirtType
from trustfabric.scenarios.runtime import free_port

libvirt = pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.timeout(60),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]
KINDS = [ConsoleKind.FILE, ConsoleKind.UNIX, ConsoleKind.TCP]


def spec_with(host: PrivateLibvirtd, kind: ConsoleKind) -> VmSpec:
    spec = host.spec()
    source = ConsoleSource(kind=kind, port=free_port())
    source = fill_console(source, data_dir=str(host.root), name=spec.name)
    return replace(spec, console=source)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_line_is_read_from_the_first_on(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, kind: ConsoleKind
) -> None:
    spec = spec_with(host, kind)
    await qemu_driver.define(spec)

    await qemu_driver.start(spec.name, BOOT)

    await until_printed(qemu_driver, spec.name, "tick 1")
    tail = await qemu_driver.console_tail(spec.name, 500)
    assert tail.lines[:2] == ("GUEST-UP", "tick 1")
    assert tail.why_empty is None


@pytest.mark.parametrize("kind", KINDS)
async def test_who_takes_over_goes_on_reading(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    heard: Heard,
    kind: ConsoleKind,
) -> None:
    spec = spec_with(host, kind)
    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)
    await until_printed(qemu_driver, spec.name, "tick 1")

    await qemu_driver.close()
    await qemu_driver.open(heard.on_event, heard.on_lost)
    await qemu_driver.observe()

    newest = (await qemu_driver.console_tail(spec.name, 1)).lines[-1]
    number = int(newest.removeprefix("tick "))
    await until_printed(qemu_driver, spec.name, f"tick {number + 3}")


@pytest.mark.parametrize("configured", [ConsoleKind.FILE, ConsoleKind.PTY])
async def test_a_start_tells_once_how_many_run_with_another_source(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    events: EventLoop,
    executor: ThreadPoolExecutor,
    configured: ConsoleKind,
) -> None:
    specs = [host.spec(), host.spec()]
    for spec in specs:
        await qemu_driver.define(spec)
        await qemu_driver.start(spec.name, BOOT)
    late = LibvirtProvisioner(
        host.uri,
        events=events,
        executor=executor,
        runtime="tests",
        virt=VirtType.QEMU,
        console=configured,
    )
    heard = Heard()

    with capture_logs() as said:
        await qemu_driver.close()
        await late.open(heard.on_event, heard.on_lost)
        await late.observe()
        await late.observe()
    await late.close()

    told = [each for each in said if "console-source" in each["event"]]
    if configured is ConsoleKind.PTY:
        assert told == []
        return
    assert len(told) == 1
    assert told[0]["log_level"] == "warning"
    assert told[0]["configured"] == configured
    assert told[0]["running_with_another"] == len(specs)
    assert told[0]["such_as"] in {spec.name for spec in specs}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_next_boot_is_read_too(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, kind: ConsoleKind
) -> None:
    spec = spec_with(host, kind)
    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)
    await until_printed(qemu_driver, spec.name, "GUEST-UP")
    os.kill(host.qemu_of(spec.name), signal.SIGKILL)
    async with asyncio.timeout(30):
        while (await powers(qemu_driver))[spec.name].active:
            await asyncio.sleep(0.05)

    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)

    async def boots() -> int:
        lines = (await qemu_driver.console_tail(spec.name, 500)).lines
        return lines.count("GUEST-UP")

    async with asyncio.timeout(30):
        while await boots() < 2:
            await asyncio.sleep(0.05)


async def test_a_file_that_is_emptied_or_replaced_is_read_on(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = spec_with(host, ConsoleKind.FILE)
    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)
    await until_printed(qemu_driver, spec.name, "tick 1")
    path = host.root / "consoles" / f"{spec.name}.log"

    with path.open("ab") as file:
        file.write(b"filler\n" * 1000 + b"filled\n")
    await until_printed(qemu_driver, spec.name, "filled")
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(b"after it was emptied\n")
    await until_printed(qemu_driver, spec.name, "after it was emptied")
    path.rename(path.with_suffix(".0"))
    path.write_bytes(b"in the new file\n")
    await until_printed(qemu_driver, spec.name, "in the new file")


async def test_a_file_that_is_not_there_says_so(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    spec = spec_with(host, ConsoleKind.FILE)
    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)
    await qemu_driver.close()
    (host.root / "consoles" / f"{spec.name}.log").unlink()
    console = qemu_driver._consoles.get(spec.name)
    assert console is not None
    console.ring = LineRing(10)
    await qemu_driver.open(heard.on_event, heard.on_lost)
    await qemu_driver.observe()

    why = (await qemu_driver.console_tail(spec.name, 10)).why_empty

    assert why is not None
    assert "is not there" in why
    assert "virtlogd" in why


async def test_a_file_whose_virtlogd_died_says_so(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, heard: Heard
) -> None:
    """The guest ticks on; nothing of it arrives any more, and no error comes."""
    spec = spec_with(host, ConsoleKind.FILE)
    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)
    await until_printed(qemu_driver, spec.name, "tick 1")
    host.kill_virtlogd()
    await qemu_driver.close()
    path = host.root / "consoles" / f"{spec.name}.log"
    os.truncate(path, 0)
    console = qemu_driver._consoles.get(spec.name)
    assert console is not None
    console.ring = LineRing(10)
    await qemu_driver.open(heard.on_event, heard.on_lost)
    seen = await powers(qemu_driver)

    why = (await qemu_driver.console_tail(spec.name, 10)).why_empty

    assert seen[spec.name] is PowerState.RUNNING
    assert path.stat().st_size == 0
    assert why is not None
    assert "nothing was printed" in why
    assert "virtlogd may not run" in why


async def test_a_source_that_was_changed_says_when_it_takes_effect(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = spec_with(host, ConsoleKind.NULL)
    await qemu_driver.define(spec)
    await qemu_driver.start(spec.name, BOOT)
    qemu_driver._specs[spec.name] = replace(spec, console=ConsoleSource())

    why = (await qemu_driver.console_tail(spec.name, 10)).why_empty

    assert why is not None
    assert "LIBVIRT_CONSOLE_SOURCE is pty, but the VM was defined with null" in why
