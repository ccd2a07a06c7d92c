"""How a server's configuration becomes an instance, and an instance a VM's spec."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trustfabric.config import LibvirtSettings
from trustfabric.db.vms import Instance, NewInstance
from trustfabric.domain.accelerators import check_vouches_for_vm
from trustfabric.domain.ports import Provisioner
from trustfabric.domain.seeds import read_seed
from trustfabric.domain.servers import Server
from trustfabric.domain.vms import (
    ConsoleKind,
    ConsoleSource,
    GpuDevice,
    GpuPolicy,
    IsolationTier,
    NetworkTemplate,
    SnpLaunch,
    VmSpec,
    VolumeTemplate,
    fill_console,
    fill_volume,
    vm_uuid,
)


@dataclass(frozen=True, slots=True)
class Launches:
    """Builds both from the settings; `runtime_id` marks what is this runtime's."""

    settings: LibvirtSettings
    provisioner: Provisioner
    data_dir: str
    runtime_id: str
    epoch: int
    policy_id: str

    def new_instance(self, server: Server, name: str) -> NewInstance:
        """Return the insert of the server's next instance.

        InvalidError where its configuration names no evidence of a VM.
        """
        check_vouches_for_vm(server.attestation.get("kind"))
        vm = server.vm
        return NewInstance(
            server_id=server.id,
            name=name,
            isolation_tier=str(
                vm.get("isolation_tier") or self.settings.default_isolation_tier
            ),
            driver=self.provisioner.name,
            image=str(vm.get("image", "demo")),
            memory_mib=vm.get("memory_mib") or self.settings.default_memory_mib,
            vcpu_count=vm.get("vcpu_count") or self.settings.default_vcpu_count,
            config=server.config,
            attestation_policy=self.policy_id,
            endpoint=self.provisioner.endpoint,
            credentials=self.provisioner.credentials,
            network=_dump(self.settings.network),
            volume=_dump(self.settings.volume),
            gpu=_dump(self.settings.gpu),
            runtime_owner=self.runtime_id,
            owner_epoch=self.epoch,
        )

    def spec_of(self, instance: Instance) -> VmSpec:
        """Return what the hypervisor is asked for. InvalidError where it can't be."""
        settings = self.settings
        volume = VolumeTemplate(**_dump(settings.volume))
        return VmSpec(
            name=instance.name,
            uuid=vm_uuid(self.runtime_id, instance.name),
            instance_id=instance.id,
            server_id=instance.server_id,
            owner=instance.owner_id,
            tier=IsolationTier(instance.isolation_tier),
            memory_mib=instance.memory_mib,
            vcpu_count=instance.vcpu_count,
            image=instance.image,
            network=NetworkTemplate(**settings.network.model_dump(exclude_none=True)),
            volume=fill_volume(
                volume,
                data_dir=self.data_dir,
                server_id=instance.server_id,
                name=instance.name,
                image=instance.image,
            ),
            gpu=_gpu(settings),
            console=self._console(instance),
            seed=read_seed(instance.vm),
            snp=_snp(settings, self.data_dir),
            vsock=instance.attestation.get("source") == "vsock",
            agent_socket=(
                f"{self.data_dir}/agents/{instance.name}.sock"
                if instance.attestation.get("source") == "virtio"
                else None
            ),
            attestation_kind=str(instance.attestation.get("kind", "unknown")),
            tpm_beside=instance.attestation.get("source") == "swtpm",
        )

    def _console(self, instance: Instance) -> ConsoleSource:
        console = self.settings.console_source
        first, last = console.ports
        source = ConsoleSource(
            kind=ConsoleKind(console.kind),
            path=console.path,
            # By turns: that a port is taken still is told by the one who binds it.
            port=first + instance.id % (last - first + 1),
        )
        return fill_console(source, data_dir=self.data_dir, name=instance.name)


def _dump(template: Any) -> Mapping[str, Any]:
    dumped: Mapping[str, Any] = template.model_dump(mode="json")
    return dumped


def _snp(settings: LibvirtSettings, data_dir: str) -> SnpLaunch:
    chosen = settings.snp

    def filled(path: str | None) -> str | None:
        return path and path.replace("{data_dir}", data_dir)

    return SnpLaunch(
        cpu_model=chosen.cpu_model,
        firmware=filled(chosen.firmware),
        kernel=filled(chosen.kernel),
        initrd=filled(chosen.initrd),
        cmdline=chosen.cmdline,
    )


def _gpu(settings: LibvirtSettings) -> GpuPolicy:
    gpu = settings.gpu
    devices = tuple(
        GpuDevice(**device.model_dump(exclude={"attestation"}))
        for device in gpu.devices
    )
    return GpuPolicy(enabled=gpu.enabled, devices=devices, iommu=gpu.iommu)
