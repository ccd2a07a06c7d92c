"""What a VM is: its specification, its power, and how events move that.

A `VmSpec` that exists is well-formed, so drivers never check one again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.seeds import Seed
from trustfabric.errors import (
    ConflictError,
    FabricError,
    InvalidError,
    UnsupportedError,
)

_INSTANCE_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?")
_VTPM_KINDS: Final = frozenset({"tpm", "composite-azure-vtpm"})


class IsolationTier(StrEnum):
    """How the VM is kept from its host."""

    STANDARD = "standard"
    SEV = "sev"
    SEV_ES = "sev-es"
    SEV_SNP = "sev-snp"
    TDX = "tdx"

    @property
    def confidential(self) -> bool:
        return self is not IsolationTier.STANDARD


class PowerState(StrEnum):
    """What is known of a domain's power."""

    DEFINED = "defined"
    """Defined and never started, as far as its hypervisor tells."""
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    CRASHED = "crashed"
    """The guest panicked, or its process died."""
    VANISHED = "vanished"
    """Its hypervisor doesn't know it any more."""
    UNKNOWN = "unknown"
    """Its hypervisor can't be asked: nothing is known, least of all that it stopped."""

    @property
    def active(self) -> bool:
        """Guest code may be running, or goes on when resumed."""
        return self in ACTIVE

    @property
    def off(self) -> bool:
        """No guest code runs: which is more than that nothing is known of it."""
        return not self.active and self is not PowerState.UNKNOWN


ACTIVE: Final = frozenset(
    {
        PowerState.STARTING,
        PowerState.RUNNING,
        PowerState.PAUSED,
        PowerState.STOPPING,
    }
)


class PowerChange(StrEnum):
    """Something that a hypervisor says happened to a domain."""

    STARTED = "started"
    """A new boot. RESUMED may come before it."""
    REBOOTED = "rebooted"
    """A new boot inside the same process; may come several times for one."""
    PAUSED = "paused"
    RESUMED = "resumed"
    SHUT_DOWN = "shut-down"
    """Ended in order; a terminated QEMU process looks the same."""
    DESTROYED = "destroyed"
    """Switched off from outside."""
    PANICKED = "panicked"
    FAILED = "failed"
    """The process that ran it died."""
    UNDEFINED = "undefined"
    """Its definition is gone; if it ran, it runs on until it stops."""

    @property
    def new_boot(self) -> bool:
        """Earlier measurements say nothing about what runs now."""
        return self in {PowerChange.STARTED, PowerChange.REBOOTED}

    @property
    def crash(self) -> bool:
        return self in {PowerChange.PANICKED, PowerChange.FAILED}


_STATE_AFTER: Final[Mapping[PowerChange, PowerState]] = {
    PowerChange.STARTED: PowerState.RUNNING,
    PowerChange.REBOOTED: PowerState.RUNNING,
    PowerChange.PAUSED: PowerState.PAUSED,
    PowerChange.RESUMED: PowerState.RUNNING,
    PowerChange.SHUT_DOWN: PowerState.STOPPED,
    PowerChange.DESTROYED: PowerState.STOPPED,
    PowerChange.PANICKED: PowerState.CRASHED,
    PowerChange.FAILED: PowerState.CRASHED,
    PowerChange.UNDEFINED: PowerState.VANISHED,
}


def power_after(state: PowerState, change: PowerChange) -> PowerState:
    """Return what is known after `change`; events are hints, a snapshot wins."""
    if change is PowerChange.UNDEFINED and state.active:
        return state
    if state is PowerState.CRASHED and change is PowerChange.DESTROYED:
        return state
    return _STATE_AFTER[change]


@dataclass(frozen=True, slots=True)
class PowerEvent:
    """A change of one of our domains, in the order its hypervisor told it."""

    name: str
    """The hypervisor's name of it (`runtime_vm_instances.instance_id`)."""
    generation: int
    """Which opening of the link it came over; it rises with each `open`."""
    change: PowerChange


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTemplate:
    """The one network interface of a VM."""

    type: str = "network"
    """`network`, `bridge` or `user`."""
    name: str | None = "default"
    """The libvirt network, for type `network`."""
    model: str = "virtio"
    mac: str | None = None
    bridge: str | None = None
    mtu: int | None = None
    filterref: str | None = None

    def __post_init__(self) -> None:
        if self.type not in {"network", "bridge", "user"}:
            raise InvalidError(f"network: unknown type {self.type!r}")
        if self.type == "bridge" and self.bridge is None:
            raise InvalidError("network: type bridge needs the bridge's name")
        if self.type == "network" and self.name is None:
            raise InvalidError("network: type network needs the network's name")


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeTemplate:
    """The one disk of a VM; `path` and `base_image` may hold placeholders."""

    path: str = "{data_dir}/volumes/{instance_id}.qcow2"
    driver: str = "qcow2"
    target_dev: str = "vda"
    target_bus: str = "virtio"
    cache: str | None = None
    io: str | None = None
    discard: str | None = None
    readonly: bool = False
    pool: str | None = None
    """A libvirt storage pool; the volume's name in it is the path's last part."""
    size_gib: int | None = None
    base_image: str | None = None

    @property
    def is_made(self) -> bool:
        """It is made with the VM and removed with it; otherwise it is just there."""
        return self.size_gib is not None or self.base_image is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """A PCI address."""

    domain: int = 0
    bus: int
    slot: int
    function: int = 0

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPolicy:
    """Which host devices go to the guest."""

    enabled: bool = False
    devices: tuple[GpuDevice, ...] = ()
    iommu: bool = True
    """Give the guest an IOMMU of its own (Intel model, caching mode)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpLaunch:
    """What a SEV-SNP guest is launched with; all of it is measured."""

    cpu_model: str = "EPYC-v4"
    firmware: str | None = None
    """Path on the hypervisor; None: it chooses, and no launch digest is known."""
    kernel: str | None = None
    """Booted instead of what is on the disk, and measured with it."""
    initrd: str | None = None
    cmdline: str | None = None


class ConsoleKind(StrEnum):
    """Where a guest's first serial port goes."""

    PTY = "pty"
    TCP = "tcp"
    UNIX = "unix"
    FILE = "file"
    NULL = "null"


_CONSOLE_PATHS: Final = {
    ConsoleKind.UNIX: "{data_dir}/consoles/{instance_id}.sock",
    ConsoleKind.FILE: "{data_dir}/consoles/{instance_id}.log",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSource:
    """The serial port and what its kind needs."""

    kind: ConsoleKind = ConsoleKind.PTY
    path: str | None = None
    """For `unix` and `file`: see `fill_console`."""
    host: str = "127.0.0.1"
    port: int = 0
    """For `tcp`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """One VM as it shall be defined."""

    name: str
    """`runtime_vm_instances.instance_id`; unique, see `check_instance_name`."""
    uuid: UUID
    instance_id: InstanceId
    server_id: ServerId
    owner: OwnerId
    tier: IsolationTier = IsolationTier.STANDARD
    memory_mib: int = 4096
    vcpu_count: int = 4
    image: str
    network: NetworkTemplate = field(default_factory=NetworkTemplate)
    volume: VolumeTemplate
    """With its placeholders filled in: see `fill_volume`."""
    gpu: GpuPolicy = field(default_factory=GpuPolicy)
    console: ConsoleSource = field(default_factory=ConsoleSource)
    """With its path filled in: see `fill_console`."""
    snp: SnpLaunch = field(default_factory=SnpLaunch)
    """For the tier `sev-snp` only."""
    agent_socket: str | None = None
    """Where the host's end of its agent's port is; None: it has no such port."""
    vsock: bool = False
    """Its agent is reached over vsock, under `vsock_cid`."""
    seed: Seed | None = None
    """What cloud-init in it is given."""
    attestation_kind: str = "unknown"
    tpm_beside: bool = False
    """A software TPM of ours vouches for it: it needs none inside."""
    capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_instance_name(self.name)
        check_image_name(self.image)
        if self.memory_mib < 1 or self.vcpu_count < 1:
            raise InvalidError("a VM needs memory and a processor")
        _check_path("volume", self.volume.path)
        if self.volume.base_image is not None:
            _check_path("base image", self.volume.base_image)
        if self.console.kind in _CONSOLE_PATHS:
            _check_path("console", self.console.path or "")

    @property
    def vtpm(self) -> bool:
        """Its evidence comes from a virtual TPM, so it gets one."""
        return self.attestation_kind in _VTPM_KINDS and not self.tpm_beside

    @property
    def made_volumes(self) -> tuple[VolumeTemplate, ...]:
        """What is made for it alone: a disk that doesn't name it others may share."""
        own = self.volume.is_made and self.name in PurePosixPath(self.volume.path).name
        disk = (self.volume,) if own else ()
        return disk if self.seed is None else (*disk, self.seed_volume)

    @property
    def seed_volume(self) -> VolumeTemplate:
        """The disc of its seed: beside its disk, made and removed with it."""
        folder = PurePosixPath(self.volume.path).parent
        path = str(folder / f"{self.name}-seed.iso")
        return VolumeTemplate(path=path, driver="raw", pool=self.volume.pool)


def check_instance_name(name: str) -> None:
    """Raise InvalidError unless `name` is safe as domain, file and URL name."""
    if _INSTANCE_NAME.fullmatch(name) is None:
        raise InvalidError(
            "an instance name is 1 to 63 of a-z, 0-9 and inner hyphens, "
            f"not {name[:80]!r}"
        )


def check_image_name(image: str) -> None:
    """Raise InvalidError unless `image` is a plain name, never a path."""
    if _IMAGE_NAME.fullmatch(image) is None or ".." in image:
        raise InvalidError(
            f"an image is named by a-z, 0-9 and inner '.', '_', '-', not {image[:80]!r}"
        )


def vm_uuid(runtime: str, name: str) -> UUID:
    """Return the UUID of an instance: the same in every process of `runtime`."""
    return uuid5(NAMESPACE_URL, f"trustfabric:{runtime}/{name}")


def vsock_cid(uuid: UUID) -> int:
    """Return the context id of a VM: above those that hypervisors count up from 3."""
    return 0x4000_0000 | uuid.int & 0x3FFF_FFFF


def fill_volume(
    template: VolumeTemplate,
    *,
    data_dir: str,
    server_id: ServerId,
    name: str,
    image: str,
) -> VolumeTemplate:
    """Put the instance into the template's `path` and `base_image`."""
    check_instance_name(name)
    check_image_name(image)
    words = {
        "{data_dir}": data_dir,
        "{server_id}": str(server_id),
        "{instance_id}": name,
        "{image}": image,
    }
    base = template.base_image
    return replace(
        template,
        path=_fill(template.path, words),
        base_image=None if base is None else _fill(base, words),
    )


def fill_console(source: ConsoleSource, *, data_dir: str, name: str) -> ConsoleSource:
    """Give a console that lives in the file system its path for an instance."""
    template = source.path or _CONSOLE_PATHS.get(source.kind)
    if template is None:
        return source
    check_instance_name(name)
    words = {"{data_dir}": data_dir, "{instance_id}": name}
    return replace(source, path=_fill(template, words))


def is_volatile(driver: str, endpoint: str) -> bool:
    """Tell whether the domains of a hypervisor end with the process that made them.

    So it is with libvirt's test driver inside that process.
    """
    return driver == "libvirt" and endpoint.startswith("test:///")


def is_structural(error: FabricError) -> bool:
    """Tell whether a driver's refusal waits for a person: retrying won't help."""
    return isinstance(error, InvalidError | ConflictError | UnsupportedError)


def _fill(text: str, words: Mapping[str, str]) -> str:
    return re.sub(r"\{[a-z_]+\}", lambda m: words.get(m[0], m[0]), text)


def _check_path(what: str, path: str) -> None:
    pure = PurePosixPath(path)
    bad = "\0" in path or "{" in path or ".." in pure.parts
    if bad or not pure.is_absolute():
        raise InvalidError(f"{what}: not an absolute plain path: {path!r}")
