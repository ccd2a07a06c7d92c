"""What driver tests share: a specification, and an ear for what a link tells."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.ports import Provisioner
from trustfabric.domain.vms import (
    IsolationTier,
    PowerChange,
    PowerEvent,
    PowerState,
    VmSpec,
    VolumeTemplate,
    vm_uuid,
)
from trustfabric.drivers.libvirt import LibvirtProvisioner

RUNTIME = "tests"
BOOT = UUID(int=1)

MakeDriver = Callable[..., LibvirtProvisioner]


def a_spec(
    name: str | None = None, tier: IsolationTier = IsolationTier.STANDARD
) -> VmSpec:
    name = name or f"vm-{uuid4().hex[:12]}"
    return VmSpec(
        name=name,
        uuid=vm_uuid(RUNTIME, name),
        instance_id=InstanceId(7),
        server_id=ServerId(3),
        owner=OwnerId(1),
        tier=tier,
        memory_mib=64,
        vcpu_count=1,
        image="tiny",
        volume=VolumeTemplate(path=f"/var/lib/trustfabric/volumes/{name}.qcow2"),
        attestation_kind="tpm",
    )


async def powers(driver: Provisioner) -> dict[str, PowerState]:
    """Return the power of every domain of its runtime's."""
    return {name: seen.power for name, seen in (await driver.observe()).items()}


@dataclass
class Heard:
    """What a link told, in order."""

    events: list[PowerEvent] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def on_event(self, event: PowerEvent) -> None:
        self.events.append(event)
        self._more.set()

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self._more.set()

    def changes(self, name: str) -> list[PowerChange]:
        return [event.change for event in self.events if event.name == name]

    async def until(self, met: Callable[[], bool], within_s: float = 30.0) -> None:
        async with asyncio.timeout(within_s):
            while not met():
                self._more.clear()
                await self._more.wait()

    async def until_heard(self, name: str, change: PowerChange) -> None:
        await self.until(lambda: change in self.changes(name))
