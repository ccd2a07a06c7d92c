"""The four clocks of a run, each with its own outcome; and its SLA deadline."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.actors.fix_remediation import SETTINGS, Fabric, a_fabric
from tests.db.fix_runs import ALICE, KEY, add_instance, add_playbook
from trustfabric.actors.dispatch import EnqueueRun
from trustfabric.db import run_events, servers
from trustfabric.db.placement import read_situation
from trustfabric.db.session import Database
from trustfabric.domain.events import Position
from trustfabric.domain.executors import (
    Cancellation,
    Emit,
    ExitStatus,
    Job,
    LogStream,
    RemediationLogEvent,
)
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import RunId
from trustfabric.domain.placement import decide
from trustfabric.domain.runs import Run, RunStatus
from trustfabric.domain.trust import Lifecycle, Tag
from trustfabric.supervision import ManualClock

HOUR = replace(SETTINGS, approval_ttl_s=3600.0, queue_ttl_s=3600.0)


class Endless:
    """Programs that go on until they are told to stop."""

    async def execute(
        self, job: Job, emit: Emit, cancelled: Cancellation
    ) -> ExitStatus:
        await emit(RemediationLogEvent(LogStream.STDOUT, "on"))
        await cancelled.wait()
        return ExitStatus(
            code=None,
            message="stopped",
            failure_reason=FailureReason.CANCELLED,
            duration_s=0.0,
        )

    async def reap(self, run_id: RunId) -> int:
        return 0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def fabric(
    database: Database, database_url: str, clock: ManualClock
) -> AsyncIterator[Fabric]:
    async with a_fabric(
        database, database_url, HOUR, clock=clock, programs=Endless()
    ) as started:
        yield started


async def ended_after(
    fabric: Fabric, clock: ManualClock, run: Run, seconds: float
) -> Run:
    """Let that time pass; the run ends then, and not a second before."""
    clock.advance(seconds - 1)
    await fabric.quiet()
    assert (await fabric.read(run.id)).status is run.status
    clock.advance(1)
    await fabric.quiet()
    return await fabric.read(run.id)


async def staged(fabric: Fabric) -> Run:
    instance = await fabric.quarantined()
    await fabric.quiet()
    return await fabric.run_of(instance, lambda _: True)


async def test_waiting_for_approval_ends(fabric: Fabric, clock: ManualClock) -> None:
    await add_playbook(fabric.database, approval_required=True)
    run = await staged(fabric)

    after = await ended_after(fabric, clock, run, 3600)

    assert (after.status, after.failure_reason) == (
        RunStatus.CANCELLED,
        FailureReason.APPROVAL_EXPIRED,
    )
    posture = await fabric.posture(run.instance_id)
    assert posture.lifecycle is Lifecycle.QUARANTINED


async def test_waiting_for_a_vm_that_is_gone_ends(
    fabric: Fabric, clock: ManualClock
) -> None:
    """Else its server could never launch again: an active run stands in the way."""
    await add_playbook(fabric.database, approval_required=True)
    run, other = await staged(fabric), await staged(fabric)
    never_bad = await add_instance(fabric.database)
    order = EnqueueRun(owner=ALICE, by=ALICE, instance_id=never_bad, playbook=KEY)
    by_hand = await fabric.ask(order)
    async with fabric.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET terminated_at = %s WHERE id = ANY (%s)",
            [clock.now(), [run.instance_id, never_bad]],
        )

    clock.advance(HOUR.tick_s)
    await fabric.quiet()

    after = await fabric.read(run.id)
    assert (after.status, after.failure_reason) == (
        RunStatus.CANCELLED,
        FailureReason.CANCELLED,
    )
    assert "its VM is gone" in (after.cancellation_reason or "")
    assert (await fabric.posture(run.instance_id)).lifecycle is Lifecycle.QUARANTINED
    assert (await fabric.read(other.id)).status is RunStatus.PENDING
    assert (await fabric.read(by_hand.id)).status is RunStatus.CANCELLED
    async with fabric.database.writing() as conn:
        situation = await read_situation(conn, run.server_id, clock.now())
        assert not decide(situation, clock.now()).allowed
        clock.advance(1)
        await servers.release_server(
            conn, run.server_id, by="user:7", reason="seen to", now=clock.now()
        )
        situation = await read_situation(conn, run.server_id, clock.now())
        assert decide(situation, clock.now()).allowed


async def test_waiting_in_the_queue_ends(
    database: Database, database_url: str, clock: ManualClock
) -> None:
    nobody = replace(HOUR, concurrency=0)
    await add_playbook(database)
    async with a_fabric(database, database_url, nobody, clock=clock) as fabric:
        run = await staged(fabric)

        after = await ended_after(fabric, clock, run, 3600)
        posture = await fabric.posture(run.instance_id)

    assert (after.status, after.failure_reason) == (
        RunStatus.CANCELLED,
        FailureReason.QUEUE_EXPIRED,
    )
    assert posture.lifecycle is Lifecycle.QUARANTINED


async def test_running_too_long_is_a_timeout(
    database: Database, database_url: str
) -> None:
    # A program's time is the host's, whatever the runtime's clock says.
    metadata = {"script": "sleep 60", "timeout_seconds": 0.2, "retry_limit": 0}
    await add_playbook(database, metadata=metadata)
    async with a_fabric(database, database_url) as fabric:
        instance = await fabric.quarantined()

        run = await fabric.run_of(instance, lambda r: not r.status.active)
        posture = await fabric.posture(instance)

    assert (run.status, run.failure_reason) == (
        RunStatus.FAILED,
        FailureReason.TIMEOUT,
    )
    assert posture.remediation_state is Tag.TRANSIENT_FAILURE


async def test_a_lease_that_nobody_renews_is_lost(
    fabric: Fabric, database: Database, database_url: str, clock: ManualClock
) -> None:
    await add_playbook(database)
    run = await staged(fabric)
    await fabric.until_line(run.id, "on")
    running = await fabric.read(run.id)
    await fabric.runtime.stop()

    elsewhere = replace(HOUR, runtime_id="elsewhere")
    async with a_fabric(
        database, database_url, elsewhere, clock=clock, programs=Endless()
    ) as other:
        after = await ended_after(other, clock, running, 30)

    assert running.status is RunStatus.RUNNING
    assert (after.status, after.failure_reason) == (
        RunStatus.FAILED,
        FailureReason.TRANSIENT_INFRASTRUCTURE,
    )
    assert await other.lines(run.id) == ["on"]


async def test_a_lease_is_renewed_while_its_program_runs(
    fabric: Fabric, clock: ManualClock
) -> None:
    await add_playbook(fabric.database)
    run = await staged(fabric)
    await fabric.until_line(run.id, "on")

    for _ in range(10):
        before = (await fabric.read(run.id)).lease_expires_at
        clock.advance(10)
        renewed = await fabric.run_of(
            run.instance_id,
            lambda r, before=before: r.lease_expires_at != before,  # type: ignore[misc]
        )
        assert renewed.status is RunStatus.RUNNING


async def test_a_breach_of_the_sla_is_told_once_with_its_deadline(
    fabric: Fabric, clock: ManualClock
) -> None:
    await add_playbook(fabric.database, approval_required=True, sla_duration_s=60)
    run = await staged(fabric)
    clock.advance(59)
    await fabric.quiet()
    assert (await fabric.read(run.id)).sla_breached_at is None

    clock.advance(1)
    await fabric.quiet()
    clock.advance(60)
    await fabric.quiet()

    assert (await fabric.read(run.id)).sla_breached_at == run.sla_deadline
    async with fabric.database.reading() as conn:
        events = await run_events.events_after(conn, Position.FIRST, limit=100)
    (told,) = [event for event in events if event.message == "sla-breached"]
    assert told.kind == "status"
    assert told.payload["event"]["sla_breached"] is True
    assert told.payload["event"]["sla_deadline"] == "2026-01-01T00:01:00Z"
