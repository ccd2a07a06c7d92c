"""A process of its own with an embedded QEMU driver; `python -m` runs it.

It says a word a line. `boot` leaves its guest running; `adopt` finds and removes it.
"""

import asyncio
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.drivers.links import BOOT, a_spec, powers
from tests.drivers.private_libvirtd import until_printed
from trustfabric.domain.vms import NetworkTemplate, VmSpec, VolumeTemplate
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_xml import VirtType
from trustfabric.errors import UnavailableError

NAME = "embedded-1"


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def spec_in(root: Path) -> VmSpec:
    disk = root / "disk.img"
    if not disk.exists():
        shutil.copy(root / "boot.img", disk)
        os.truncate(disk, 1 << 20)
    return replace(
        a_spec(NAME),
        network=NetworkTemplate(type="user", name=None),
        volume=VolumeTemplate(path=str(disk), driver="raw"),
        attestation_kind="unknown",
    )


async def boot(driver: LibvirtProvisioner, root: Path) -> None:
    spec = spec_in(root)
    await driver.define(spec)
    await driver.start(spec.name, BOOT)
    await until_printed(driver, spec.name, "GUEST-UP")
    say("up")
    await asyncio.Event().wait()


async def adopt(driver: LibvirtProvisioner, root: Path) -> None:
    power = (await powers(driver)).get(NAME)
    say(str(power))
    tail = await driver.console_tail(NAME, 1)
    async with asyncio.timeout(15):
        while not tail.lines:
            await asyncio.sleep(0.05)
            tail = await driver.console_tail(NAME, 1)
    say("prints")
    assert (await driver.define(spec_in(root))).adopted
    await driver.undefine(NAME)
    say(str(len(await driver.observe())))


async def main(action: str, root: Path) -> None:
    events = EventLoop(asyncio.get_running_loop())
    events.start()
    with ThreadPoolExecutor(6) as threads:
        driver = LibvirtProvisioner(
            f"qemu:///embed?root={root}",
            events=events,
            executor=threads,
            runtime="tests",
            virt=VirtType.QEMU,
        )
        try:
            await driver.open(lambda _: None, lambda _: None)
        except UnavailableError as error:
            say(f"refused: {error}")
            return
        await {"boot": boot, "adopt": adopt}[action](driver, root)
        await driver.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
