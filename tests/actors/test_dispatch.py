"""The Dispatcher: what it stages, whom it asks, and what it finds after a crash."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.actors.fix_remediation import (
    SETTINGS,
    Fabric,
    a_data_dir,
    a_fabric,
    an_executor,
)
from tests.builders import insert_owner
from tests.db.fix_runs import (
    ALICE,
    BOB,
    KEY,
    a_draft,
    add_instance,
    add_playbook,
    add_run,
    write,
)
from trustfabric.actors.dispatch import (
    CancelRun,
    DecideApproval,
    EnqueueRun,
    RetryRun,
)
from trustfabric.actors.playbooks import (
    CreatePlaybook,
    DeletePlaybook,
    UpdatePlaybook,
)
from trustfabric.db import run_events, runs
from trustfabric.db.claims import ClaimRun
from trustfabric.db.session import Database
from trustfabric.domain.approvals import Ruling
from trustfabric.domain.executors import LogStream, RemediationLogEvent
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.playbooks import Author, PlaybookEdit
from trustfabric.domain.run_events import begins, log_event
from trustfabric.domain.runs import ApprovalState, Run, RunStatus
from trustfabric.domain.trust import Lifecycle, Signal, Snapshot, Tag
from trustfabric.drivers.subprocesses import Launch, Program
from trustfabric.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    RunActiveError,
    SelfApprovalError,
    UnknownPlaybookError,
    VersionConflictError,
    VersionRequiredError,
)
from trustfabric.supervision import ManualClock

ADMIN = Author(owner_id=OwnerId(1), is_admin=True)


@pytest.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Fabric]:
    async with database.writing() as conn:
        for owner in (OwnerId(1), ALICE, BOB):
            await insert_owner(conn, owner)
    async with a_fabric(database, database_url) as started:
        yield started


def tagged(tag: Tag) -> Any:
    def wanted(posture: Snapshot) -> bool:
        return posture.remediation_state is tag

    return wanted


def an_order(instance: InstanceId, **changes: Any) -> EnqueueRun:
    order = EnqueueRun(owner=ALICE, by=ALICE, instance_id=instance, playbook=KEY)
    return replace(order, **changes)


def a_decision(run: Run, *, approve: bool = True, by: OwnerId = BOB) -> DecideApproval:
    ruling = Ruling(approve=approve, by=by, expected_version=run.version)
    return DecideApproval(owner=None, run_id=run.id, ruling=ruling)


# --- staging --------------------------------------------------------------------


async def test_a_quarantine_stages_the_owners_playbook_and_waits_for_approval(
    fabric: Fabric,
) -> None:
    await add_playbook(fabric.database, owner_id=None)
    own = await add_playbook(fabric.database, approval_required=True, sla_duration_s=60)

    instance = await fabric.quarantined()
    posture = await fabric.until_posture(instance, tagged(Tag.PENDING_APPROVAL))
    run = await fabric.run_of(instance, lambda _: True)

    assert posture.lifecycle is Lifecycle.REMEDIATING
    assert run.playbook_id == own.id
    assert run.approval_state is ApprovalState.PENDING
    assert run.requested_by == "actor:dispatcher"
    assert run.sla_deadline == run.queued_at + timedelta(seconds=60)
    assert run.metadata["trigger"]["transition_reason"] == "test: untrusted-verdict"


async def test_what_needs_no_consent_runs_at_once(fabric: Fabric) -> None:
    await add_playbook(fabric.database)

    instance = await fabric.quarantined()
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.COMPLETED)

    assert run.approval_state is ApprovalState.AUTO_APPROVED
    assert await fabric.lines(run.id) == ["fixed"]


async def test_an_operators_quarantine_stages_too(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)

    await fabric.change(instance, Signal.QUARANTINED_BY_HAND)

    await fabric.until_posture(instance, tagged(Tag.PENDING_APPROVAL))


async def test_without_a_playbook_that_is_noted_once(fabric: Fabric) -> None:
    instance = await fabric.quarantined()
    noted = await fabric.until_posture(instance, tagged(Tag.NO_PLAYBOOK))

    await fabric.quiet()

    assert await fabric.posture(instance) == noted
    assert noted.lifecycle is Lifecycle.QUARANTINED


async def test_a_quarantine_from_before_the_start_is_found(
    database: Database, database_url: str
) -> None:
    async with a_fabric(database, database_url) as earlier:
        await earlier.runtime.kill("fabric/remediation")
        instance = await earlier.quarantined()
        await earlier.runtime.stop()
    await add_playbook(database, approval_required=True)
    async with database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_trust_registry"
            " SET remediation_state = 'remediation:investigate'"
        )

    async with a_fabric(database, database_url) as fabric:
        await fabric.until_posture(instance, tagged(Tag.PENDING_APPROVAL))


async def test_attempts_end(database: Database, database_url: str) -> None:
    settings = replace(SETTINGS, max_attempts=1)
    async with a_fabric(database, database_url, settings) as fabric:
        await add_playbook(database)
        instance = await fabric.quarantined()
        await fabric.run_of(instance, lambda r: r.status is RunStatus.COMPLETED)
        async with database.writing() as conn:
            await conn.execute(
                "UPDATE runtime_vm_trust_registry SET lifecycle_state = 'suspect'"
            )

        await fabric.change(instance, Signal.UNTRUSTED_VERDICT)

        posture = await fabric.until_posture(instance, tagged(Tag.ATTEMPTS_EXHAUSTED))
    assert posture.lifecycle is Lifecycle.QUARANTINED


async def test_a_hold_keeps_from_staging_until_it_is_released(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    async with fabric.database.writing() as conn:
        await conn.execute(
            "INSERT INTO trust_holds (scope, reason, by)"
            " VALUES ('all', 'wait', 'user:1')"
        )
    instance = await fabric.quarantined()
    held = await fabric.until_posture(instance, tagged(Tag.HELD))
    await fabric.quiet()
    assert (await fabric.posture(instance)).version == held.version

    async with fabric.database.writing() as conn:
        await conn.execute("UPDATE trust_holds SET released_at = now()")

    await fabric.until_posture(instance, tagged(Tag.PENDING_APPROVAL))


async def test_a_run_that_waits_is_taken_up_by_the_quarantine(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)
    run = await fabric.ask(an_order(instance))
    assert (await fabric.posture(instance)).lifecycle is Lifecycle.SUSPECT

    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)

    await fabric.until_posture(instance, lambda p: p.lifecycle is Lifecycle.REMEDIATING)
    assert (await fabric.run_of(instance, lambda _: True)).id == run.id


# --- people's orders --------------------------------------------------------------


async def test_an_enqueue_answers_with_the_run(fabric: Fabric) -> None:
    playbook = await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)

    run = await fabric.ask(
        an_order(instance, metadata={"tag": "t"}, automation_payload={"a": 1})
    )

    assert (run.playbook_id, run.requested_by) == (playbook.id, "user:7")
    assert (run.metadata, run.automation_payload) == ({"tag": "t"}, {"a": 1})
    assert run.assigned_owner_id == ALICE


async def test_of_racing_enqueues_one_is_made(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)

    outcomes = await asyncio.gather(
        *(fabric.ask(an_order(instance)) for _ in range(5)), return_exceptions=True
    )

    assert sum(isinstance(each, Run) for each in outcomes) == 1
    assert sum(isinstance(each, RunActiveError) for each in outcomes) == 4


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"playbook": "no-such"}, UnknownPlaybookError),
        ({"playbook": "no\0such"}, UnknownPlaybookError),
        ({"instance_id": InstanceId(999)}, NotFoundError),
        ({"owner": BOB, "by": BOB}, NotFoundError),
        ({"assigned_owner_id": BOB}, ForbiddenError),
        ({"owner": None, "assigned_owner_id": OwnerId(999)}, NotFoundError),
        ({"metadata": {"a": ["b\0"]}}, InvalidError),
        ({"metadata": {"accelerators": [{"posture": "bad"}]}}, InvalidError),
        ({"automation_payload": {"a": 2**70}}, InvalidError),
        ({"automation_payload": {"a": "\ud800"}}, InvalidError),
        ({"automation_payload": {"a": float("nan")}}, InvalidError),
    ],
)
async def test_bad_orders_are_refused_and_change_nothing(
    fabric: Fabric, changes: dict[str, Any], error: type[Exception]
) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)
    before = await fabric.posture(instance)

    with pytest.raises(error):
        await fabric.ask(an_order(instance, **changes))

    assert await fabric.posture(instance) == before


async def test_s7_an_approval_needs_another_person(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)
    run = await fabric.ask(an_order(instance))

    with pytest.raises(SelfApprovalError):
        await fabric.ask(a_decision(run, by=ALICE))
    approved = await fabric.ask(a_decision(run))

    assert approved.approval_decided_by == "user:8"
    await fabric.run_of(instance, lambda r: r.status is RunStatus.COMPLETED)


async def test_what_the_runtime_staged_its_owner_may_approve(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await fabric.quarantined()
    run = await fabric.run_of(instance, lambda _: True)

    await fabric.ask(a_decision(run, by=ALICE))

    await fabric.run_of(instance, lambda r: r.status is RunStatus.COMPLETED)


async def test_a_rejection_returns_the_instance_and_nothing_is_staged_again(
    fabric: Fabric,
) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await fabric.quarantined()
    run = await fabric.run_of(instance, lambda _: True)

    rejected = await fabric.ask(a_decision(run, approve=False))
    await fabric.quiet()

    assert rejected.status is RunStatus.CANCELLED
    posture = await fabric.posture(instance)
    assert (posture.lifecycle, posture.remediation_state) == (
        Lifecycle.QUARANTINED,
        Tag.APPROVAL_REJECTED,
    )


async def test_s9_a_stale_decision_writes_nothing(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await fabric.quarantined()
    run = await fabric.run_of(instance, lambda _: True)
    before = await fabric.posture(instance)

    with pytest.raises(VersionConflictError):
        await fabric.ask(a_decision(replace(run, version=9)))
    with pytest.raises(NotFoundError):
        await fabric.ask(replace(a_decision(run), owner=BOB))

    assert await fabric.posture(instance) == before
    assert await fabric.read(run.id) == run


async def test_a_waiting_run_is_cancelled_at_once(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await fabric.quarantined()
    run = await fabric.run_of(instance, lambda _: True)
    cancel = CancelRun(owner=ALICE, run_id=run.id, by="user:7", reason="not now")

    cancelled = await fabric.ask(cancel)
    with pytest.raises(ConflictError):
        await fabric.ask(cancel)

    assert (cancelled.status, cancelled.failure_reason) == (
        RunStatus.CANCELLED,
        FailureReason.CANCELLED,
    )
    assert cancelled.cancellation_reason.startswith("not now")
    posture = await fabric.posture(instance)
    assert posture.remediation_state is Tag.AUTOMATION_CANCELLED


async def test_a_retry_is_a_new_run_of_an_ended_one(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)
    old = await fabric.ask(an_order(instance, metadata={"tag": "t"}))
    retry = RetryRun(owner=ALICE, run_id=old.id, by=ALICE)
    with pytest.raises(ConflictError):
        await fabric.ask(retry)
    await fabric.ask(CancelRun(owner=ALICE, run_id=old.id, by="user:7"))

    new = await fabric.ask(retry)

    assert new.id != old.id
    assert (new.status, new.metadata) == (RunStatus.PENDING, {"tag": "t"})


# --- after a crash, and by the clock --------------------------------------------------


async def claimed(
    database: Database, owner: str, lease_s: float, **playbook: Any
) -> Run:
    """A run that some runtime had started when it died."""
    instance = await add_instance(database)
    run = await add_run(database, instance, await add_playbook(database, **playbook))
    now = datetime.now(UTC)
    claim = ClaimRun(run_id=run.id, lease_owner=owner, lease_s=lease_s, now=now)
    await write(database, instance, claim)
    async with database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_trust_registry SET lifecycle_state = 'remediating'"
        )
    return run


async def begun(database: Database, run: Run) -> None:
    """Note that the program of the run's first attempt was started."""
    async with database.writing() as conn:
        line = RemediationLogEvent(LogStream.SYSTEM, begins(1))
        locked = await runs.lock_run(conn, run.id)
        events = [log_event(line, datetime.now(UTC))]
        await run_events.append(conn, [(locked, events)])


async def test_what_this_runtime_left_running_is_ended_and_its_program_killed(
    database: Database, database_url: str
) -> None:
    run = await claimed(database, "here", 300)
    await begun(database, run)
    with a_data_dir() as data_dir, ThreadPoolExecutor(1) as threads:
        installation = an_executor(data_dir, threads)._workplace.installation
        orphan = Program.start(
            Launch(
                argv=["sleep", "60"],
                cwd=data_dir,
                env={"PATH": os.environ["PATH"]},
                mark=f"{installation}-{run.id}-1",
            )
        )

        async with a_fabric(database, database_url, data_dir=data_dir) as fabric:
            after = await fabric.run_of(run.instance_id, lambda r: not r.status.active)

        await orphan.wait()
        assert orphan.destroy() == -signal.SIGKILL

    assert after.failure_reason is FailureReason.TRANSIENT_INFRASTRUCTURE


async def test_what_was_claimed_but_never_begun_is_begun(
    database: Database, database_url: str
) -> None:
    run = await claimed(database, "here", 300)

    async with a_fabric(database, database_url) as fabric:
        after = await fabric.run_of(run.instance_id, lambda r: not r.status.active)

    assert (after.status, after.attempt) == (RunStatus.COMPLETED, 1)


async def test_what_another_never_began_is_tried_again(
    database: Database, database_url: str
) -> None:
    run = await claimed(database, "there", 0.1)

    async with a_fabric(database, database_url) as fabric:
        after = await fabric.run_of(run.instance_id, lambda r: not r.status.active)

    assert (after.status, after.attempt) == (RunStatus.COMPLETED, 2)


async def test_anothers_run_is_left_alone_until_its_lease_runs_out(
    database: Database, database_url: str
) -> None:
    clock = ManualClock(datetime.now(UTC))
    run = await claimed(database, "there", 60)
    await begun(database, run)

    async with a_fabric(database, database_url, clock=clock) as fabric:
        clock.advance(59)
        await fabric.quiet()
        assert (await fabric.read(run.id)).status is RunStatus.RUNNING
        clock.advance(2)
        await fabric.quiet()
        after = await fabric.read(run.id)
        posture = await fabric.posture(run.instance_id)

    assert after.failure_reason is FailureReason.TRANSIENT_INFRASTRUCTURE
    assert posture.lifecycle is Lifecycle.QUARANTINED


async def test_a_lost_run_is_tried_again_where_its_playbook_says_so(
    database: Database, database_url: str
) -> None:
    metadata = {"script": "echo again", "on_lost": "retry"}
    run = await claimed(database, "here", 300, metadata=metadata)
    await begun(database, run)

    async with a_fabric(database, database_url) as fabric:
        after = await fabric.run_of(
            run.instance_id, lambda r: r.status is RunStatus.COMPLETED
        )

    assert (after.id, after.attempt) == (run.id, 2)


async def test_a_remediating_instance_without_a_run_is_attested(
    fabric: Fabric,
) -> None:
    instance = await add_instance(fabric.database)
    async with fabric.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_trust_registry SET lifecycle_state = 'remediating'"
        )

    await fabric.until_posture(instance, lambda _: fabric.asked)

    assert (fabric.asked[0].instance_id, fabric.asked[0].purpose) == (
        instance,
        "post-run",
    )


async def test_a_killed_dispatcher_loses_nothing(fabric: Fabric) -> None:
    await add_playbook(fabric.database, metadata={"script": "echo on; sleep 0.5"})
    instance = await fabric.quarantined()
    run = await fabric.run_of(instance, lambda r: r.status is RunStatus.RUNNING)

    await fabric.runtime.kill("fabric/remediation/dispatcher")

    after = await fabric.run_of(instance, lambda r: not r.status.active)
    assert (after.id, after.status, after.attempt) == (run.id, RunStatus.COMPLETED, 1)


async def test_killed_streams_lose_no_quarantine(fabric: Fabric) -> None:
    await add_playbook(fabric.database)
    await fabric.runtime.kill("fabric/broadcaster")

    instance = await fabric.quarantined()

    await fabric.run_of(instance, lambda r: r.status is RunStatus.COMPLETED)


async def test_no_more_runs_at_once_than_allowed(
    database: Database, database_url: str
) -> None:
    settings = replace(SETTINGS, concurrency=2, owner_concurrency=2)
    await add_playbook(database, metadata={"script": "sleep 0.1"})
    async with a_fabric(database, database_url, settings) as fabric:
        instances = [await fabric.quarantined() for _ in range(5)]
        await fabric.run_of(instances[-1], lambda _: True)
        found = await fabric.count_running(2)

    assert {run.instance_id for run in found} == set(instances)


# --- the catalogue -----------------------------------------------------------------


async def test_the_catalogue_keeps_versions(fabric: Fabric) -> None:
    async def ask(request: Any) -> Any:
        return await fabric.playbooks.ask(request, within_s=5)

    made = await ask(CreatePlaybook(author=ADMIN, draft=a_draft()))

    def update(expected: int | None, author: Author = ADMIN) -> UpdatePlaybook:
        edit = PlaybookEdit(display_name="Other")
        return UpdatePlaybook(
            author=author, playbook_id=made.id, edit=edit, expected_version=expected
        )

    with pytest.raises(VersionRequiredError):
        await ask(update(None))
    with pytest.raises(NotFoundError):
        await ask(update(1, Author(owner_id=BOB)))
    with pytest.raises(ForbiddenError):
        await ask(update(1, Author(owner_id=ALICE)))
    changed = await ask(update(1))
    with pytest.raises(VersionConflictError):
        await ask(update(1))

    assert (changed.version, changed.display_name) == (2, "Other")


async def test_a_playbook_with_an_active_run_stays(fabric: Fabric) -> None:
    playbook = await add_playbook(fabric.database, approval_required=True)
    instance = await add_instance(fabric.database)
    run = await fabric.ask(an_order(instance))
    delete = DeletePlaybook(author=ADMIN, playbook_id=playbook.id, expected_version=1)

    with pytest.raises(ConflictError):
        await fabric.playbooks.ask(delete, within_s=5)
    await fabric.ask(CancelRun(owner=None, run_id=RunId(run.id), by="user:1"))
    await fabric.playbooks.ask(delete, within_s=5)

    assert (await fabric.read(run.id)).playbook_id is None


async def test_bad_playbooks_are_refused(fabric: Fabric) -> None:
    with pytest.raises(InvalidError):
        await fabric.playbooks.ask(
            CreatePlaybook(author=ADMIN, draft=a_draft(metadata={"script": "a\0"})),
            within_s=5,
        )
    with pytest.raises(ForbiddenError):
        await fabric.playbooks.ask(
            CreatePlaybook(author=Author(owner_id=ALICE), draft=a_draft()), within_s=5
        )
