"""What is remembered between challenges: a TPM's clock, and how long one was silent."""

import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.actors.test_attestation import MEASURED, attested, idle
from tests.fix_machines import Machines
from trustfabric.actors.attestation import Attest
from trustfabric.db.attestations import list_due
from trustfabric.db.memory import get_memory
from trustfabric.db.vms import Instance
from trustfabric.domain.attestation.launch import Launch, LaunchDigest
from trustfabric.domain.attestation.memory import Memory, Patience
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.ports import Defined
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.domain.vms import VmSpec

pytestmark = pytest.mark.libvirt


async def remembered(machines: Machines, instance: Instance) -> Memory:
    async with machines.database.reading() as conn:
        return await get_memory(conn, instance.id)


async def resets(machines: Machines, instance: Instance) -> int:
    clock = (await remembered(machines, instance)).clock
    assert clock is not None
    return clock.reset_count


async def asked_after(machines: Machines, instance: Instance) -> datetime:
    async with machines.database.reading() as conn:
        cursor = await conn.execute(
            "SELECT ask_after FROM attestation_silences"
            " WHERE runtime_vm_instance_id = %s",
            (instance.id,),
        )
        row = await cursor.fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


async def due(machines: Machines) -> list[InstanceId]:
    async with machines.database.reading() as conn:
        found = await list_due(
            conn,
            machines.name,
            machines.clock.now(),
            ahead=timedelta(seconds=150),
            quiet=timedelta(0),
            limit=10,
        )
    return [instance_id for instance_id, _ in found]


async def test_a_reboot_that_only_its_tpm_told_of_is_a_new_boot(
    machines: Machines,
) -> None:
    instance = await machines.restored()
    before, boot = await resets(machines, instance), instance.boot_id
    version = (await machines.posture(instance.id)).version

    await machines.tpms.start(instance.name)
    machines.attestation.tell(Attest(instance.id, "scheduled"))
    await machines.until_posture(
        instance.id, lifecycle=Lifecycle.RESTORED, version=version + 2
    )

    booted, trusted = (await machines.history(instance.id))[-2:]
    assert (booted.reason, booted.lifecycle) == ("TPM was reset", Lifecycle.SUSPECT)
    assert trusted.metadata["purpose"] == "boot"
    assert (await machines.read(instance.id)).boot_id not in (None, boot)
    assert await resets(machines, instance) == before + 1


async def test_a_boot_that_we_caused_is_counted_once(machines: Machines) -> None:
    instance = await machines.restored()
    version = (await machines.posture(instance.id)).version

    await machines.tpms.start(instance.name)
    machines.reboot(instance)
    await machines.until_posture(
        instance.id, lifecycle=Lifecycle.RESTORED, version=version + 2
    )
    await idle(machines)

    reasons = [event.reason for event in await machines.history(instance.id)]
    assert "TPM was reset" not in reasons


async def test_a_tpm_that_was_put_back_is_untrusted(
    machines: Machines, tpm_dir: Path, tmp_path: Path
) -> None:
    instance = await machines.restored()
    state = tpm_dir / instance.name / "tpm2-00.permall"
    shutil.copy(state, tmp_path / "kept")
    for _ in range(2):
        await machines.tpms.start(instance.name)
        await attested(machines, instance)
        await idle(machines)
    newest = await resets(machines, instance)

    await machines.tpms.stop(instance.name)
    shutil.copy(tmp_path / "kept", state)
    await machines.tpms.start(instance.name)
    event = await attested(machines, instance)

    assert event.status is AttestationStatus.UNTRUSTED
    assert event.lifecycle is Lifecycle.QUARANTINED
    assert event.reason == "attestation:policy-violation"
    assert await resets(machines, instance) == newest


async def test_a_rebooted_tpm_that_shows_tampering_is_untrusted_at_once(
    machines: Machines,
) -> None:
    instance = await machines.restored()

    await machines.tpms.start(instance.name)
    await machines.tpms.extend(instance.name, 8, MEASURED)
    event = await attested(machines, instance)

    assert event.lifecycle is Lifecycle.QUARANTINED


async def test_a_silent_one_is_asked_ever_more_seldom_until_a_person_asks(
    machines: Machines,
) -> None:
    instance = await machines.started()
    await idle(machines)
    await attested(machines, instance, "scheduled")
    pauses = []
    for _ in range(6):
        now = machines.clock.now()
        await attested(machines, instance, "scheduled")
        pauses.append(await asked_after(machines, instance) - now)
    silent = await remembered(machines, instance)

    await attested(machines, instance, "manual")
    now = machines.clock.now()
    asked_again = await asked_after(machines, instance) - now

    assert silent.misses == 8
    assert timedelta(seconds=90) <= pauses[0] <= timedelta(seconds=120)
    assert timedelta(seconds=180) <= pauses[1] <= timedelta(seconds=240)
    assert max(pauses) <= timedelta(seconds=300)
    assert min(pauses[-2:]) >= timedelta(seconds=225)
    assert asked_again <= timedelta(seconds=30)
    assert (await remembered(machines, instance)).misses == 1


async def test_nobody_asks_it_before_its_pause_is_over(machines: Machines) -> None:
    instance = await machines.started()
    await idle(machines)
    assert await due(machines) == []

    machines.clock.advance(31.0)

    assert await due(machines) == [instance.id]


async def test_an_answer_ends_the_silence(machines: Machines) -> None:
    instance = await machines.restored()
    await machines.tpms.stop(instance.name)
    await attested(machines, instance, "scheduled")
    assert (await remembered(machines, instance)).misses == 1

    await machines.tpms.start(instance.name)
    await attested(machines, instance, "scheduled")

    assert (await remembered(machines, instance)).misses == 0


async def test_silence_never_clears_a_failure(machines: Machines) -> None:
    instance = await machines.restored()
    await machines.tpms.extend(instance.name, 8, MEASURED)
    failed = await attested(machines, instance)

    await machines.tpms.stop(instance.name)
    silent = await attested(machines, instance)

    assert failed.lifecycle is silent.lifecycle is Lifecycle.QUARANTINED
    assert silent.status is not AttestationStatus.TRUSTED
    assert silent.remediation_attempts == failed.remediation_attempts


async def test_what_a_launch_must_show_is_kept_with_the_instance(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hypervisor with SEV-SNP would tell it; libvirt's test driver has none."""
    digest = LaunchDigest(measurement=b"\x4d" * 48, boots_kernel=True, guest_policy=3)
    define = machines.provisioner.define

    async def with_launch(spec: VmSpec) -> Defined:
        defined: Defined = await define(spec)
        return replace(defined, launch=Launch(digest=digest))

    monkeypatch.setattr(machines.provisioner, "define", with_launch)
    instance = await machines.started()

    assert (await remembered(machines, instance)).launch == digest


NOON = datetime.fromisoformat("2026-11-22T12:00:00Z")
PATIENCE = Patience(
    first=timedelta(seconds=30),
    longest=timedelta(seconds=300),
    margin=timedelta(seconds=60),
)


@pytest.mark.parametrize(
    ("misses", "purpose", "deadline_s", "jitter", "wait_s"),
    [
        (1, "scheduled", None, 0.0, 30),
        (2, "scheduled", None, 0.0, 60),
        (4, "scheduled", None, 0.0, 240),
        (5, "scheduled", None, 0.0, 300),
        (10**6, "scheduled", None, 0.0, 300),
        (5, "scheduled", None, 1.0, 225),
        (9, "post-run", None, 0.0, 30),
        (5, "scheduled", 200, 0.0, 140),
        (5, "scheduled", 50, 0.0, 0),
        (5, "scheduled", -1, 0.0, 300),
        (1, "scheduled", 1000, 0.0, 30),
    ],
)
def test_a_pause_doubles_within_bounds_and_never_beyond_freshness(
    misses: int, purpose: str, deadline_s: int | None, jitter: float, wait_s: int
) -> None:
    deadline = None if deadline_s is None else NOON + timedelta(seconds=deadline_s)

    until = PATIENCE.ask_after(misses, purpose, NOON, deadline, jitter)

    assert until - NOON == timedelta(seconds=wait_s)
