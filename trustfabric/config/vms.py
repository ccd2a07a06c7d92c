"""Settings of where and how VMs are made."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from trustfabric.config.faults import nearest
from trustfabric.config.secrets import SecretFileError, read_secret
from trustfabric.config.serving import http_url
from trustfabric.config.templates import (
    ConsoleTemplate,
    GpuPolicy,
    NetworkTemplate,
    SnpTemplate,
    VolumeTemplate,
    console_template,
)
from trustfabric.config.variable import Count, Seconds, Section, Variable
from trustfabric.errors import ConfigError

IsolationTier = Literal["standard", "sev", "sev-es", "sev-snp", "tdx"]

_HYPERVISORS = ("test", "qemu")
_CONSOLE_ROOTS = ("/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt")
_TRANSPORTS = ("unix", "ssh", "libssh", "libssh2", "tcp", "tls", "ext")


class ProvisionerSettings(Section):
    """Who makes VMs, and what quarantine does to one that runs."""

    driver: Annotated[
        Literal["libvirt", "http"],
        Variable(
            "VM_PROVISIONER_DRIVER",
            "`libvirt`, or `http` for a hypervisor behind an HTTP API",
        ),
    ] = "libvirt"
    quarantine_action: Annotated[
        Literal["none", "pause", "stop"],
        Variable(
            "QUARANTINE_ACTION",
            "What quarantine does to the running VM: `none`, `pause` or `stop`",
        ),
    ] = "none"


class HypervisorSettings(Section):
    """The hypervisor behind an HTTP API."""

    endpoint: Annotated[
        str | None,
        AfterValidator(lambda value: value and http_url(value)),
        Variable(
            "VM_HYPERVISOR_ENDPOINT",
            "Address of the hypervisor's API",
            unset="needed by the `http` driver",
        ),
    ] = None
    token: Annotated[
        SecretStr | None,
        Variable(
            "VM_HYPERVISOR_TOKEN", "Bearer token for it", unset="none", secret=True
        ),
    ] = None
    timeout_s: Annotated[
        Seconds,
        Variable("VM_HYPERVISOR_TIMEOUT_SECONDS", "Longest wait for one answer of it"),
    ] = 10.0


def _libvirt_uri(value: str) -> str:
    """Refuse here what the driver or libvirt would refuse, or guess at, later."""
    if re.search(r"[^\x21-\x7e]", value):
        raise ValueError("is not a libvirt URI such as qemu:///system: it has a blank")
    parts = urlsplit(value)
    scheme = value.partition("://")[0]
    hypervisor, plus, transport = scheme.partition("+")
    if scheme != parts.scheme or hypervisor not in _HYPERVISORS:
        hint = nearest(hypervisor, _HYPERVISORS)
        raise ValueError(f"is not a libvirt URI such as qemu:///system{hint}")
    if plus and transport not in _TRANSPORTS:
        hint = nearest(transport, _TRANSPORTS)
        raise ValueError(f'"{transport}" is not a transport of libvirt{hint}')
    if not parts.path:
        raise ValueError("is not a libvirt URI such as qemu:///system: it has no path")
    if parts.password is not None:
        raise ValueError("holds a password; use LIBVIRT_PASSWORD_FILE")
    _ = parts.port  # a ValueError, where it is no number
    return value


def _paths(value: object) -> object:
    return value.split(":") if isinstance(value, str) else value


def _absolute(value: tuple[str, ...]) -> tuple[str, ...]:
    for path in value:
        if not re.match(r"(/|\{data_dir\}/)", path) or ".." in Path(path).parts:
            raise ValueError(f'"{path}" is not an absolute path without ".."')
    return value


def _readable(value: Path | None) -> Path | None:
    try:
        if value is not None:
            read_secret(value)
    except SecretFileError as error:
        raise ValueError(str(error)) from None
    return value


class LibvirtSettings(Section):
    """The connection to libvirt, and the VMs made there."""

    uri: Annotated[
        str,
        AfterValidator(_libvirt_uri),
        Variable("LIBVIRT_CONNECTION_URI", "Where libvirt is"),
    ] = "test:///default"
    virt_type: Annotated[
        Literal["auto", "kvm", "qemu"],
        Variable(
            "LIBVIRT_VIRT_TYPE",
            "What runs guests: `kvm`, `qemu` (emulated, slowly), or `auto` for `kvm` "
            "where the hypervisor offers it",
        ),
    ] = "auto"
    username: Annotated[
        str | None,
        Variable("LIBVIRT_USERNAME", "Name given where libvirt asks", unset="none"),
    ] = None
    password: Annotated[
        SecretStr | None,
        Variable(
            "LIBVIRT_PASSWORD",
            "Password given where libvirt asks",
            unset="none",
            secret=True,
        ),
    ] = None
    password_file: Annotated[
        Path | None,
        AfterValidator(_readable),
        Variable(
            "LIBVIRT_PASSWORD_FILE",
            "File with the password, readable by its owner only; wins over "
            "`LIBVIRT_PASSWORD`, read again on SIGHUP and on every connection",
            unset="none",
        ),
    ] = None
    default_isolation_tier: Annotated[
        IsolationTier,
        Variable(
            "LIBVIRT_DEFAULT_ISOLATION_TIER",
            "Tier where neither server nor policy says one: `standard`, `sev`, "
            "`sev-es`, `sev-snp` or `tdx`",
        ),
    ] = "standard"
    default_memory_mib: Annotated[
        int,
        Field(ge=16, le=16 * 1024 * 1024),
        Variable("LIBVIRT_DEFAULT_MEMORY_MIB", "Memory of a VM, in MiB"),
    ] = 4096
    default_vcpu_count: Annotated[
        int,
        Field(ge=1, le=1024),
        Variable("LIBVIRT_DEFAULT_VCPU_COUNT", "Virtual CPUs of a VM"),
    ] = 4
    log_tail: Annotated[
        Count, Variable("LIBVIRT_LOG_TAIL", "Console lines of one answer")
    ] = 500
    network: Annotated[
        NetworkTemplate,
        Variable(
            "LIBVIRT_NETWORK_TEMPLATE",
            "The network interface, as JSON",
            unset='`{"name":"default","model":"virtio"}`',
            template=NetworkTemplate,
        ),
    ] = Field(default_factory=NetworkTemplate)
    volume: Annotated[
        VolumeTemplate,
        Variable(
            "LIBVIRT_VOLUME_TEMPLATE",
            "The disk, as JSON",
            unset='`{"path":"{data_dir}/volumes/{instance_id}.qcow2",'
            '"driver":"qcow2","target_dev":"vda","target_bus":"virtio"}`',
            template=VolumeTemplate,
        ),
    ] = Field(default_factory=VolumeTemplate)
    volume_roots: Annotated[
        tuple[str, ...],
        BeforeValidator(_paths),
        AfterValidator(_absolute),
        Variable(
            "LIBVIRT_VOLUME_ROOTS",
            "Folders that disks and base images may lie in, with colons between",
        ),
    ] = ("{data_dir}/volumes", "{data_dir}/images", "/var/lib/libvirt/images")
    snp: Annotated[
        SnpTemplate,
        Variable(
            "LIBVIRT_SNP_TEMPLATE",
            "What SEV-SNP guests are launched with, as JSON: with a firmware named "
            "here their launch digest is derived and their evidence must show it",
            unset='`{"cpu_model":"EPYC-v4"}`; the hypervisor chooses the firmware',
            template=SnpTemplate,
        ),
    ] = Field(default_factory=SnpTemplate)
    gpu: Annotated[
        GpuPolicy,
        Variable(
            "LIBVIRT_GPU_POLICY",
            "The GPUs passed through, as JSON",
            unset='`{"enabled":false,"devices":[]}`',
            template=GpuPolicy,
        ),
    ] = Field(default_factory=GpuPolicy)
    console_source: Annotated[
        ConsoleTemplate,
        BeforeValidator(console_template),
        Variable(
            "LIBVIRT_CONSOLE_SOURCE",
            "What the serial console is: `pty`, `tcp[:FIRST-LAST]` (ports of "
            "loopback), `unix[:PATH]` or `file[:PATH]`",
            unset="`pty`",
        ),
    ] = Field(default_factory=ConsoleTemplate)

    def read_password(self) -> SecretStr | None:
        """Return the password as it is now: the file's, else the variable's.

        Raise ConfigError where there is a file and it can't be used.
        """
        if self.password_file is None:
            return self.password
        try:
            return read_secret(self.password_file)
        except SecretFileError as error:
            raise ConfigError([f"LIBVIRT_PASSWORD_FILE: {error}"]) from error

    def volume_faults(self, data_dir: Path) -> list[str]:
        """Name each path of the volume template outside the allowed folders."""
        roots = [
            Path(root.replace("{data_dir}", str(data_dir)))
            for root in self.volume_roots
        ]
        disk = self.volume.path_for(data_dir, "x", "x")
        base = self.volume.base_image_for(data_dir, "x", "x")
        named = {"path": disk} | ({"base_image": base} if base else {})
        allowed = ", ".join(str(root) for root in roots)
        return [
            f"LIBVIRT_VOLUME_TEMPLATE: $.{key}: {path} is not in {allowed}"
            " (LIBVIRT_VOLUME_ROOTS)"
            for key, path in named.items()
            if not any(path.is_relative_to(root) for root in roots)
        ]

    def console_faults(self, data_dir: Path) -> list[str]:
        """Name the console's path where it is outside the allowed folders."""
        path = self.console_source.path_for(data_dir, "x", "x")
        roots = [data_dir / "consoles", *map(Path, _CONSOLE_ROOTS)]
        if path is None or any(path.is_relative_to(root) for root in roots):
            return []
        allowed = ", ".join(str(root) for root in roots)
        return [f"LIBVIRT_CONSOLE_SOURCE: {path} is not in {allowed}"]
