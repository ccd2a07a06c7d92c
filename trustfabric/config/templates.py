"""The JSON templates that shape a VM's network, disk, launch and GPUs."""

import re
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from trustfabric.config.faults import nearest

_PLACEHOLDERS = frozenset({"{data_dir}", "{instance_id}", "{server_id}"})
_OF_VOLUMES = _PLACEHOLDERS | {"{image}"}


def _hexadecimal(value: object) -> object:
    """PCI numbers are written in hexadecimal, with or without `0x`."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a PCI number")  # noqa: TRY004 - pydantic's way
    if isinstance(value, str):
        try:
            return int(value, 16)
        except ValueError:
            raise ValueError(f'"{value}" is not a hexadecimal number') from None
    return value


def _matching(pattern: str, wanted: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueError(f"{value!r} is not {wanted}")
        return value

    return AfterValidator(check)


Word = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}", "a plain name of at most 63")
]
Mac = Annotated[
    str,
    _matching(
        r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}",
        "a unicast MAC address such as 52:54:00:12:34:56",
    ),
    AfterValidator(str.lower),
]


class Template(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class NetworkTemplate(Template):
    """One network interface: on a libvirt network, a host bridge, or user mode."""

    type: Literal["network", "bridge", "user"] = "network"
    name: Word | None = None
    """The libvirt network; `default` where the type is `network`."""
    model: Literal["virtio", "e1000", "e1000e", "rtl8139", "vmxnet3"] = "virtio"
    mac: Mac | None = None
    """Fixed for every VM made from this template, so for one VM at a time."""
    bridge: Word | None = None
    mtu: Annotated[int, Field(ge=576, le=65535)] | None = None
    filterref: Word | None = None

    @model_validator(mode="before")
    @classmethod
    def _type_follows_keys(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        filled = {"type": "bridge" if "bridge" in value else "network", **value}
        if filled["type"] == "network":
            filled = {"name": "default", **filled}
        return filled

    @model_validator(mode="after")
    def _keys_follow_type(self) -> Self:
        if self.type == "bridge" and self.bridge is None:
            raise ValueError('type "bridge" needs the key bridge')
        if self.type != "bridge" and self.bridge is not None:
            raise ValueError(f'key bridge does not go with type "{self.type}"')
        if self.type != "network" and self.name is not None:
            raise ValueError(f'key name does not go with type "{self.type}"')
        if self.type == "user" and (self.mtu is not None or self.filterref is not None):
            key = "filterref" if self.mtu is None else "mtu"
            raise ValueError(f'key {key} does not go with type "user"')
        return self


def _disk_path(value: str, known: AbstractSet[str] = _PLACEHOLDERS) -> str:
    unknown = set(re.findall(r"\{[^{}]*\}", value)) - known
    bare = re.sub(r"\{[^{}]*\}", "x", value)
    if unknown:
        raise ValueError(f"{min(unknown)} is not one of {', '.join(sorted(known))}")
    if re.search(r"[\x00-\x1f\x7f<>&\"'{}]", bare):
        raise ValueError("a path has no control characters, quotes, braces or markup")
    if not value.startswith(("/", "{data_dir}/")):
        raise ValueError("a path begins with / or {data_dir}/")
    if ".." in PurePosixPath(value).parts:
        raise ValueError('a path has no ".." in it')
    return value


DiskPath = Annotated[str, AfterValidator(_disk_path)]
VolumePath = Annotated[str, AfterValidator(partial(_disk_path, known=_OF_VOLUMES))]


class VolumeTemplate(Template):
    """The one disk of a VM."""

    path: VolumePath = "{data_dir}/volumes/{instance_id}.qcow2"
    driver: Literal["qcow2", "raw"] = "qcow2"
    target_dev: Annotated[
        str, _matching(r"(vd|sd|hd|xvd)[a-z]{1,2}", "a disk name such as vda")
    ] = "vda"
    target_bus: Literal["virtio", "scsi", "sata", "usb"] = "virtio"
    """The machine is a q35, which has no IDE."""
    cache: (
        Literal["none", "writeback", "writethrough", "directsync", "unsafe"] | None
    ) = None
    io: Literal["native", "threads", "io_uring"] | None = None
    discard: Literal["unmap", "ignore"] | None = None
    readonly: bool = False
    pool: Word | None = None
    """The libvirt storage pool that holds the volume."""
    size_gib: Annotated[int, Field(ge=1, le=65536)] | None = None
    base_image: VolumePath | None = None

    @model_validator(mode="after")
    def _native_io_is_uncached(self) -> Self:
        if self.io == "native" and self.cache not in ("none", "directsync"):
            raise ValueError('io "native" needs cache "none" or "directsync"')
        return self

    @model_validator(mode="after")
    def _sata_is_written_to(self) -> Self:
        if self.readonly and self.target_bus == "sata":
            raise ValueError('key readonly does not go with target_bus "sata"')
        return self

    @model_validator(mode="after")
    def _what_is_made_is_one_vms(self) -> Self:
        if self.size_gib is None and self.base_image is None:
            return self
        if self.base_image is not None and self.driver != "qcow2":
            raise ValueError(f'key base_image does not go with driver "{self.driver}"')
        where = PurePosixPath(self.path).name if self.pool else self.path
        if "{instance_id}" not in where:
            raise ValueError(f'"{where}" has no {{instance_id}}: VMs would share it')
        return self

    def path_for(self, data_dir: Path, instance_id: str, server_id: str) -> Path:
        """Return the disk of one instance."""
        return _filled(self.path, data_dir, instance_id, server_id)

    def base_image_for(
        self, data_dir: Path, instance_id: str, server_id: str
    ) -> Path | None:
        """Return what the disk of one instance is an overlay of, if of anything."""
        if self.base_image is None:
            return None
        return _filled(self.base_image, data_dir, instance_id, server_id)


def _filled(path: str, data_dir: Path, instance_id: str, server_id: str) -> Path:
    return Path(
        path.replace("{data_dir}", str(data_dir))
        .replace("{instance_id}", instance_id)
        .replace("{server_id}", server_id)
        .replace("{image}", "image")
    )


def _host_file(value: str) -> str:
    if unknown := set(re.findall(r"\{[^{}]*\}", value)) - {"{data_dir}"}:
        raise ValueError(f"{min(unknown)} is not {{data_dir}}")
    return _disk_path(value)


HostFile = Annotated[str, AfterValidator(_host_file)]


class SnpTemplate(Template):
    """What SEV-SNP guests are launched with; their launch digest follows from it."""

    cpu_model: Word = "EPYC-v4"
    firmware: HostFile | None = None
    kernel: HostFile | None = None
    initrd: HostFile | None = None
    cmdline: (
        Annotated[str, _matching(r"[\x20-\x7e]{0,2000}", "printable ASCII")] | None
    ) = None

    @model_validator(mode="after")
    def _boot_is_whole(self) -> Self:
        if self.kernel is None and (self.initrd or self.cmdline):
            raise ValueError("initrd and cmdline need a kernel")
        if self.kernel is not None and self.firmware is None:
            raise ValueError("a kernel needs a firmware that measures it")
        return self


class GpuDevice(Template):
    """One PCI function of the host."""

    domain: Annotated[int, BeforeValidator(_hexadecimal), Field(ge=0, le=0xFFFF)] = 0
    bus: Annotated[int, BeforeValidator(_hexadecimal), Field(ge=0, le=0xFF)]
    slot: Annotated[int, BeforeValidator(_hexadecimal), Field(ge=0, le=0x1F)]
    function: Annotated[int, BeforeValidator(_hexadecimal), Field(ge=0, le=7)] = 0
    attestation: Literal["nvidia-gpu"] | None = None
    """The kind of the evidence that it gives of itself; absent: it gives none."""

    @property
    def address(self) -> str:
        """The address as lspci prints it."""
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


class GpuPolicy(Template):
    """Which GPUs a VM is given."""

    enabled: bool = False
    devices: tuple[GpuDevice, ...] = ()
    iommu: bool = True

    @model_validator(mode="after")
    def _devices_are_named_once(self) -> Self:
        addresses = [device.address for device in self.devices]
        twice = {address for address in addresses if addresses.count(address) > 1}
        if twice:
            raise ValueError(f"device {min(twice)} is named twice")
        if self.enabled and not self.devices:
            raise ValueError("enabled without any devices")
        return self


class ConsoleTemplate(Template):
    """Where a guest's serial port goes: a word, and what belongs to it."""

    kind: Literal["pty", "tcp", "unix", "file"] = "pty"
    path: DiskPath | None = None
    """Of the socket or file; it names the instance."""
    ports: tuple[int, int] = (20_000, 29_999)
    """The first and the last that VMs are given by turns."""

    def path_for(self, data_dir: Path, instance_id: str, server_id: str) -> Path | None:
        """Return the console of one instance where it has a path of its own."""
        if self.path is None:
            return None
        return _filled(self.path, data_dir, instance_id, server_id)


_PORTS = (1024, 65535)
_CONSOLE_KINDS = ("pty", "tcp", "unix", "file")


def console_template(value: object) -> object:
    """Read `pty`, `tcp[:FIRST-LAST]`, `unix[:PATH]` or `file[:PATH]`."""
    if not isinstance(value, str):
        return value
    kind, colon, rest = value.partition(":")
    if kind not in _CONSOLE_KINDS:
        known = ", ".join(_CONSOLE_KINDS)
        hint = nearest(kind, _CONSOLE_KINDS)
        raise ValueError(f'"{kind}" is not one of {known}{hint}')
    if not colon:
        return {"kind": kind}
    match kind:
        case "pty":
            raise ValueError("pty has no attribute")
        case "tcp":
            return {"kind": kind, "ports": _ports(rest)}
        case _:
            if "{instance_id}" not in rest:
                raise ValueError("the path has no {instance_id}: VMs would share it")
            return {"kind": kind, "path": rest}


def _ports(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})-([0-9]{1,5})", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not _PORTS[0] <= first <= last <= _PORTS[1]:
        raise ValueError(f'"{text}" is not a range of ports such as 20000-29999')
    return first, last
