"""Challenges to real software TPMs, and what becomes of each answer."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from tests.builders import insert_run
from tests.fix_fabric import ASK_S, count, until
from tests.fix_machines import CALLER, Machines
from trustfabric.actors.attestation import Attest, InFlight
from trustfabric.actors.servers import StopServer
from trustfabric.db.attestations import NewChallenge, issue_challenge
from trustfabric.db.vms import Instance
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Signal, Tag
from trustfabric.domain.vms import PowerState
from trustfabric.drivers.swtpm import SoftTpms

pytestmark = pytest.mark.libvirt

MEASURED = bytes.fromhex("ab" * 32)
CHALLENGES = "SELECT count(*) FROM attestation_challenges"


@dataclass
class Gate:
    """A TPM that is slow to answer: not before it is told to."""

    tpms: SoftTpms
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        evidence = await self.tpms.collect(name, extra_data)
        self.begun.set()
        await self.go.wait()
        return evidence


async def slow(machines: Machines) -> Gate:
    """Have every later answer wait."""
    gate = Gate(machines.tpms)
    machines.sources["swtpm"] = gate
    await idle(machines)
    await machines.kill("fabric/attestation")
    return gate


async def idle(machines: Machines) -> None:
    async def look() -> bool | None:
        busy = await machines.attestation.ask(InFlight(), within_s=ASK_S)
        return not busy or None

    await until(look, "the appraisals to be done")


async def attested(
    machines: Machines, instance: Instance, purpose: str = "manual"
) -> TrustEvent:
    """Challenge it; return what that was to its trust."""
    await idle(machines)
    machines.attestation.tell(Attest(instance.id, purpose))
    await idle(machines)
    return (await machines.history(instance.id))[-1]


async def test_an_untouched_tpm_is_trusted(machines: Machines) -> None:
    instance = await machines.restored()

    row = await machines.posture(instance.id)
    event = (await machines.history(instance.id))[-1]
    assert row.attestation_status is AttestationStatus.TRUSTED
    assert row.freshness_deadline == machines.clock.now() + timedelta(seconds=300)
    assert row.provenance_ref == f"attestation:tpm:{event.attestation_id}"
    assert row.provenance is not None
    assert row.provenance["kind"] == "tpm"
    assert event.metadata["purpose"] == "boot"


async def test_the_evidence_is_kept_with_its_verdict(machines: Machines) -> None:
    instance = await machines.restored()

    kept = await count(
        machines.database,
        """
        SELECT count(*) FROM attestation_challenges c
          JOIN runtime_vm_attestations a ON a.id = c.attestation_id
         WHERE a.runtime_vm_instance_id = %s AND a.verification_status = 'trusted'
           AND c.used_at IS NOT NULL AND c.boot_id = %s
           AND a.nonce_digest = c.nonce_digest AND length(a.raw_quote) > 100
        """,
        instance.id,
        instance.boot_id,
    )
    assert kept == 1


async def test_a_tampered_tpm_is_quarantined(machines: Machines) -> None:
    instance = await machines.restored()

    await machines.tpms.extend(instance.name, 8, MEASURED)
    event = await attested(machines, instance)

    assert event.status is AttestationStatus.UNTRUSTED
    assert event.lifecycle is Lifecycle.QUARANTINED
    assert event.freshness_deadline is None
    assert event.remediation_state is Tag.INVESTIGATE


async def test_silence_is_neither_trust_nor_failure(machines: Machines) -> None:
    instance = await machines.restored()
    before = await machines.posture(instance.id)

    await machines.tpms.stop(instance.name)
    event = await attested(machines, instance)

    assert event.lifecycle is Lifecycle.RESTORED
    assert event.status is AttestationStatus.TRUSTED
    assert event.freshness_deadline == before.freshness_deadline
    assert event.remediation_state is Tag.MONITOR


class Faulty:
    async def collect(self, name: str, extra_data: bytes) -> bytes:
        raise ValueError("what no source should say")


async def test_a_source_at_fault_is_silence_and_stops_nobody(
    machines: Machines,
) -> None:
    instance = await machines.restored()
    machines.sources["swtpm"] = Faulty()
    await idle(machines)
    await machines.kill("fabric/attestation")

    event = await attested(machines, instance)

    assert event.reason == "attestation:unreachable"
    assert event.lifecycle is Lifecycle.RESTORED
    assert (await attested(machines, instance)).reason == event.reason


async def test_a_bug_that_one_vm_brings_out_ends_nobody_s_attestation(
    machines: Machines,
) -> None:
    """Its row says what no code of ours would have written there."""
    broken, well = await machines.restored(), await machines.restored()
    async with machines.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET config = config || %s WHERE id = %s",
            [Jsonb({"attestation": {"kind": "abacus"}}), broken.id],
        )
    before = len(await machines.history(broken.id))

    for _ in range(3):
        machines.attestation.tell(Attest(broken.id, "manual"))
    event = await attested(machines, well)

    assert event.status is AttestationStatus.TRUSTED
    assert len(await machines.history(broken.id)) == before
    (report,) = [r for r in machines.runtime.report() if r.path == "fabric/attestation"]
    assert report.restart_count == 0


async def test_a_tpm_with_another_s_key_is_untrusted(machines: Machines) -> None:
    instance = await machines.restored()

    await machines.tpms.remove(instance.name)
    await machines.tpms.start(instance.name)
    event = await attested(machines, instance)

    assert event.status is AttestationStatus.UNTRUSTED


async def test_one_without_a_source_of_evidence_stays_unknown(
    machines: Machines,
) -> None:
    instance = await machines.started()

    row = await machines.until_posture(
        instance.id, attestation_status=AttestationStatus.UNKNOWN
    )

    assert row.lifecycle is Lifecycle.SUSPECT


async def test_what_is_off_is_not_asked(machines: Machines) -> None:
    instance = await machines.restored()
    await machines.ask(StopServer(instance.server_id, CALLER))
    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)
    before = await count(machines.database, CHALLENGES)

    await attested(machines, instance)

    assert await count(machines.database, CHALLENGES) == before


async def test_one_is_challenged_once_at_a_time(machines: Machines) -> None:
    instance = await machines.restored()
    gate = await slow(machines)
    before = await count(machines.database, CHALLENGES)

    for _ in range(6):
        machines.attestation.tell(Attest(instance.id, "manual"))
    await gate.begun.wait()
    busy = await machines.attestation.ask(InFlight(), within_s=ASK_S)
    during = await count(machines.database, CHALLENGES)
    gate.go.set()
    await idle(machines)

    assert busy == {instance.id}
    assert during == before + 1
    assert await count(machines.database, CHALLENGES) == before + 2


async def test_an_answer_that_a_new_boot_overtook_is_asked_for_again(
    machines: Machines,
) -> None:
    instance = await machines.restored()
    gate = await slow(machines)
    verdicts = await count(
        machines.database, "SELECT count(*) FROM runtime_vm_attestations"
    )

    machines.attestation.tell(Attest(instance.id, "manual"))
    await gate.begun.wait()
    machines.reboot(instance)
    await machines.until_posture(instance.id, lifecycle=Lifecycle.SUSPECT)
    gate.go.set()
    await machines.until_posture(instance.id, lifecycle=Lifecycle.RESTORED)
    await idle(machines)

    overtaken = await count(
        machines.database, CHALLENGES + " WHERE used_at IS NULL AND outcome IS NULL"
    )
    new_boot = (await machines.read(instance.id)).boot_id
    late = await count(
        machines.database,
        """
        SELECT count(*) FROM attestation_challenges c
          JOIN runtime_vm_attestations a ON a.id = c.attestation_id
         WHERE c.boot_id <> %s
        """,
        new_boot,
    )
    assert overtaken == 1
    assert late == verdicts


async def test_the_verdict_after_a_run_restores(machines: Machines) -> None:
    instance = await machines.restored()
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    await machines.change(instance.id, Signal.RUN_STAGED)

    event = await attested(machines, instance, "post-run")

    assert event.lifecycle is Lifecycle.RESTORED
    assert event.remediation_attempts == 0


async def test_a_verdict_during_a_run_moves_nothing(machines: Machines) -> None:
    instance = await machines.restored()
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    await machines.change(instance.id, Signal.RUN_STAGED)
    async with machines.database.writing() as conn:
        await insert_run(conn, instance.id)

    event = await attested(machines, instance)

    assert event.status is AttestationStatus.TRUSTED
    assert event.lifecycle is Lifecycle.REMEDIATING


async def test_silence_after_a_run_ends_in_quarantine(machines: Machines) -> None:
    instance = await machines.restored()
    await machines.change(instance.id, Signal.UNTRUSTED_VERDICT)
    await machines.change(instance.id, Signal.RUN_STAGED)
    await machines.tpms.stop(instance.name)

    first = await attested(machines, instance, "post-run")
    second = await attested(machines, instance, "post-run")

    assert first.lifecycle is Lifecycle.REMEDIATING
    assert second.lifecycle is Lifecycle.QUARANTINED
    assert second.remediation_state is Tag.UNVERIFIED


async def test_a_registry_that_dies_under_a_verdict_stops_no_other(
    machines: Machines,
) -> None:
    one, other = await machines.restored(), await machines.restored()
    gate = await slow(machines)
    machines.attestation.tell(Attest(one.id, "manual"))
    await gate.begun.wait()

    machines.runtime.suspend("fabric/trust")
    gate.go.set()

    async def asked() -> bool | None:
        return machines.trust.cell.depth > 0 or None

    await until(asked, "the verdict to be told")
    machines.clock.advance(11.0)
    await machines.runtime.quiet()
    machines.runtime.resume("fabric/trust")

    await idle(machines)
    event = await attested(machines, other)
    assert event.status is AttestationStatus.TRUSTED
    assert event.reason != "new boot"


async def test_what_a_fallen_incarnation_had_asked_is_asked_again_at_once(
    machines: Machines,
) -> None:
    instance = await machines.restored()
    version = (await machines.posture(instance.id)).version
    now = machines.clock.now()
    async with machines.database.writing() as conn:
        await issue_challenge(
            conn,
            NewChallenge(
                instance_id=instance.id,
                kind="tpm",
                purpose="manual",
                boot_id=instance.boot_id,
                nonce_digest=b"\0" * 32,
                issued_at=now,
                expires_at=now + timedelta(seconds=90),
            ),
        )

    await machines.kill("fabric/attestation")

    await machines.until_posture(instance.id, version=version + 1)
    assert (await machines.posture(instance.id)).lifecycle is Lifecycle.RESTORED
