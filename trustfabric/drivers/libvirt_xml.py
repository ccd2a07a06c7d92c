"""Domain XML from a specification, and what a hypervisor made of it.

Built as elements, so every value is escaped; one function per element.
"""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final
from xml.etree.ElementTree import (
    Element,
    ParseError,
    SubElement,
    fromstring,
    register_namespace,
    tostring,
)

from trustfabric.domain.vms import (
    ConsoleKind,
    ConsoleSource,
    GpuDevice,
    IsolationTier,
    NetworkTemplate,
    VmSpec,
    VolumeTemplate,
)
from trustfabric.drivers.libvirt_launch import (
    attestation_devices,
    fixed_cpu,
    launch_security,
    snp_boot,
)

NAMESPACE: Final = "urn:trustfabric:domain:1"
PREFIX: Final = "trustfabric"
_INSTANCE: Final = f"{{{NAMESPACE}}}instance"

register_namespace(PREFIX, NAMESPACE)

_SEV_HEADROOM_MIB: Final = 256


class VirtType(StrEnum):
    """What runs the guest's instructions."""

    TEST = "test"
    """Nothing."""
    KVM = "kvm"
    QEMU = "qemu"
    """Emulated, slowly."""


@dataclass(frozen=True, slots=True)
class Tag:
    """Our mark in a domain's metadata."""

    runtime: str
    digest: str
    boot: str | None = field(default=None, compare=False)
    """What runs, as `marked` says it; never in a definition."""


def domain_xml(spec: VmSpec, *, virt: VirtType, runtime: str) -> Element:
    """Return the whole domain; `runtime` marks it as ours."""
    root = Element("domain", type=virt.value)
    SubElement(root, "name").text = spec.name
    SubElement(root, "uuid").text = str(spec.uuid)
    SubElement(root, "memory", unit="MiB").text = str(spec.memory_mib)
    SubElement(root, "vcpu").text = str(spec.vcpu_count)
    real = virt is not VirtType.TEST
    _memory(root, spec)
    root.append(_os(spec, real=real))
    root.append(_features(spec))
    if spec.tier is IsolationTier.SEV_SNP:
        root.append(fixed_cpu(spec.snp.cpu_model))
    SubElement(root, "on_poweroff").text = "destroy"
    SubElement(root, "on_reboot").text = "restart"
    SubElement(root, "on_crash").text = "destroy"
    root.append(_devices(spec, real=real))
    if spec.tier.confidential:
        root.append(launch_security(spec))
    root.insert(2, _metadata(spec, runtime, _digest(root)))
    return root


def render(root: Element) -> str:
    return tostring(root, encoding="unicode")


def parse(text: str) -> Element:
    """Read what a hypervisor answered."""
    return fromstring(text)  # noqa: S314 - from our own hypervisor, entities expanded


def tag_of(metadata: str | None) -> Tag | None:
    """Return our mark from a metadata element, None when it isn't ours."""
    try:
        element = parse(metadata or "")
    except ParseError:
        return None
    runtime, digest = element.get("runtime"), element.get("digest")
    if runtime is None or digest is None:
        return None
    return Tag(runtime, digest, element.get("boot"))


def marked(metadata: str, boot: str) -> str:
    """Return our mark with the boot that runs added to it."""
    element = parse(metadata)
    element.set("boot", boot)
    return render(element)


def own_volumes(root: Element) -> list[VolumeTemplate]:
    """Return the disk and the seed that were made for this domain alone."""
    name = root.findtext("name", "")
    mark = root.find(f"metadata/{_INSTANCE}")
    if not name or mark is None:
        return []
    kinds = {"disk": mark.get("disk"), "cdrom": mark.get("seed")}
    made = []
    for disk in root.findall("devices/disk"):
        source = disk.find("source")
        if source is None or kinds.get(disk.get("device", "disk")) != "made":
            continue
        path = source.get("file") or f"/{source.get('volume', '')}"
        # A template may have given several VMs the same path.
        if name in PurePosixPath(path).name:
            made.append(VolumeTemplate(path=path, pool=source.get("pool")))
    return made


def console_of(metadata: str | None) -> ConsoleSource:
    """Return where a domain's console goes, from our mark in it."""
    try:
        element = parse(metadata or "")
        return ConsoleSource(
            kind=ConsoleKind(element.get("console", ConsoleKind.PTY)),
            path=element.get("console-path"),
            port=int(element.get("console-port", "0")),
        )
    except (ParseError, ValueError):
        return ConsoleSource()


def tag_in(root: Element) -> Tag:
    """Return the mark of a domain that we built."""
    element = root.find(f"metadata/{_INSTANCE}")
    assert element is not None
    return Tag(element.attrib["runtime"], element.attrib["digest"])


def _digest(root: Element) -> str:
    return hashlib.sha256(render(root).encode()).hexdigest()


def _metadata(spec: VmSpec, runtime: str, digest: str) -> Element:
    metadata = Element("metadata")
    mark = SubElement(
        metadata,
        _INSTANCE,
        id=str(spec.instance_id),
        owner=str(spec.owner),
        server=str(spec.server_id),
        tier=spec.tier.value,
        image=spec.image,
        runtime=runtime,
        digest=digest,
    )
    if spec.volume.is_made:
        mark.set("disk", "made")
    if spec.seed is not None:
        mark.set("seed", "made")
    mark.set("console", spec.console.kind)
    if spec.console.path is not None:
        mark.set("console-path", spec.console.path)
    if spec.console.kind is ConsoleKind.TCP:
        mark.set("console-port", str(spec.console.port))
    return metadata


def _memory(root: Element, spec: VmSpec) -> None:
    match spec.tier:
        case IsolationTier.SEV | IsolationTier.SEV_ES:
            tune = SubElement(root, "memtune")
            limit = spec.memory_mib + _SEV_HEADROOM_MIB
            SubElement(tune, "hard_limit", unit="MiB").text = str(limit)
        case IsolationTier.SEV_SNP | IsolationTier.TDX:
            backing = SubElement(root, "memoryBacking")
            SubElement(backing, "source", type="memfd")
            SubElement(backing, "access", mode="shared")
        case IsolationTier.STANDARD:
            pass


def _os(spec: VmSpec, *, real: bool) -> Element:
    element = Element("os")
    snp = spec.snp if spec.tier is IsolationTier.SEV_SNP else None
    named = snp is not None and snp.firmware is not None
    if spec.tier.confidential and not named:
        element.set("firmware", "efi")
    machine = {"arch": "x86_64", "machine": "q35"} if real else {}
    SubElement(element, "type", machine).text = "hvm"
    if snp is not None:
        element.extend(snp_boot(snp))
    SubElement(element, "boot", dev="hd")
    return element


def _features(spec: VmSpec) -> Element:
    element = Element("features")
    SubElement(element, "acpi")
    SubElement(element, "apic")
    if _has_iommu(spec) or spec.tier is IsolationTier.TDX:
        SubElement(element, "ioapic", driver="qemu")
    return element


def _devices(spec: VmSpec, *, real: bool) -> Element:
    element = Element("devices")
    confidential = spec.tier.confidential
    element.append(_disk(spec.volume, confidential=confidential))
    if spec.seed is not None:
        scsi = SubElement(element, "controller", type="scsi", model="virtio-scsi")
        if confidential:
            SubElement(scsi, "driver", iommu="on")
        element.append(_seed(spec))
    element.append(_interface(spec.network, confidential=confidential))
    element.append(_serial(spec.console))
    element.extend(attestation_devices(spec))
    if spec.gpu.enabled:
        element.extend(_hostdev(device) for device in spec.gpu.devices)
    if _has_iommu(spec):
        iommu = SubElement(element, "iommu", model="intel")
        SubElement(iommu, "driver", intremap="on", caching_mode="on")
    if confidential:
        SubElement(element, "memballoon", model="none")
    if real:
        SubElement(element, "panic", model="isa")
    return element


def _has_iommu(spec: VmSpec) -> bool:
    return spec.gpu.enabled and spec.gpu.iommu


def _disk(volume: VolumeTemplate, *, confidential: bool) -> Element:
    pooled = volume.pool is not None
    disk = Element("disk", type="volume" if pooled else "file", device="disk")
    driver = SubElement(disk, "driver", name="qemu", type=volume.driver)
    options = {"cache": volume.cache, "io": volume.io, "discard": volume.discard}
    driver.attrib.update({k: v for k, v in options.items() if v is not None})
    if confidential and volume.target_bus == "virtio":
        driver.set("iommu", "on")
    if volume.pool is not None:
        name = PurePosixPath(volume.path).name
        SubElement(disk, "source", pool=volume.pool, volume=name)
    else:
        SubElement(disk, "source", file=volume.path)
        disk.append(_backing(volume.base_image))
    SubElement(disk, "target", dev=volume.target_dev, bus=volume.target_bus)
    if volume.readonly:
        SubElement(disk, "readonly")
    return disk


def _seed(spec: VmSpec) -> Element:
    """Return the disc that cloud-init finds, on the bus that cloud kernels know."""
    volume = spec.seed_volume
    disk = Element("disk", type="file", device="cdrom")
    SubElement(disk, "driver", name="qemu", type="raw")
    if volume.pool is not None:
        disk.set("type", "volume")
        name = PurePosixPath(volume.path).name
        SubElement(disk, "source", pool=volume.pool, volume=name)
    else:
        SubElement(disk, "source", file=volume.path)
        disk.append(_backing(None))
    taken = spec.volume.target_dev == "sda"
    SubElement(disk, "target", dev="sdb" if taken else "sda", bus="scsi")
    SubElement(disk, "readonly")
    return disk


def _backing(base_image: str | None) -> Element:
    """Name the whole chain, so that no image header can lengthen it."""
    backing = Element("backingStore")
    if base_image is not None:
        backing.set("type", "file")
        SubElement(backing, "format", type=image_format(base_image))
        SubElement(backing, "source", file=base_image)
        SubElement(backing, "backingStore")
    return backing


def image_format(path: str) -> str:
    """Tell an image's format by its name; probing its content can be abused."""
    return "raw" if PurePosixPath(path).suffix in {".raw", ".img"} else "qcow2"


def _interface(network: NetworkTemplate, *, confidential: bool) -> Element:
    interface = Element("interface", type=network.type)
    if network.mac is not None:
        SubElement(interface, "mac", address=network.mac)
    match network.type:
        case "network":
            SubElement(interface, "source", network=network.name or "")
        case "bridge":
            SubElement(interface, "source", bridge=network.bridge or "")
        case _:
            pass
    SubElement(interface, "model", type=network.model)
    if confidential and network.model == "virtio":
        SubElement(interface, "driver", iommu="on")
    if network.mtu is not None:
        SubElement(interface, "mtu", size=str(network.mtu))
    if network.filterref is not None:
        SubElement(interface, "filterref", filter=network.filterref)
    return interface


def _serial(console: ConsoleSource) -> Element:
    serial = Element("serial", type=console.kind.value)
    match console.kind:
        case ConsoleKind.TCP:
            where = {"host": console.host, "service": str(console.port)}
            SubElement(serial, "source", where, mode="bind")
            SubElement(serial, "protocol", type="raw")
        case ConsoleKind.UNIX:
            SubElement(serial, "source", mode="bind", path=console.path or "")
        case ConsoleKind.FILE:
            SubElement(serial, "source", path=console.path or "", append="on")
        case ConsoleKind.PTY | ConsoleKind.NULL:
            pass
    SubElement(serial, "target", port="0")
    return serial


def _hostdev(device: GpuDevice) -> Element:
    hostdev = Element("hostdev", mode="subsystem", type="pci", managed="yes")
    source = SubElement(hostdev, "source")
    SubElement(
        source,
        "address",
        domain=f"0x{device.domain:04x}",
        bus=f"0x{device.bus:02x}",
        slot=f"0x{device.slot:02x}",
        function=f"0x{device.function:x}",
    )
    return hostdev
