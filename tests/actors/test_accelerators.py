"""Evidence of accelerators: what it does to their posture, and to nothing else."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.domain.evidence.nvidia_devices import ANCHORS, BLOCKS, Device
from tests.fix_fabric import ASK_S, until
from tests.fix_machines import CALLER, SETTINGS, Machines, some_machines
from trustfabric.actors.attestation import Attest, InFlight
from trustfabric.actors.servers import StartServer
from trustfabric.db.session import Database
from trustfabric.domain.attestation.policy import AppraisalPolicy, Kinds, NvidiaPolicy
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.errors import InvalidError

pytestmark = pytest.mark.libvirt

MEASURED = {index: (value.hex(),) for index, value in BLOCKS.items()}
POLICY = AppraisalPolicy(
    id="gpus", version=1, kinds=Kinds(nvidia_gpu=NvidiaPolicy(measurements=MEASURED))
)
BELIEVING = replace(SETTINGS, policy=POLICY, anchors=ANCHORS)


@dataclass
class Forthcoming:
    """A guest whose GPU answers whatever it is asked, as soon as it is."""

    device: Device

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        return self.device.evidence(extra_data)


@pytest_asyncio.fixture
async def with_gpus(
    database: Database, database_url: str, tpm_dir: Path
) -> AsyncIterator[Machines]:
    async with some_machines(
        database, database_url, tpm_dir, settings=BELIEVING
    ) as machines:
        yield machines


async def idle(machines: Machines) -> None:
    async def look() -> bool | None:
        busy = await machines.attestation.ask(InFlight(), within_s=ASK_S)
        return not busy or None

    await until(look, "the appraisals to be done")


# --- a VM is not its GPU ------------------------------------------------------------


async def test_a_vm_that_was_to_be_proved_by_its_gpu_is_not_launched(
    with_gpus: Machines,
) -> None:
    server = await with_gpus.server(attestation={"kind": "nvidia-gpu"})

    with pytest.raises(InvalidError, match="nvidia-gpu is evidence of an accelerator"):
        await with_gpus.ask(StartServer(server.id, CALLER))


async def test_evidence_of_a_gpu_never_makes_a_vm_trusted(with_gpus: Machines) -> None:
    with_gpus.sources["virtio"] = Forthcoming(Device())
    await with_gpus.kill("fabric/attestation")
    instance = await with_gpus.started(attestation={"kind": "tpm", "source": "virtio"})
    await idle(with_gpus)
    async with with_gpus.database.writing() as conn:
        await conn.execute(
            """
            UPDATE runtime_vm_instances
               SET config = jsonb_set(config, '{attestation,kind}', '"nvidia-gpu"')
             WHERE id = %s
            """,
            [instance.id],
        )

    with_gpus.attestation.tell(Attest(instance.id, "manual"))
    await idle(with_gpus)

    event = (await with_gpus.history(instance.id))[-1]
    assert event.status is not AttestationStatus.TRUSTED
    assert event.lifecycle is not Lifecycle.RESTORED
    assert event.reason == "attestation:unsupported"
