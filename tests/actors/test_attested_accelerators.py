"""Accelerators that give evidence of themselves: what each verdict makes of them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.actors.test_accelerators import BELIEVING, idle
from tests.domain.evidence.nvidia_devices import BLOCKS, Device
from tests.fix_fabric import count
from tests.fix_machines import Machines, some_machines
from trustfabric.actors.attestation import Attest
from trustfabric.actors.placement import explain
from trustfabric.actors.policies import stored_of
from trustfabric.config import LibvirtSettings
from trustfabric.db import verdicts
from trustfabric.db.accelerators import list_accelerators, worsen_accelerators
from trustfabric.db.session import Database
from trustfabric.db.vms import Instance
from trustfabric.domain.accelerators import Accelerator, Attester
from trustfabric.domain.attestation.basis import Basis, Rule
from trustfabric.domain.attestation.policy import DEMO_POLICY, AppraisalPolicy
from trustfabric.domain.attestation.stored import judge_again
from trustfabric.domain.attestation.versions import Scope
from trustfabric.domain.evidence.model import Code
from trustfabric.domain.trust import AttestationStatus
from trustfabric.drivers.swtpm import SoftTpms
from trustfabric.errors import UnavailableError

pytestmark = pytest.mark.libvirt

FIRST, SECOND = "0000:65:00.0", "0000:66:00.0"
GPUS = {
    "enabled": True,
    "devices": [
        {"bus": "0x65", "slot": "0", "attestation": "nvidia-gpu"},
        {"bus": "0x66", "slot": "0", "attestation": "nvidia-gpu"},
        {"bus": "0x67", "slot": "0"},
    ],
}
TAMPERED = {**BLOCKS, 1: b"\xee" * 48}


@dataclass
class Agent:
    """A guest with a software TPM, whose GPUs are asked through its agent."""

    tpms: SoftTpms
    devices: dict[str, Device | None]
    measured: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    replay: bool = False
    silent: bool = False
    hangs: str | None = None

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        if self.silent:
            raise UnavailableError("its agent hung up")
        return await self.tpms.collect(name, extra_data)

    async def collect_of(
        self, _name: str, accelerator: Attester, extra_data: bytes
    ) -> bytes:
        self.asked.append((accelerator.id, extra_data))
        if accelerator.id == self.hangs:
            await asyncio.Event().wait()
        device = self.devices[accelerator.id]
        if device is None:
            raise UnavailableError("no such device here")
        nonce = self.asked[0][1] if self.replay else extra_data
        return device.evidence(nonce, self.measured.get(accelerator.id))


@dataclass
class Scene:
    machines: Machines
    guest: Agent
    instance: Instance

    async def attest(self, purpose: str = "manual") -> None:
        await idle(self.machines)
        self.machines.attestation.tell(Attest(self.instance.id, purpose))
        await idle(self.machines)

    async def postures(self) -> dict[str, str]:
        return {name: one.posture for name, one in (await self.known()).items()}

    async def known(self) -> dict[str, Accelerator]:
        async with self.machines.database.reading() as conn:
            found = await list_accelerators(
                conn, [self.instance.id], self.machines.clock.now()
            )
        return {one.accelerator_id: one for one in found[self.instance.id]}

    async def gate(self) -> list[str]:
        """Return what of the accelerators stands in the way of a launch."""
        decision, _ = await explain(
            self.machines.database, self.instance.server_id, self.machines.clock.now()
        )
        return [note for note in decision.blocking if "accelerator_gate" in note]


@pytest_asyncio.fixture
async def machines(
    database: Database, database_url: str, tpm_dir: Path
) -> AsyncIterator[Machines]:
    settings = LibvirtSettings.model_validate({"gpu": GPUS})
    async with some_machines(
        database,
        database_url,
        tpm_dir,
        settings=replace(BELIEVING, policy=with_tpm()),
        libvirt=settings,
    ) as machines:
        yield machines


def with_tpm() -> AppraisalPolicy:
    """Return the policy of the demo, with what the GPUs may measure."""
    kinds = DEMO_POLICY.kinds.model_copy(
        update={"nvidia_gpu": BELIEVING.policy.kinds.nvidia_gpu}
    )
    return DEMO_POLICY.model_copy(update={"kinds": kinds})


async def played(machines: Machines, guest: Agent) -> Scene:
    """Start a VM that is trusted, whose GPUs `guest` has been asked for once."""
    machines.sources["swtpm"] = guest
    await machines.kill("fabric/attestation")
    instance = await machines.restored()
    await idle(machines)
    return Scene(machines, guest, instance)


@pytest_asyncio.fixture
async def scene(machines: Machines) -> Scene:
    """A running VM that is trusted, and whose two GPUs have been asked once."""
    guest = Agent(machines.tpms, {FIRST: Device(), SECOND: Device()})
    return await played(machines, guest)


async def test_each_gpu_is_asked_by_itself_and_attested(scene: Scene) -> None:
    assert [name for name, _ in scene.guest.asked] == [FIRST, SECOND]
    assert len({nonce for _, nonce in scene.guest.asked}) == 2
    assert await scene.postures() == {FIRST: "attested", SECOND: "attested"}
    assert await scene.gate() == []
    known = await scene.known()
    assert known[FIRST].accelerator_type == "nvidia-gpu"
    assert known[FIRST].fresh_until == scene.machines.clock.now() + timedelta(
        seconds=300
    )


async def test_their_verdicts_are_kept_with_their_evidence(scene: Scene) -> None:
    kept = await count(
        scene.machines.database,
        """
        SELECT count(*) FROM runtime_vm_attestations a
          JOIN attestation_challenges c ON c.attestation_id = a.id
         WHERE a.runtime_vm_instance_id = %s AND a.attestation_kind = 'nvidia-gpu'
           AND a.accelerator_id = c.accelerator_id AND c.used_at IS NOT NULL
           AND a.verification_status = 'trusted' AND a.binding IS NOT NULL
           AND a.nonce_digest = c.nonce_digest AND a.raw_quote IS NOT NULL
        """,
        scene.instance.id,
    )
    assert kept == 2


async def test_a_dry_run_judges_the_last_evidence_of_each_gpu_too(
    scene: Scene,
) -> None:
    await scene.attest()
    async with scene.machines.database.reading() as conn:
        rows = await verdicts.list_last(conn, None, Scope(), after=0, limit=1)
    last = [(row.accelerator_id, row.kind) for row in rows]
    known = await scene.known()
    strict = Basis(rules=(Rule(policy=AppraisalPolicy(id="strict", version=1)),))

    would_be = [
        judge_again(stored_of(row), BELIEVING.anchors, strict).code for row in rows[1:]
    ]

    assert last == [(None, "tpm"), (FIRST, "nvidia-gpu"), (SECOND, "nvidia-gpu")]
    assert [row.id for row in rows[1:]] == [
        known[name].attestation_id for name in (FIRST, SECOND)
    ]
    assert would_be == [Code.NO_REFERENCE_VALUES] * 2


async def test_what_a_gpu_shows_changes_no_trust_of_its_vm(scene: Scene) -> None:
    scene.guest.measured[FIRST] = TAMPERED
    await scene.attest()

    row = await scene.machines.posture(scene.instance.id)
    assert row.attestation_status is AttestationStatus.TRUSTED
    assert await scene.postures() == {FIRST: "untrusted", SECOND: "attested"}


async def test_a_gpu_that_failed_blocks_launches_until_it_shows_otherwise(
    scene: Scene,
) -> None:
    scene.guest.measured[FIRST] = TAMPERED
    await scene.attest()
    blocked = await scene.gate()
    known = await scene.known()
    del scene.guest.measured[FIRST]
    await scene.attest()

    assert blocked == [f"policy_hook:accelerator_gate={FIRST}:untrusted"]
    assert known[FIRST].policy_feedback[0].startswith("measurement-unknown")
    assert await scene.gate() == []


async def test_silence_clears_no_failure(scene: Scene) -> None:
    scene.guest.measured[FIRST] = TAMPERED
    await scene.attest()
    scene.guest.devices[FIRST] = None
    await scene.attest()

    assert (await scene.postures())[FIRST] == "untrusted"
    assert await scene.gate() == [f"policy_hook:accelerator_gate={FIRST}:untrusted"]


async def test_evidence_of_a_silent_gpu_holds_until_it_runs_out(scene: Scene) -> None:
    scene.guest.devices[FIRST] = None
    await scene.attest()
    before = await scene.gate()
    scene.machines.clock.advance(301)
    scene.guest.silent = False
    await scene.attest()

    assert before == []
    assert await scene.gate() == [f"policy_hook:accelerator_gate={FIRST}:stale"]


async def test_a_gpu_that_never_answered_blocks_while_its_vm_runs(
    machines: Machines,
) -> None:
    guest = Agent(machines.tpms, {FIRST: Device(), SECOND: None})
    scene = await played(machines, guest)

    assert await scene.postures() == {FIRST: "attested", SECOND: "unknown"}
    assert await scene.gate() == [f"policy_hook:accelerator_gate={SECOND}:unknown"]


async def test_once_a_gpu_says_nothing_no_other_is_waited_for(
    machines: Machines,
) -> None:
    """A guest that lets each run out of time would hold up all others."""
    guest = Agent(machines.tpms, {FIRST: Device(), SECOND: Device()})
    machines.settings = replace(machines.settings, timeout_s=0.3)
    scene = await played(machines, guest)

    guest.hangs = FIRST
    asked = len(guest.asked)
    machines.clock.advance(1)
    await scene.attest()
    first = [name for name, _ in guest.asked[asked:]]
    machines.clock.advance(1)
    await scene.attest()
    then = [name for name, _ in guest.asked[asked + len(first) :]]

    assert first[-1] == then[-1] == FIRST
    assert then == [SECOND, FIRST]
    known = await scene.known()
    assert known[SECOND].fresh_until == machines.clock.now() + timedelta(seconds=300)


async def test_one_that_was_not_waited_for_is_unknown(machines: Machines) -> None:
    guest = Agent(machines.tpms, {FIRST: Device(), SECOND: Device()}, hangs=FIRST)
    machines.settings = replace(machines.settings, timeout_s=0.3)
    scene = await played(machines, guest)
    assert await scene.postures() == {FIRST: "unknown", SECOND: "unknown"}


async def test_what_a_run_says_never_makes_a_gpu_better(scene: Scene) -> None:
    def said(posture: str) -> Accelerator:
        return Accelerator(
            accelerator_id=FIRST, accelerator_type="gpu", posture=posture
        )

    async def say(posture: str) -> str:
        async with scene.machines.database.writing() as conn:
            now = scene.machines.clock.now()
            await worsen_accelerators(conn, scene.instance.id, [said(posture)], now)
        return (await scene.postures())[FIRST]

    assert await say("trusted") == "attested"
    assert await say("tampered") == "tampered"
    assert await say("trusted") == "tampered"
    await scene.attest()
    assert (await scene.postures())[FIRST] == "attested"


async def test_of_a_silent_guest_no_gpu_is_asked(scene: Scene) -> None:
    asked = len(scene.guest.asked)
    scene.guest.silent = True
    await scene.attest()

    assert len(scene.guest.asked) == asked


async def test_an_answer_to_an_older_challenge_fails(scene: Scene) -> None:
    scene.guest.replay = True
    await scene.attest()

    known = await scene.known()
    assert known[FIRST].posture == "untrusted"
    assert known[FIRST].policy_feedback[0].startswith("nonce-mismatch")


async def test_an_accelerator_stays_the_device_it_was_first(scene: Scene) -> None:
    device = scene.guest.devices[FIRST]
    assert device is not None
    device.flash(Device().key)
    await scene.attest()
    flashed = (await scene.postures())[FIRST]
    scene.guest.devices[FIRST] = Device()
    await scene.attest()

    known = await scene.known()
    assert flashed == "attested"
    assert known[FIRST].posture == "untrusted"
    (note,) = known[FIRST].policy_feedback
    assert note.startswith("endorsement-mismatch: device expected hmac:")


async def test_one_device_is_not_two_accelerators(machines: Machines) -> None:
    device = Device()
    guest = Agent(machines.tpms, {FIRST: device, SECOND: device})
    scene = await played(machines, guest)

    assert await scene.postures() == {FIRST: "attested", SECOND: "untrusted"}
    known = await scene.known()
    assert (
        known[SECOND].policy_feedback[0].startswith("endorsement-mismatch: device-once")
    )


async def test_evidence_of_an_earlier_boot_counts_for_nothing_while_it_runs(
    scene: Scene,
) -> None:
    async with scene.machines.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET boot_id = gen_random_uuid() WHERE id = %s",
            [scene.instance.id],
        )

    assert set(await scene.gate()) == {
        f"policy_hook:accelerator_gate={FIRST}:stale",
        f"policy_hook:accelerator_gate={SECOND}:stale",
    }


async def test_of_a_vm_that_is_off_only_a_failure_blocks(scene: Scene) -> None:
    scene.guest.measured[FIRST] = TAMPERED
    await scene.attest()
    scene.machines.clock.advance(10_000)
    async with scene.machines.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET power_state = 'stopped' WHERE id = %s",
            [scene.instance.id],
        )

    assert await scene.gate() == [f"policy_hook:accelerator_gate={FIRST}:untrusted"]
