"""A server: the tenant's workload that a VM instance runs for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from trustfabric.domain.ids import OwnerId, ServerId
from trustfabric.domain.vms import PowerState


class ServerStatus(StrEnum):
    """What its owner sees of it."""

    CREATING = "creating"
    PROVISIONING = "provisioning"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BLOCKED = "blocked"
    """The last launch failed structurally: a person is needed."""
    ERROR = "error"
    PENDING_ATTESTATION = "pending-attestation"
    PENDING_REMEDIATION = "pending-remediation"

    @property
    def waits_for_gate(self) -> bool:
        """A launch was refused and resumes when the gate opens."""
        return self in {
            ServerStatus.PENDING_ATTESTATION,
            ServerStatus.PENDING_REMEDIATION,
        }


class LaunchVerb(StrEnum):
    """What a launch does; one that was refused waits to do it."""

    START = "start"
    REDEPLOY = "redeploy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One row of `servers`."""

    id: ServerId
    owner_id: OwnerId
    name: str
    server_type: str | None
    status: ServerStatus
    config: Mapping[str, Any] = field(repr=False)
    """`{vm: {image, memory_mib, …}, attestation: {kind, …}}` as it was posted."""
    released_at: datetime | None
    created_at: datetime
    updated_at: datetime
    waits_for: LaunchVerb = LaunchVerb.START
    """What happens once the gate opens, where its status waits for that."""

    @property
    def vm(self) -> Mapping[str, Any]:
        return self.config.get("vm") or {}

    @property
    def attestation(self) -> Mapping[str, Any]:
        return self.config.get("attestation") or {}


_STATUS_OF: Mapping[PowerState, ServerStatus] = {
    PowerState.STARTING: ServerStatus.STARTING,
    PowerState.RUNNING: ServerStatus.RUNNING,
    PowerState.STOPPING: ServerStatus.STOPPING,
    PowerState.STOPPED: ServerStatus.STOPPED,
    PowerState.DEFINED: ServerStatus.STOPPED,
    PowerState.CRASHED: ServerStatus.ERROR,
    PowerState.VANISHED: ServerStatus.ERROR,
}


def status_for(power: PowerState) -> ServerStatus | None:
    """Return the status that a VM's power gives its server; None: no news."""
    return _STATUS_OF.get(power)
