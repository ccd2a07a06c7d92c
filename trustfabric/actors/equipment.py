"""What every VM actor works with."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from trustfabric.actors.attestation import Attestation
from trustfabric.actors.hypervisor import Hypervisor
from trustfabric.actors.trust import TrustRegistry
from trustfabric.db.session import Database
from trustfabric.db.vms import Adopted, Instance
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.ports import Provisioner, Tpm
from trustfabric.domain.power import Hold
from trustfabric.domain.vms import VmSpec
from trustfabric.supervision import Address

ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class Equipment:
    """One for all VMs of a runtime."""

    database: Database
    provisioner: Provisioner
    hypervisor: Address[Hypervisor]
    trust: Address[TrustRegistry]
    attestation: Address[Attestation]
    tpms: Tpm
    spec_of: Callable[[Instance], VmSpec]
    quarantine_action: Hold
    epoch: int
    """Of this start of the runtime: it writes nothing that a newer one looks after."""
    new_boot_id: Callable[[], UUID]
    gone: Callable[[InstanceId], None]
    """Called when an instance is removed for good: its actor is to be let go."""

    def is_here(self, instance: Instance | Adopted) -> bool:
        """Tell whether it was made at the hypervisor that we are connected to."""
        ours = self.provisioner.name, self.provisioner.endpoint
        return (instance.driver, instance.endpoint) == ours

    def elsewhere(self, instance: Instance) -> str:
        """Say why nothing is done for an instance that isn't here."""
        return (
            f"it is at {instance.endpoint}, and this runtime is connected to"
            f" {self.provisioner.endpoint}: nothing is known of it, or done for it"
        )
