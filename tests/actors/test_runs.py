"""A run's actor: its program, its log, its lease, and its end."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import psycopg
import pytest

from tests.actors.fix_remediation import Fabric, a_fabric
from tests.db.fix_runs import ALICE, BOB, add_instance, add_playbook
from trustfabric.actors.dispatch import CancelRun, DecideApproval, EnqueueRun
from trustfabric.actors.trust import ApplyChange
from trustfabric.db import artifacts
from trustfabric.db.run_writes import CancelActiveRun
from trustfabric.db.session import Database
from trustfabric.domain.approvals import Ruling
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.runs import Run, RunStatus
from trustfabric.domain.specs import ExecutorType
from trustfabric.domain.trust import Change, Lifecycle, Signal, Tag
from trustfabric.drivers.subprocesses import marked


@pytest.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Fabric]:
    async with a_fabric(database, database_url) as started:
        yield started


async def enqueued(fabric: Fabric, instance: InstanceId, **metadata: object) -> Run:
    """Enqueue a playbook of this metadata that needs nobody's consent."""
    metadata.setdefault("script", "echo fixed")
    playbook = await add_playbook(fabric.database, key="mine", metadata=metadata)
    order = EnqueueRun(
        owner=ALICE, by=ALICE, instance_id=instance, playbook=playbook.key
    )
    run = await fabric.ask(order)
    assert isinstance(run, Run)
    return run


async def update(fabric: Fabric, run: Run, change: LiteralString) -> None:
    async with fabric.database.writing() as conn:
        await conn.execute(
            f"UPDATE runtime_vm_remediation_runs SET {change} WHERE id = %s", [run.id]
        )


async def events(fabric: Fabric, run: Run) -> list[tuple[int, str, str]]:
    async with fabric.database.reading() as conn:
        cursor = await conn.execute(
            "SELECT seq, kind, message FROM runtime_vm_remediation_events"
            " WHERE run_id = %s ORDER BY seq",
            [run.id],
        )
        return [(row[0], row[1], row[2]) for row in await cursor.fetchall()]


async def assert_the_log_is_recorded(fabric: Fabric, run: Run) -> bytes:
    """Return it, as its digest says that it is."""
    async with fabric.database.reading() as conn:
        (log,) = await artifacts.list_artifacts(conn, ALICE, run.id)
        content = await artifacts.read_artifact(conn, log)
    assert log.sha256 == hashlib.sha256(content).hexdigest()
    assert log.size == len(content)
    return content


async def test_a_run_is_executed_logged_and_has_the_instance_attested(
    fabric: Fabric,
) -> None:
    instance = await add_instance(fabric.database)

    queued = await enqueued(fabric, instance, script="echo one; echo two")
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.COMPLETED)

    assert run.id == queued.id
    assert await events(fabric, run) == [
        (1, "status", "queued"),
        (2, "status", "started"),
        (3, "log", "attempt 1 begins"),
        (4, "log", "one"),
        (5, "log", "two"),
        (6, "status", "exit code 0"),
    ]
    posture = await fabric.until_posture(instance, lambda _: fabric.asked)
    assert (posture.lifecycle, posture.remediation_state) == (
        Lifecycle.REMEDIATING,
        Tag.AUTOMATION_COMPLETE,
    )
    assert posture.remediation_attempts == 1
    assert (fabric.asked[0].instance_id, fabric.asked[0].purpose) == (
        instance,
        "post-run",
    )
    async with fabric.database.reading() as conn:
        (log,) = await artifacts.list_artifacts(conn, ALICE, run.id)
        assert (await artifacts.read_artifact(conn, log)).count(b"stdout") == 2


@pytest.mark.parametrize(
    "change",
    [
        """playbook_snapshot = jsonb_set(
            playbook_snapshot, '{metadata,script}', '"echo other"')""",
        """playbook_snapshot = playbook_snapshot || '{"parameters": {"a": 2}}'""",
        """automation_payload = '{"a": 2}'""",
        """content_sha256 = repeat('0', 64)""",
    ],
    ids=["script", "parameters", "payload", "digest"],
)
async def test_what_was_changed_in_the_database_since_it_was_agreed_to_never_runs(
    fabric: Fabric, change: LiteralString
) -> None:
    instance = await fabric.quarantined()
    playbook = await add_playbook(
        fabric.database,
        key="mine",
        metadata={"script": "echo fixed"},
        approval_required=True,
    )
    order = EnqueueRun(
        owner=ALICE, by=ALICE, instance_id=instance, playbook=playbook.key
    )
    run = await fabric.ask(order)
    later = "not_before = now() + interval '1 hour'"
    await update(fabric, run, later)
    ruling = Ruling(approve=True, by=BOB, expected_version=run.version)
    await fabric.ask(DecideApproval(owner=None, run_id=run.id, ruling=ruling))
    await update(fabric, run, f"not_before = NULL, {change}")
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.FAILED)

    assert run.failure_reason is FailureReason.POLICY_DENIED
    assert not any("other" in message for *_, message in await events(fabric, run))
    assert (await fabric.posture(instance)).remediation_state is Tag.POLICY_DENIED


async def test_a_failure_puts_the_instance_back_in_quarantine(fabric: Fabric) -> None:
    instance = await fabric.quarantined()

    await enqueued(fabric, instance, script="echo no >&2; exit 3")
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.FAILED)

    assert run.failure_reason is FailureReason.EXECUTION_FAILURE
    assert run.last_error == "exit code 3"
    posture = await fabric.posture(instance)
    assert (posture.lifecycle, posture.remediation_state) == (
        Lifecycle.QUARANTINED,
        Tag.AUTOMATION_FAILED,
    )


async def test_a_transient_failure_is_tried_again_up_to_its_limit(
    fabric: Fabric,
) -> None:
    instance = await fabric.quarantined()

    await enqueued(fabric, instance, script="exit 75")
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.FAILED)

    assert run.attempt == 3
    assert run.failure_reason is FailureReason.DEPENDENCY_UNAVAILABLE
    posture = await fabric.posture(instance)
    assert posture.remediation_state is Tag.TRANSIENT_FAILURE
    assert posture.remediation_attempts == 1  # one run started, and was tried thrice


async def test_the_log_of_all_attempts_is_recorded_with_the_last(
    fabric: Fabric,
) -> None:
    instance = await fabric.quarantined()

    await enqueued(fabric, instance, script="echo again; exit 75")
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.FAILED)

    content = await assert_the_log_is_recorded(fabric, run)
    assert content.count(b"again") == run.attempt == 3


async def test_an_executor_that_is_not_there_is_never_another_one(
    fabric: Fabric,
) -> None:
    await add_playbook(
        fabric.database,
        executor_type=ExecutorType.ANSIBLE,
        metadata={"playbook": "site.yml", "retry_limit": 0},
    )
    instance = await fabric.quarantined()

    run = await fabric.run_of(instance, lambda r: not r.status.active)

    assert run.failure_reason is FailureReason.EXECUTOR_UNAVAILABLE
    assert (await fabric.posture(instance)).remediation_state is (
        Tag.EXECUTOR_UNAVAILABLE
    )


async def test_a_cancel_stops_the_program(fabric: Fabric) -> None:
    instance = await fabric.quarantined()
    run = await enqueued(
        fabric,
        instance,
        script="trap 'echo bye; exit 1' TERM; echo on; sleep 60 & wait",
    )
    await fabric.until_line(run.id, "on")

    asked = await fabric.ask(
        CancelRun(owner=ALICE, run_id=run.id, by="user:7", reason="enough")
    )
    after = await fabric.run_of(instance, lambda r: not r.status.active)

    assert asked.cancellation_reason == "enough"
    assert (after.status, after.failure_reason) == (
        RunStatus.CANCELLED,
        FailureReason.CANCELLED,
    )
    assert after.cancellation_reason == "enough"
    assert await fabric.lines(run.id) == ["on", "bye"]
    assert (await fabric.posture(instance)).lifecycle is Lifecycle.QUARANTINED


@pytest.mark.parametrize("on_lost", ["fail", "retry"])
async def test_a_killed_actor_takes_its_program_along_and_the_run_goes_on_or_ends(
    fabric: Fabric, on_lost: str
) -> None:
    instance = await fabric.quarantined()
    run = await enqueued(
        fabric,
        instance,
        on_lost=on_lost,
        script=(
            'n=$TRUSTFABRIC_ATTEMPT; echo "on $n"; if [ "$n" = 1 ]; then sleep 60; fi'
        ),
    )
    await fabric.until_line(run.id, "on 1")

    await fabric.runtime.kill(f"fabric/remediation/runs/run:{run.id}")

    assert marked(f"{fabric.executor._workplace.installation}-{run.id}-1") == []
    after = await fabric.run_of(instance, lambda r: not r.status.active)
    expected = RunStatus.FAILED if on_lost == "fail" else RunStatus.COMPLETED
    assert after.status is expected
    assert "on 1" in await fabric.lines(run.id)


async def test_a_run_that_was_ended_from_outside_loses_its_program(
    fabric: Fabric,
) -> None:
    instance = await fabric.quarantined()
    run = await enqueued(fabric, instance, script="echo on; sleep 60")
    await fabric.until_line(run.id, "on")

    now = datetime.now(UTC)
    await fabric.trust.ask(
        ApplyChange(
            instance_id=instance,
            change=Change(
                signal=Signal.QUARANTINED_BY_HAND, actor="user:1", reason="stop"
            ),
            companions=(CancelActiveRun(by="user:1", reason="stop", now=now),),
        ),
        within_s=5,
    )

    assert (await fabric.read(run.id)).status is RunStatus.CANCELLED
    await fabric.until_gone(run.id)


@pytest.mark.slow
async def test_a_lease_that_can_not_be_renewed_ends_the_program_in_time(
    database: Database, database_url: str
) -> None:
    async with a_fabric(database, database_url, lease_s=1.0) as fabric:
        instance = await fabric.quarantined()
        run = await enqueued(fabric, instance, script="echo on; sleep 60")
        await fabric.until_line(run.id, "on")
        async with database.writing() as conn:
            await conn.execute(
                "SELECT 1 FROM runtime_vm_remediation_runs WHERE id = %s FOR UPDATE",
                [run.id],
            )
            await fabric.until_gone(run.id)

        after = await fabric.run_of(instance, lambda r: not r.status.active)
    assert after.failure_reason is FailureReason.TRANSIENT_INFRASTRUCTURE


async def test_a_flood_of_output_arrives_whole_and_in_order(fabric: Fabric) -> None:
    instance = await fabric.quarantined()
    run = await enqueued(fabric, instance, script="seq 1 3000")

    await fabric.run_of(instance, lambda r: not r.status.active)

    async with fabric.database.reading() as conn:
        cursor = await conn.execute(
            "SELECT array_agg(message::bigint ORDER BY seq) = array_agg(n)"
            "  FROM (SELECT e.seq, e.message, row_number() OVER (ORDER BY seq) AS n"
            "          FROM runtime_vm_remediation_events e"
            "         WHERE run_id = %s AND stream = 'stdout') t",
            [run.id],
        )
        assert (await cursor.fetchone()) == (True,)


async def test_a_breached_deadline_is_an_event(fabric: Fabric) -> None:
    instance = await fabric.quarantined()
    playbook = await add_playbook(
        fabric.database, key="gated", approval_required=True, sla_duration_s=3600
    )
    run = await fabric.ask(
        EnqueueRun(owner=None, by=BOB, instance_id=instance, playbook=playbook.key)
    )
    async with fabric.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_remediation_runs SET sla_deadline = %s",
            [datetime.now(UTC) - timedelta(seconds=1)],
        )

    await fabric.run_of(instance, lambda r: r.sla_breached_at)
    told = [message for _, _, message in await events(fabric, run)]
    assert told == ["queued", "sla-breached"]


@pytest.mark.slow
async def test_no_log_line_is_lost_or_doubled_when_connections_die(
    fabric: Fabric, database_url: str
) -> None:
    instance = await fabric.quarantined()
    run = await enqueued(
        fabric,
        instance,
        script="for n in $(seq 1 200); do echo $n; sleep 0.005; done",
    )
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True
    ) as conn:
        for cut in range(10):
            await fabric.until_printed(run.id, 15 * cut)
            await conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

        while (await fabric.read_anyway(run.id)).status.active:
            await fabric.until_printed(run.id, 200)
    assert (await fabric.read_anyway(run.id)).status is RunStatus.COMPLETED
    assert await fabric.lines(run.id) == [str(n) for n in range(1, 201)]
    await assert_the_log_is_recorded(fabric, run)


@pytest.mark.slow
async def test_runs_end_once_while_the_actors_around_them_are_killed(
    fabric: Fabric,
) -> None:
    await add_playbook(fabric.database, metadata={"script": "echo on; sleep 0.3"})
    instances = [await fabric.quarantined() for _ in range(4)]

    around = ("trust", "ledger", "remediation/dispatcher", "broadcaster")
    for at, path in enumerate(around * 3):
        await fabric.runtime.kill(f"fabric/{path}")
        await fabric.run_of(instances[at % 4], lambda _: True)

    for instance in instances:
        run = await fabric.run_of(instance, lambda r: not r.status.active)
        assert (run.status, run.attempt) == (RunStatus.COMPLETED, 1)
        assert await fabric.lines(run.id) == ["on"]


async def test_what_the_last_attempt_leaves_is_kept_with_its_run(
    fabric: Fabric,
) -> None:
    instance = await add_instance(fabric.database)

    await enqueued(
        fabric,
        instance,
        script=(
            'cd "$TRUSTFABRIC_OUTPUT_DIR"; echo "$TRUSTFABRIC_ATTEMPT" > attempt.txt;'
            " echo '{\"n\": 7}' > result.json;"
            ' [ "$TRUSTFABRIC_ATTEMPT" = 2 ] || exit 75'
        ),
    )
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.COMPLETED)

    assert run.result is not None
    assert run.result["output"] == {"n": 7}
    async with fabric.database.reading() as conn:
        kept = await artifacts.list_artifacts(conn, ALICE, run.id)
        content = await artifacts.read_artifact(conn, kept[0])
    assert [one.artifact_type for one in kept] == ["output", "result", "execution-log"]
    assert content == b"2\n"
    assert kept[0].metadata == {"name": "attempt.txt", "attempt": 2}
