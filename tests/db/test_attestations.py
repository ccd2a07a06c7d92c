"""Challenges: consumed once, by the boot they were issued to; and who is due."""

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import insert_run
from tests.fix_fabric import RUNTIME, Fabric, count
from trustfabric.db import attestations, boots, vms
from trustfabric.db.attestations import IssuedChallenge, RecordVerdict
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Signal
from trustfabric.domain.vms import PowerState
from trustfabric.errors import ConflictError

QUIET = timedelta(seconds=30)
AHEAD = timedelta(seconds=150)


async def issue(
    fabric: Fabric, instance: InstanceId, boot: uuid.UUID | None = None
) -> IssuedChallenge:
    now = fabric.clock.now()
    async with fabric.database.writing() as conn:
        return await attestations.issue_challenge(
            conn,
            attestations.NewChallenge(
                instance_id=instance,
                kind="tpm",
                purpose="boot",
                boot_id=boot,
                nonce_digest=uuid.uuid4().bytes,
                issued_at=now,
                expires_at=now + QUIET,
            ),
        )


def a_verdict(fabric: Fabric, issued: IssuedChallenge, **parts: Any) -> RecordVerdict:
    verdict = RecordVerdict(
        challenge=issued,
        kind="tpm",
        status="trusted",
        code="ok",
        evidence=b"quote",
        claims={},
        signer={},
        nonce_digest=b"digest",
        deadline=None,
        notes=[],
        remedies=[],
        now=fabric.clock.now(),
    )
    return replace(verdict, **parts)


async def record(
    fabric: Fabric, instance: InstanceId, issued: IssuedChallenge, **parts: Any
) -> Any:
    return await fabric.apply(
        instance,
        fabric.a_change(
            parts.pop("signal", Signal.TRUSTED_VERDICT),
            attestation_id=issued.attestation_id,
        ),
        companions=(a_verdict(fabric, issued, **parts),),
    )


async def new_boot(fabric: Fabric, instance: InstanceId) -> uuid.UUID:
    boot = uuid.uuid4()
    await fabric.apply(
        instance,
        fabric.a_change(Signal.BOOTED),
        companions=(boots.SetBoot(boot, fabric.clock.now(), epoch=1),),
    )
    return boot


async def running(fabric: Fabric) -> InstanceId:
    instance = await fabric.instance()
    async with fabric.database.writing() as conn:
        await vms.set_power(conn, instance, PowerState.RUNNING, fabric.clock.now())
    return instance


async def due(fabric: Fabric, runtime: str = RUNTIME) -> list[tuple[InstanceId, str]]:
    async with fabric.database.reading() as conn:
        return await attestations.list_due(
            conn, runtime, fabric.clock.now(), ahead=AHEAD, quiet=QUIET, limit=10
        )


# --- challenges --------------------------------------------------------------------


async def test_a_verdict_takes_the_id_that_its_challenge_reserved(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    issued = await issue(fabric, instance)

    applied = await record(fabric, instance, issued)

    assert applied.written == (issued.attestation_id,)
    assert (await fabric.history(instance))[-1].attestation_id == issued.attestation_id


async def test_a_challenge_is_answered_once(fabric: Fabric) -> None:
    instance = await fabric.instance()
    issued = await issue(fabric, instance)
    await record(fabric, instance, issued)

    with pytest.raises(ConflictError):
        await record(fabric, instance, issued)

    assert (await fabric.posture(instance)).version == 2
    assert await count(fabric.database, "SELECT count(*) FROM runtime_vm_events") == 1


async def test_a_challenge_ends_with_its_boot(fabric: Fabric) -> None:
    instance = await fabric.instance()
    boot = await new_boot(fabric, instance)
    early = await issue(fabric, instance, boot)
    now = await new_boot(fabric, instance)

    with pytest.raises(ConflictError):
        await record(fabric, instance, early)

    await record(fabric, instance, await issue(fabric, instance, now))


async def test_a_challenge_ends_with_its_instance(fabric: Fabric) -> None:
    instance = await fabric.instance()
    issued = await issue(fabric, instance)
    async with fabric.database.writing() as conn:
        await vms.set_power(
            conn, instance, PowerState.STOPPED, fabric.clock.now(), terminated=True
        )

    with pytest.raises(ConflictError):
        await record(fabric, instance, issued)


async def test_unknown_verdicts_count_from_the_end_of_the_last_run(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()

    async def silence() -> None:
        issued = await issue(fabric, instance)
        await record(
            fabric, instance, issued, signal=Signal.UNKNOWN_VERDICT, status="unknown"
        )
        fabric.clock.advance(1)

    async def counted() -> int:
        async with fabric.database.reading() as conn:
            return await attestations.count_unknown_since_run(conn, instance)

    await silence()
    assert await counted() == 1
    async with fabric.database.writing() as conn:
        run = await insert_run(conn, instance)
        await conn.execute(
            """
            UPDATE runtime_vm_remediation_runs
               SET status = 'completed', completed_at = %s WHERE id = %s
            """,
            [fabric.clock.now(), run],
        )
    fabric.clock.advance(1)
    assert await counted() == 0
    await silence()
    await silence()
    assert await counted() == 2


# --- who is due --------------------------------------------------------------------


async def test_one_without_evidence_is_due_at_once(fabric: Fabric) -> None:
    instance = await running(fabric)

    assert await due(fabric) == [(instance, "scheduled")]
    assert await due(fabric, "another") == []


async def test_one_that_was_just_asked_is_left_alone(fabric: Fabric) -> None:
    instance = await running(fabric)

    await issue(fabric, instance)

    assert await due(fabric) == []
    fabric.clock.advance(30)
    assert await due(fabric) == [(instance, "scheduled")]


async def test_a_restored_one_is_due_before_its_deadline(fabric: Fabric) -> None:
    instance = await running(fabric)
    await fabric.change(instance, Signal.TRUSTED_VERDICT)

    fabric.clock.advance(149)
    assert await due(fabric) == []
    fabric.clock.advance(1)
    assert await due(fabric) == [(instance, "scheduled")]


async def test_a_remediating_one_is_due_when_its_run_is_over(fabric: Fabric) -> None:
    instance = await running(fabric)
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)
    assert await due(fabric) == []
    await fabric.change(instance, Signal.RUN_STAGED)
    assert await due(fabric) == [(instance, "post-run")]

    async with fabric.database.writing() as conn:
        await insert_run(conn, instance)

    assert await due(fabric) == []


@pytest.mark.parametrize("state", sorted(set(PowerState) - {PowerState.RUNNING}))
async def test_what_does_not_run_is_not_due(fabric: Fabric, state: PowerState) -> None:
    instance = await running(fabric)

    async with fabric.database.writing() as conn:
        await vms.set_power(conn, instance, state, fabric.clock.now())

    assert await due(fabric) == []


async def test_what_shall_end_is_not_due(fabric: Fabric) -> None:
    stopping, ending = await running(fabric), await running(fabric)

    async with fabric.database.writing() as conn:
        await vms.set_desired(conn, stopping, "stopped")
        await vms.set_desired(conn, ending, "terminated")

    assert await due(fabric) == []
