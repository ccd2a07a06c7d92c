"""Runs in the real database: one per instance, one claimer, one winner of each race."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.builders import insert_owner
from tests.db.fix_runs import (
    ALICE,
    BOB,
    NOON,
    add_instance,
    add_playbook,
    add_run,
    read_run,
    write,
)
from trustfabric.db import accelerators, dispatch, playbooks, run_events, runs
from trustfabric.db.approvals import DecideRun
from trustfabric.db.artifacts import digest_logs, execution_log
from trustfabric.db.claims import ClaimRun
from trustfabric.db.ledger import Entry, enter
from trustfabric.db.run_writes import (
    CancelActiveRun,
    FinishRun,
    request_cancel,
    tell_breach,
)
from trustfabric.db.session import Database
from trustfabric.domain.approvals import Ruling, after_ruling
from trustfabric.domain.executors import ExitStatus
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import OwnerId, RunId
from trustfabric.domain.playbooks import PlaybookEdit, edited
from trustfabric.domain.runs import (
    ApprovalState,
    RetryPolicy,
    Run,
    RunStatus,
    called_off,
    outcome,
)
from trustfabric.errors import (
    ApprovalStaleError,
    ConflictError,
    NotFoundError,
    RunActiveError,
    SelfApprovalError,
    UnknownPlaybookError,
)

LATER = NOON + timedelta(seconds=10)


async def a_ready_run(database: Database, **playbook: Any) -> Run:
    instance = await add_instance(database)
    return await add_run(database, instance, await add_playbook(database, **playbook))


def a_claim(run: Run, **changes: Any) -> ClaimRun:
    return ClaimRun(
        **{
            "run_id": run.id,
            "lease_owner": "here",
            "lease_s": 30,
            "now": NOON,
            **changes,
        }
    )


async def claimed(database: Database, run: Run, **changes: Any) -> Run:
    await write(database, run.instance_id, a_claim(run, **changes))
    return await read_run(database, run.id)


def an_end(run: Run, reason: FailureReason | None, **changes: Any) -> FinishRun:
    status = ExitStatus(
        code=0 if reason is None else 1,
        message="it ended",
        failure_reason=reason,
        duration_s=1.5,
    )
    decided = outcome(run, status, RetryPolicy(), LATER, 0.5)
    return FinishRun(
        **{
            "run_id": run.id,
            "outcome": decided,
            "now": LATER,
            "by": "test",
            "lease_epoch": run.lease_epoch,
            **changes,
        }
    )


def a_ruling(run: Run, *, approve: bool = True, by: OwnerId = BOB) -> DecideRun:
    ruling = Ruling(approve=approve, by=by, expected_version=run.version, notes="ok")
    becomes = after_ruling(run, ruling)
    return DecideRun(run_id=run.id, ruling=ruling, becomes=becomes, now=NOON)


async def messages(database: Database, run: Run) -> list[str]:
    async with database.reading() as conn:
        cursor = await conn.execute(
            "SELECT message FROM runtime_vm_remediation_events"
            " WHERE run_id = %s AND kind = 'status' ORDER BY seq",
            [run.id],
        )
        return [row[0] for row in await cursor.fetchall()]


async def test_a_run_pins_its_playbook_and_tells_that_it_is_queued(
    database: Database,
) -> None:
    run = await a_ready_run(database)

    assert run.status is RunStatus.PENDING
    assert run.playbook_snapshot["metadata"] == {"script": "echo fixed"}
    assert run.assigned_owner_id == ALICE
    assert await messages(database, run) == ["queued"]


async def test_z9_of_many_racing_enqueues_one_makes_a_run(database: Database) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)

    outcomes = await asyncio.gather(
        *(add_run(database, instance, playbook) for _ in range(16)),
        return_exceptions=True,
    )

    assert sum(isinstance(each, Run) for each in outcomes) == 1
    assert sum(isinstance(each, RunActiveError) for each in outcomes) == 15


async def test_a_terminated_instance_gets_no_run(database: Database) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)
    async with database.writing() as conn:
        await conn.execute("UPDATE runtime_vm_instances SET terminated_at = now()")

    with pytest.raises(NotFoundError):
        await add_run(database, instance, playbook)


async def test_a_playbook_deleted_meanwhile_is_unknown(database: Database) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)
    async with database.writing() as conn:
        await playbooks.delete_playbook(conn, playbook.id)

    with pytest.raises(UnknownPlaybookError):
        await add_run(database, instance, playbook)


async def test_posture_that_comes_with_an_enqueue_may_only_worsen(
    database: Database,
) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)

    async def enqueue(posture: str) -> str:
        metadata = {
            "accelerators": [{"id": "gpu0", "kind": "h100", "posture": posture}]
        }
        run = await add_run(database, instance, playbook, metadata=metadata)
        await write(
            database, instance, CancelActiveRun(by="t", reason="next", now=NOON)
        )
        async with database.reading() as conn:
            found = await accelerators.list_accelerators(conn, [run.instance_id], NOON)
            (one,) = found[run.instance_id]
        return one.posture

    told = [await enqueue(p) for p in ("trusted", "tampered", "attested", "unknown")]

    assert told == ["trusted", "tampered", "tampered", "unknown"]


async def test_s9_of_two_racing_rulings_one_wins(database: Database) -> None:
    run = await a_ready_run(database, approval_required=True)
    async with database.writing() as conn:
        await insert_owner(conn, BOB)
        await insert_owner(conn, OwnerId(9))

    async def rule(*, approve: bool, by: OwnerId) -> Any:
        return await write(
            database, run.instance_id, a_ruling(run, approve=approve, by=by)
        )

    outcomes = await asyncio.gather(
        rule(approve=True, by=BOB),
        rule(approve=False, by=OwnerId(9)),
        return_exceptions=True,
    )

    assert sum(isinstance(each, ConflictError) for each in outcomes) == 1
    after = await read_run(database, run.id)
    assert after.approval_state in {ApprovalState.APPROVED, ApprovalState.REJECTED}
    assert after.version == run.version + (
        1 if after.approval_state is ApprovalState.APPROVED else 2
    )


async def test_a_rejection_ends_the_run_as_cancelled(database: Database) -> None:
    run = await a_ready_run(database, approval_required=True)
    async with database.writing() as conn:
        await insert_owner(conn, BOB)

    await write(database, run.instance_id, a_ruling(run, approve=False))

    after = await read_run(database, run.id)
    assert (after.status, after.approval_state) == (
        RunStatus.CANCELLED,
        ApprovalState.REJECTED,
    )
    assert after.cancelled_at == NOON
    assert after.approval_decided_by == "user:8"


async def test_s8_an_edit_makes_the_approval_stale_and_leaves_the_run_as_it_was(
    database: Database,
) -> None:
    run = await a_ready_run(database, approval_required=True)
    async with database.writing() as conn:
        await insert_owner(conn, BOB)
        (before,) = await playbooks.list_playbooks(conn, None)
        after = edited(before, PlaybookEdit(metadata={"script": "echo other"}))
        await playbooks.save_playbook(conn, after)

    with pytest.raises(ApprovalStaleError):
        await write(database, run.instance_id, a_ruling(run))

    assert await read_run(database, run.id) == run


async def test_a_run_that_waits_for_approval_is_not_claimed(
    database: Database,
) -> None:
    run = await a_ready_run(database, approval_required=True)

    with pytest.raises(ConflictError):
        await claimed(database, run)


async def test_of_two_racing_claims_one_wins(database: Database) -> None:
    run = await a_ready_run(database)

    outcomes = await asyncio.gather(
        claimed(database, run), claimed(database, run), return_exceptions=True
    )

    assert sum(isinstance(each, Run) for each in outcomes) == 1
    after = await read_run(database, run.id)
    assert (after.status, after.attempt, after.lease_epoch) == (
        RunStatus.RUNNING,
        1,
        1,
    )


async def test_a_lease_is_renewed_by_its_holder_until_it_runs_out(
    database: Database,
) -> None:
    run = await claimed(database, await a_ready_run(database))
    until = NOON + timedelta(seconds=60)

    async def beat(epoch: int, at_s: float) -> bool:
        now = NOON + timedelta(seconds=at_s)
        entry = Entry(run_id=run.id, epoch=epoch, now=now, until=until)
        async with database.writing() as conn:
            return (await enter(conn, [entry]))[run.id].held

    assert await beat(1, 10)
    assert not await beat(0, 10)
    assert not await beat(1, 60)


async def test_the_end_is_written_once_and_only_under_its_lease(
    database: Database,
) -> None:
    run = await claimed(database, await a_ready_run(database))
    async with database.reading() as conn:
        logs = await digest_logs(conn, [run.id])
    text = execution_log(run.id, logs[run.id], recorded_by="test")
    end = an_end(run, None, log=text)

    await write(database, run.instance_id, end)
    with pytest.raises(ConflictError):
        await write(database, run.instance_id, end)

    after = await read_run(database, run.id)
    assert (after.status, after.completed_at) == (RunStatus.COMPLETED, LATER)
    assert after.result == {
        "code": 0,
        "message": "it ended",
        "failure_reason": None,
        "duration_seconds": 1.5,
        "attempt": 1,
    }
    assert after.lease_owner is None
    assert await messages(database, run) == ["queued", "started", "it ended"]


async def test_a_transient_failure_sends_the_same_row_back(
    database: Database,
) -> None:
    run = await claimed(database, await a_ready_run(database))

    await write(database, run.instance_id, an_end(run, FailureReason.TIMEOUT))

    after = await read_run(database, run.id)
    assert (after.status, after.attempt) == (RunStatus.PENDING, 1)
    assert after.not_before is not None
    with pytest.raises(ConflictError):
        await claimed(database, after)
    again = await claimed(database, after, now=after.not_before)
    assert (again.attempt, again.failure_reason) == (2, None)
    assert again.lease_epoch > run.lease_epoch


async def test_a_foreign_lease_that_was_renewed_is_left_alone(
    database: Database,
) -> None:
    run = await claimed(database, await a_ready_run(database))
    lost = FailureReason.TRANSIENT_INFRASTRUCTURE

    with pytest.raises(ConflictError):
        await write(
            database,
            run.instance_id,
            an_end(run, lost, lease_over_by=NOON + timedelta(seconds=29)),
        )


async def test_a_cancel_of_a_running_run_is_asked_for_once(database: Database) -> None:
    run = await claimed(database, await a_ready_run(database))

    async with database.writing() as conn:
        await request_cancel(conn, ALICE, run.id, "enough", LATER)
        after = await request_cancel(conn, ALICE, run.id, "again", LATER)

    assert (after.status, after.cancellation_reason) == (RunStatus.RUNNING, "enough")
    async with database.writing() as conn:
        entry = Entry(run_id=run.id, epoch=1, now=LATER, until=LATER)
        beat = (await enter(conn, [entry]))[run.id]
    assert beat.run is not None
    assert beat.run.cancellation_reason == "enough"


async def test_ending_whatever_runs_takes_the_lease_away(database: Database) -> None:
    run = await claimed(database, await a_ready_run(database))
    cancel = CancelActiveRun(by="user:1", reason="override", now=LATER)

    assert await write(database, run.instance_id, cancel) == run.id
    assert await write(database, run.instance_id, cancel) is None

    after = await read_run(database, run.id)
    assert (after.status, after.failure_reason) == (
        RunStatus.CANCELLED,
        FailureReason.CANCELLED,
    )
    with pytest.raises(ConflictError):
        await write(database, run.instance_id, an_end(run, None))


async def test_s6_another_owners_runs_are_not_there(database: Database) -> None:
    run = await a_ready_run(database)

    async with database.reading() as conn:
        assert await runs.get_run(conn, BOB, run.id) is None
        assert await runs.list_runs(conn, runs.RunFilter(owner_id=BOB)) == []
        assert await run_events.list_log(conn, BOB, run.id) == []
        with pytest.raises(NotFoundError):
            await runs.owner_of(conn, BOB, run.instance_id)
        assert await runs.owner_of(conn, ALICE, run.instance_id) == ALICE


async def test_lists_are_filtered_and_newest_first(database: Database) -> None:
    playbook = await add_playbook(database)
    made = [
        await add_run(database, await add_instance(database), playbook)
        for _ in range(3)
    ]
    running = await claimed(database, made[1])

    async def ids(before: int = 2**62, limit: int = 9, **wanted: Any) -> list[int]:
        async with database.reading() as conn:
            found = await runs.list_runs(
                conn, runs.RunFilter(**wanted), before=before, limit=limit
            )
        return [run.id for run in found]

    assert await ids() == [made[2].id, made[1].id, made[0].id]
    assert await ids(before=made[2].id, limit=1) == [made[1].id]
    assert await ids(status=RunStatus.RUNNING) == [running.id]
    assert await ids(instance_id=made[0].instance_id) == [made[0].id]
    assert await ids(playbook="other") == []
    assert await ids(approval_state=ApprovalState.PENDING) == []


async def test_ready_runs_come_by_deadline_then_priority_then_age(
    database: Database,
) -> None:
    plain = await add_playbook(database)
    urgent = await add_playbook(database, key="urgent", sla_duration_s=60)
    made = [
        await add_run(database, await add_instance(database), playbook)
        for playbook in (plain, plain, urgent)
    ]
    async with database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_remediation_runs SET priority = 1 WHERE id = %s",
            [made[1].id],
        )

    async with database.reading() as conn:
        ready = await dispatch.list_ready(conn, NOON, per_owner=9, limit=9)
        few = await dispatch.list_ready(conn, NOON, per_owner=1, limit=9)

    assert [run.id for run in ready] == [made[2].id, made[1].id, made[0].id]
    assert [run.id for run in few] == [made[2].id]


@pytest.mark.parametrize("scope", ["instance", "owner", "all"])
async def test_a_hold_keeps_runs_from_starting(database: Database, scope: str) -> None:
    run = await a_ready_run(database)
    async with database.writing() as conn:
        await conn.execute(
            """
            INSERT INTO trust_holds
                   (scope, runtime_vm_instance_id, owner_id, reason, by)
            VALUES (%(scope)s, CASE %(scope)s WHEN 'instance' THEN %(instance)s END,
                    CASE %(scope)s WHEN 'owner' THEN %(owner)s END, 'wait', 'user:1')
            """,
            {"scope": scope, "instance": run.instance_id, "owner": ALICE},
        )

    async with database.reading() as conn:
        assert await dispatch.list_ready(conn, NOON, per_owner=9, limit=9) == []


async def test_what_waited_too_long_is_found(database: Database) -> None:
    gated = await a_ready_run(database, approval_required=True)
    free = await add_run(
        database,
        await add_instance(database),
        await add_playbook(database, key="free"),
    )

    async def overdue(approval_ttl_s: float, queue_ttl_s: float) -> list[int]:
        async with database.reading() as conn:
            found = await dispatch.list_overdue(
                conn,
                LATER,
                approval_ttl_s=approval_ttl_s,
                queue_ttl_s=queue_ttl_s,
                limit=9,
            )
        return [run.id for run in found]

    assert await overdue(60, 60) == []
    assert await overdue(5, 60) == [gated.id]
    assert await overdue(60, 5) == [free.id]


async def test_a_breached_deadline_is_told_once(database: Database) -> None:
    run = await a_ready_run(database, sla_duration_s=5)

    async with database.writing() as conn:
        assert await dispatch.list_breached(conn, NOON, limit=9) == []
        assert await dispatch.list_breached(conn, LATER, limit=9) == [run.id]
        assert await tell_breach(conn, run.id, NOON) is False
        assert await tell_breach(conn, run.id, LATER) is True
        assert await tell_breach(conn, run.id, LATER) is False
        assert await dispatch.list_breached(conn, LATER, limit=9) == []

    assert await messages(database, run) == ["queued", "sla-breached"]
    after = await read_run(database, run.id)
    assert (after.sla_breached_at, after.version) == (LATER, run.version)


async def test_what_ends_late_says_so_itself(database: Database) -> None:
    run = await a_ready_run(database, sla_duration_s=5)
    late = called_off(run, FailureReason.CANCELLED, "too late")

    await write(
        database,
        run.instance_id,
        FinishRun(run_id=run.id, outcome=late, now=LATER, by="test"),
    )

    assert await messages(database, run) == ["queued", "sla-breached", "too late"]
    assert (await read_run(database, run.id)).sla_breached_at == LATER


async def test_it_takes_as_many_people_as_the_playbook_says(database: Database) -> None:
    metadata = {"script": "true", "approvals_required": 2}
    run = await a_ready_run(database, approval_required=True, metadata=metadata)

    await write(database, run.instance_id, a_ruling(run))
    half = await read_run(database, run.id)
    with pytest.raises(ConflictError, match="approved already"):
        await write(database, run.instance_id, a_ruling(half))
    with pytest.raises(SelfApprovalError):
        await write(database, run.instance_id, a_ruling(half, by=ALICE))
    await write(database, run.instance_id, a_ruling(half, by=OwnerId(9)))
    whole = await read_run(database, run.id)

    assert (half.approval_state, half.approvals_given) == (ApprovalState.PENDING, 1)
    assert (whole.approval_state, whole.approvals_given) == (ApprovalState.APPROVED, 2)
    assert await messages(database, run) == [
        "queued",
        "approved by user:8 (1 of 2)",
        "approved by user:9 (2 of 2)",
    ]


async def test_one_rejection_outweighs_what_was_given(database: Database) -> None:
    metadata = {"script": "true", "approvals_required": 2}
    run = await a_ready_run(database, approval_required=True, metadata=metadata)
    await write(database, run.instance_id, a_ruling(run))
    half = await read_run(database, run.id)

    await write(database, run.instance_id, a_ruling(half, approve=False, by=OwnerId(9)))

    after = await read_run(database, run.id)
    assert (after.status, after.approval_state) == (
        RunStatus.CANCELLED,
        ApprovalState.REJECTED,
    )


async def test_an_unknown_run_is_not_found(database: Database) -> None:
    async with database.writing() as conn:
        with pytest.raises(NotFoundError):
            await request_cancel(conn, None, RunId(99), "x", NOON)


async def test_an_owners_limit_holds_for_whoever_claims(database: Database) -> None:
    first = await a_ready_run(database)
    second = await add_run(
        database,
        await add_instance(database),
        await add_playbook(database, key="other"),
    )

    def claim(run: Run, limit: int) -> ClaimRun:
        return ClaimRun(
            run_id=run.id, lease_owner="x", lease_s=9, now=NOON, owner_limit=limit
        )

    await write(database, first.instance_id, claim(first, 1))
    with pytest.raises(ConflictError):
        await write(database, second.instance_id, claim(second, 1))
    await write(database, second.instance_id, claim(second, 2))
