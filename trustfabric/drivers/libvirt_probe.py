"""Whether a hypervisor can run guests with KVM, found by booting one.

That /dev/kvm is there, opens, and that libvirt offers KVM says little: on some hosts a
guest then runs a hundred times slower than emulated, or never gets to its first line.
So a guest of 512 bytes (its source: tests/data/guest/probe.S) has to print a line in
time. It is undefined, and gone with our connection whatever happens.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import uuid4
from xml.etree.ElementTree import Element, SubElement

import structlog

from trustfabric.domain.vms import VolumeTemplate
from trustfabric.drivers import libvirt_volumes as volumes
from trustfabric.drivers.libvirt_errors import is_link_loss
from trustfabric.drivers.libvirt_link import Link
from trustfabric.drivers.libvirt_xml import VirtType, parse, render

log = structlog.get_logger(__name__)

PRINTS_S: Final = 2.0
"""From its first instruction to its line; a tenth of that where KVM works."""
_LINE: Final = b"TRUSTFABRIC-PROBE"
_CODE: Final = bytes.fromhex(
    "fa31c08ed88ed0bc007cfcbafb03b003eebe357cac84c0741288c4bafd03eca82074fb88e0baf803"
    "eeebe9ba0406b80020eff4ebfd54525553544641425249432d50524f42450d0a"
)
GUEST: Final = _CODE.ljust(510, b"\0") + b"\x55\xaa"
_DISK_BYTES: Final = 1 << 20
"""The firmware boots from no smaller disk."""
_OFFERED: Final = "guest[os_type='hvm']/arch[@name='x86_64']/domain"
_PAUSED_WITH_US: Final = 1 | 2
"""Started paused, and destroyed with the connection."""
_NONBLOCK: Final = 1
_CHUNK: Final = 4096
_NOTHING_YET: Final = -2
_POLL_S: Final = 0.02
_PROBE_S: Final = 40.0
"""The first capabilities take seconds where nobody reaps quickly."""


class Prober:
    """Asks one hypervisor; its guest's disk lies beside `scratch`, if there is one."""

    def __init__(
        self,
        error: type[Exception],
        scratch: VolumeTemplate | None,
        clock: Callable[[], float],
    ) -> None:
        self._error = error
        self._scratch = scratch
        self._clock = clock

    def best_virt(self, conn: Any) -> tuple[VirtType, str]:
        """Return what runs guests here, and why; blocks up to ten seconds."""
        offered = parse(conn.getCapabilities()).findall(_OFFERED)
        if VirtType.KVM not in {domain.get("type") for domain in offered}:
            return VirtType.QEMU, "the hypervisor offers no KVM"
        if self._scratch is None:
            return VirtType.QEMU, "there is nowhere to keep a guest to try KVM with"
        try:
            printed_s = self._boot(conn, VirtType.KVM, self._scratch)
        except self._error as error:
            if is_link_loss(error):
                raise
            return VirtType.QEMU, f"a guest with KVM did not boot: {error}"
        if printed_s is None:
            why = f"a guest with KVM printed nothing within {PRINTS_S:g} s"
            return VirtType.QEMU, why
        return VirtType.KVM, f"a guest with KVM booted within {printed_s:.2f} s"

    def _boot(self, conn: Any, virt: VirtType, scratch: VolumeTemplate) -> float | None:
        """Boot it; return how long it took to print its line, None where it didn't."""
        name = f"trustfabric-probe-{uuid4().hex[:12]}"
        path = str(PurePosixPath(scratch.path).with_name(f"{name}.img"))
        disk = VolumeTemplate(path=path, driver="raw", pool=scratch.pool)
        image = GUEST.ljust(_DISK_BYTES, b"\0")
        made = volumes.upload(self._error, conn, disk, image)
        try:
            xml = render(_domain(name, virt, made.path()))
            domain = conn.createXML(xml, _PAUSED_WITH_US)
            try:
                return self._first_line(conn, domain)
            finally:
                with suppress(self._error):  # it switches itself off
                    domain.destroy()
        finally:
            volumes.remove(self._error, conn, disk)

    def _first_line(self, conn: Any, domain: Any) -> float | None:
        stream = conn.newStream(_NONBLOCK)
        domain.openConsole(None, stream, 0)
        try:
            domain.resume()
            began, said = self._clock(), b""
            while (took := self._clock() - began) < PRINTS_S:
                data = self._received(stream)
                if data == b"":
                    return None
                said += data or b""
                if _LINE in said:
                    return took
                time.sleep(0 if data else _POLL_S)  # noqa: TID251 - its own thread
            return None
        finally:
            with suppress(self._error):
                stream.abort()

    def _received(self, stream: Any) -> bytes | None:
        """Return what came, None where nothing did yet, empty at the end."""
        try:
            data = stream.recv(_CHUNK)
        except self._error:
            return b""
        return None if data == _NOTHING_YET else bytes(data)


class Virt:
    """What runs guests on one hypervisor: given, or found once, when first needed."""

    def __init__(self, given: VirtType | None, prober: Prober) -> None:
        self._found = given
        self._prober = prober
        self._finding = asyncio.Lock()

    @property
    def chosen(self) -> VirtType:
        return self._found or VirtType.QEMU

    async def of(self, link: Link) -> VirtType:
        """Return it; UnavailableError where the link fails meanwhile."""
        async with self._finding:
            if self._found is not None:
                return self._found
            found, why = await link.call(
                "trying KVM", self._prober.best_virt, within_s=_PROBE_S
            )
            self._found = found
        log.info("hypervisor.virt", virt=found, why=why)
        return found


def _domain(name: str, virt: VirtType, disk: str) -> Element:
    root = Element("domain", type=virt.value)
    SubElement(root, "name").text = name
    SubElement(root, "memory", unit="MiB").text = "16"
    SubElement(root, "vcpu").text = "1"
    system = SubElement(root, "os")
    SubElement(system, "type", arch="x86_64", machine="q35").text = "hvm"
    SubElement(system, "boot", dev="hd")
    SubElement(SubElement(root, "features"), "acpi")
    devices = SubElement(root, "devices")
    drive = SubElement(devices, "disk", type="file", device="disk")
    SubElement(drive, "driver", name="qemu", type="raw")
    SubElement(drive, "source", file=disk)
    SubElement(drive, "target", dev="sda", bus="sata")
    serial = SubElement(devices, "serial", type="pty")
    SubElement(serial, "target", port="0")
    SubElement(devices, "memballoon", model="none")
    return root
