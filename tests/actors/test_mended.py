"""A trusted verdict on what waits for repair: the wait is over, what runs goes on."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.actors.fix_remediation import SETTINGS, Fabric, a_fabric
from tests.db.fix_runs import ALICE, KEY, add_instance, add_playbook
from trustfabric.actors.dispatch import EnqueueRun
from trustfabric.db.session import Database
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.runs import RunStatus
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Signal, Tag
from trustfabric.supervision import ManualClock

RARELY = replace(SETTINGS, tick_s=3600.0)
"""So that only events can have brought about what is seen."""


@pytest.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Fabric]:
    async with a_fabric(database, database_url, RARELY) as started:
        yield started


async def test_what_waits_for_approval_is_called_off(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await fabric.quarantined()
    await fabric.run_of(instance, lambda _: True)

    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    run = await fabric.run_of(instance, lambda r: not r.status.active)

    assert (run.status, run.failure_reason) == (
        RunStatus.CANCELLED,
        FailureReason.CANCELLED,
    )
    assert run.cancellation_reason is not None
    assert "found good" in run.cancellation_reason
    # It was quarantined, and stays so until a person releases it (contract §2).
    posture = await fabric.posture(instance)
    assert (posture.lifecycle, posture.attestation_status) == (
        Lifecycle.QUARANTINED,
        AttestationStatus.TRUSTED,
    )
    assert posture.remediation_state is Tag.AUTOMATION_CANCELLED


async def test_what_waits_in_the_queue_is_called_off_by_the_sweep_too(
    database: Database, database_url: str
) -> None:
    await add_playbook(database)
    idle = replace(RARELY, concurrency=0)
    async with a_fabric(database, database_url, idle) as fabric:
        instance = await fabric.quarantined()
        await fabric.run_of(instance, lambda _: True)
        await fabric.runtime.kill("fabric/broadcaster")
        await fabric.runtime.kill("fabric/listener")

        await fabric.change(instance, Signal.TRUSTED_VERDICT)
        await fabric.quiet()

        run = await fabric.run_of(instance, lambda _: True)
    assert run.status is RunStatus.CANCELLED


async def test_what_runs_goes_on(fabric: Fabric) -> None:
    script = 'until [ -e "$TRUSTFABRIC_RUN_DIR/x" ]; do echo on; exec sleep 0.3; done'
    await add_playbook(fabric.database, metadata={"script": script})
    instance = await fabric.quarantined()
    running = await fabric.run_of(instance, lambda r: r.status is RunStatus.RUNNING)

    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    run = await fabric.run_of(instance, lambda r: not r.status.active)

    assert (run.id, run.status) == (running.id, RunStatus.COMPLETED)


async def test_what_has_begun_is_not_called_off_between_its_attempts(
    database: Database, database_url: str
) -> None:
    await add_playbook(database, metadata={"script": "exit 75"})
    standing = ManualClock(datetime.now(UTC))
    async with a_fabric(database, database_url, RARELY, clock=standing) as fabric:
        instance = await fabric.quarantined()
        tried = await fabric.run_of(
            instance, lambda r: r.status is RunStatus.PENDING and r.attempt == 1
        )

        standing.advance(0.001)  # less than the pause before the next attempt
        await fabric.change(instance, Signal.TRUSTED_VERDICT)
        await fabric.quiet()

        assert (await fabric.read(tried.id)).status is RunStatus.PENDING


async def test_what_was_never_bad_is_not_mended(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)
    order = EnqueueRun(owner=ALICE, by=ALICE, instance_id=instance, playbook=KEY)
    run = await fabric.ask(order)

    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    await fabric.quiet()

    assert (await fabric.read(run.id)).status is RunStatus.PENDING
