"""What changes a run; most of it travels as a companion of a change of trust.

Each write locks the run's row, lets `domain/runs.py` decide, and adds the status
event in the same transaction.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import LiteralString

from psycopg.types.json import Jsonb

from trustfabric.db.accelerators import worsen_accelerators
from trustfabric.db.artifacts import NewArtifact, insert_artifact
from trustfabric.db.playbooks import get_playbook, keep_playbook
from trustfabric.db.run_events import append
from trustfabric.db.runs import lock_active_run, lock_run
from trustfabric.db.servers import add_user
from trustfabric.db.session import Connection
from trustfabric.domain.accelerators import read_accelerators
from trustfabric.domain.documents import plain
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import OwnerId, RunId
from trustfabric.domain.run_events import status_event
from trustfabric.domain.runs import (
    ERROR_LIMIT,
    NOTES_LIMIT,
    NewRun,
    Outcome,
    Ruling,
    Run,
    RunSignal,
    RunStatus,
    advance,
    called_off,
    check_ruling,
)
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import ConflictError, NotFoundError, UnknownPlaybookError

_INSERT_SQL: LiteralString = """
INSERT INTO runtime_vm_remediation_runs
       (runtime_vm_instance_id, playbook, playbook_id, approval_required,
        approval_state, requested_by, assigned_owner_id, sla_deadline,
        automation_payload, metadata, playbook_snapshot, content_sha256, queued_at)
SELECT i.id, %(playbook)s, %(playbook_id)s, %(approval_required)s,
       %(approval_state)s, %(requested_by)s, %(assigned_owner_id)s,
       %(sla_deadline)s, %(payload)s, %(metadata)s, %(snapshot)s, %(sha256)s,
       %(queued_at)s
  FROM runtime_vm_instances i
 WHERE i.id = %(instance_id)s AND i.terminated_at IS NULL
RETURNING id
"""


@dataclass(frozen=True, slots=True)
class InsertRun:
    """Enqueue a run; RunActiveError where the instance has one."""

    new: NewRun

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        new = self.new
        if not await keep_playbook(conn, new.playbook.id):
            raise UnknownPlaybookError(f"playbook {new.playbook.key} was deleted")
        payload, assigned = new.order.automation_payload, new.order.assigned_owner_id
        cursor = await conn.execute(
            _INSERT_SQL,
            {
                "instance_id": before.instance_id,
                "playbook": new.playbook.key,
                "playbook_id": new.playbook.id,
                "approval_required": new.playbook.approval_required,
                "approval_state": new.approval_state,
                "requested_by": new.order.requested_by,
                "assigned_owner_id": before.owner_id if assigned is None else assigned,
                "sla_deadline": new.sla_deadline,
                "payload": None if payload is None else Jsonb(dict(payload)),
                "metadata": Jsonb(dict(new.order.metadata)),
                "snapshot": Jsonb(dict(new.snapshot)),
                "sha256": new.content_sha256,
                "queued_at": new.queued_at,
            },
        )
        row = await cursor.fetchone()
        if row is None:
            raise NotFoundError(f"instance {before.instance_id} is terminated")
        run_id = RunId(row[0])
        accelerators = read_accelerators(new.order.metadata)
        await worsen_accelerators(conn, before.instance_id, accelerators, new.queued_at)
        await _tell(conn, run_id, "queued", new.queued_at)
        return run_id


_RULE_SQL: LiteralString = """
UPDATE runtime_vm_remediation_runs
   SET approval_state = %(state)s, approval_decided_at = %(now)s,
       approval_decided_by = %(by)s, approval_notes = %(notes)s,
       version = version + 1, updated_at = %(now)s
 WHERE id = %(id)s
"""

_APPROVAL_SQL: LiteralString = """
INSERT INTO runtime_vm_remediation_approvals
       (run_id, user_id, decision, notes, content_sha256, decided_at)
VALUES (%(id)s, %(user_id)s, %(decision)s, %(notes)s, %(sha256)s, %(now)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideRun:
    """Write a person's approval or rejection, decided on the locked row."""

    run_id: RunId
    ruling: Ruling
    now: datetime
    requester_may_approve: bool = False

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        run = await lock_run(conn, self.run_id, owner_id=before.owner_id)
        current = (
            None
            if run.playbook_id is None
            else await get_playbook(conn, None, run.playbook_id)
        )
        check_ruling(
            run,
            self.ruling,
            current,
            requester_may_approve=self.requester_may_approve,
        )
        told = self.ruling.notes
        notes = plain(told, NOTES_LIMIT) if told else None
        decision = "approved" if self.ruling.approve else "rejected"
        facts = {"id": run.id, "notes": notes, "now": self.now}
        await conn.execute(
            _RULE_SQL, {**facts, "state": decision, "by": self.ruling.actor}
        )
        await add_user(conn, self.ruling.by)
        await conn.execute(
            _APPROVAL_SQL,
            {
                **facts,
                "user_id": self.ruling.by,
                "decision": decision,
                "sha256": run.content_sha256,
            },
        )
        if self.ruling.approve:
            await _tell(conn, run.id, f"approved by {self.ruling.actor}", self.now)
        else:
            ended = called_off(run, FailureReason.CANCELLED, "approval rejected")
            await _end(conn, run, ended, self.now, by=self.ruling.actor)
        return run.id


_CLAIM_SQL: LiteralString = """
UPDATE runtime_vm_remediation_runs r
   SET status = 'running', started_at = coalesce(r.started_at, %(now)s),
       lease_owner = %(owner)s, lease_epoch = r.lease_epoch + 1,
       lease_expires_at = %(until)s, attempt = r.attempt + 1, not_before = NULL,
       failure_reason = NULL, version = r.version + 1, updated_at = %(now)s
  FROM (SELECT id FROM runtime_vm_remediation_runs
         WHERE id = %(id)s AND status = 'pending'
           AND approval_state IN ('approved', 'auto-approved')
           AND (not_before IS NULL OR not_before <= %(now)s)
           FOR UPDATE SKIP LOCKED) mine
 WHERE r.id = mine.id
RETURNING r.lease_epoch
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRun:
    """Take a ready run under a lease; ConflictError where somebody else did.

    What it returns is the lease's epoch, which fences all that is done under it.
    """

    run_id: RunId
    lease_owner: str
    lease_s: float
    now: datetime

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        del before
        cursor = await conn.execute(
            _CLAIM_SQL,
            {
                "id": self.run_id,
                "owner": self.lease_owner,
                "until": self.now + timedelta(seconds=self.lease_s),
                "now": self.now,
            },
        )
        row = await cursor.fetchone()
        if row is None:
            raise ConflictError(f"run {self.run_id} is not there to be claimed")
        await _tell(conn, self.run_id, "started", self.now)
        return int(row[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishRun:
    """End a run, or send it back for another try, as the outcome says.

    It is refused (ConflictError) unless the run is still as the decision found it:
    under that lease, or at that version where it never had one.
    """

    run_id: RunId
    outcome: Outcome
    now: datetime
    by: str
    lease_epoch: int | None = None
    version: int | None = None
    lease_over_by: datetime | None = None
    """Of another runtime's run: only if its lease had run out by then."""
    log: NewArtifact | None = None

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        del before
        run = await lock_run(conn, self.run_id)
        held = self.lease_epoch is None or (
            run.status is RunStatus.RUNNING and run.lease_epoch == self.lease_epoch
        )
        alive = self.lease_over_by is not None and (
            run.lease_expires_at is None or run.lease_expires_at > self.lease_over_by
        )
        if not held or alive or self.version not in {None, run.version}:
            raise ConflictError(f"run {run.id} has moved on", status=run.status)
        if self.outcome.status is RunStatus.PENDING:
            await _send_back(conn, run, self.outcome, self.now)
        else:
            await _end(conn, run, self.outcome, self.now, by=self.by)
        if self.log is not None:
            await insert_artifact(conn, self.log)
        return run.id


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelActiveRun:
    """End whatever run the instance has, at once; nothing where it has none.

    A running one loses its lease: its actor stops the program as soon as it notices.
    """

    by: str
    reason: str
    now: datetime

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        run = await lock_active_run(conn, before.instance_id)
        if run is None:
            return None
        ended = called_off(run, FailureReason.CANCELLED, self.reason)
        await _end(conn, run, ended, self.now, by=self.by)
        return run.id


_REQUEST_SQL: LiteralString = """
UPDATE runtime_vm_remediation_runs
   SET cancellation_reason = %(reason)s, version = version + 1, updated_at = %(now)s
 WHERE id = %(id)s
"""


async def request_cancel(
    conn: Connection,
    owner_id: OwnerId | None,
    run_id: RunId,
    reason: str,
    now: datetime,
) -> Run:
    """Ask for the end of a running run; who holds its lease stops the program.

    ConflictError where it isn't running. Asking twice is asking once.
    """
    run = await lock_run(conn, run_id, owner_id=owner_id)
    advance(run, RunSignal.CANCELLED)
    if run.status is not RunStatus.RUNNING:
        raise ConflictError(f"run {run_id} is not running", status=run.status)
    if run.cancellation_reason is not None:
        return run
    await conn.execute(
        _REQUEST_SQL, {"id": run_id, "reason": plain(reason, NOTES_LIMIT), "now": now}
    )
    return await _tell(conn, run_id, f"cancel requested: {reason}", now)


async def tell_breach(conn: Connection, run_id: RunId, now: datetime) -> None:
    """Say once in a run's events that its SLA deadline has passed."""
    run = await lock_run(conn, run_id)
    if run.status.active:
        await append(conn, run, [status_event(run, SLA_BREACHED, now)])


SLA_BREACHED = "sla-breached"

_END_SQL: LiteralString = """
UPDATE runtime_vm_remediation_runs
   SET status = %(status)s, failure_reason = %(reason)s, last_error = %(error)s,
       result = %(result)s, not_before = NULL, lease_owner = NULL,
       lease_expires_at = NULL, lease_epoch = lease_epoch + 1,
       completed_at = CASE WHEN %(status)s <> 'cancelled' THEN %(now)s::timestamptz END,
       cancelled_at = CASE WHEN %(status)s = 'cancelled' THEN %(now)s::timestamptz END,
       cancellation_reason = CASE WHEN %(status)s = 'cancelled'
           THEN coalesce(cancellation_reason, %(cancellation)s) END,
       version = version + 1, updated_at = %(now)s
 WHERE id = %(id)s
"""


async def _end(
    conn: Connection, run: Run, outcome: Outcome, now: datetime, *, by: str
) -> None:
    failed = outcome.exit.failure_reason
    await conn.execute(
        _END_SQL,
        {
            "id": run.id,
            "status": outcome.status,
            "reason": failed,
            "error": None
            if failed is None
            else plain(outcome.exit.message, ERROR_LIMIT),
            "result": _result(run, outcome),
            "cancellation": plain(f"{outcome.exit.message} ({by})", NOTES_LIMIT),
            "now": now,
        },
    )
    await _tell(conn, run.id, outcome.exit.message, now)


_BACK_SQL: LiteralString = """
UPDATE runtime_vm_remediation_runs
   SET status = 'pending', failure_reason = %(reason)s, last_error = %(error)s,
       result = %(result)s, not_before = %(not_before)s, lease_owner = NULL,
       lease_expires_at = NULL, lease_epoch = lease_epoch + 1,
       version = version + 1, updated_at = %(now)s
 WHERE id = %(id)s
"""


async def _send_back(
    conn: Connection, run: Run, outcome: Outcome, now: datetime
) -> None:
    await conn.execute(
        _BACK_SQL,
        {
            "id": run.id,
            "reason": outcome.exit.failure_reason,
            "error": plain(outcome.exit.message, ERROR_LIMIT),
            "result": _result(run, outcome),
            "not_before": outcome.not_before,
            "now": now,
        },
    )
    await _tell(conn, run.id, f"will be tried again: {outcome.exit.message}", now)


def _result(run: Run, outcome: Outcome) -> Jsonb:
    return Jsonb(
        {
            "code": outcome.exit.code,
            "message": plain(outcome.exit.message, ERROR_LIMIT),
            "failure_reason": outcome.exit.failure_reason,
            "duration_seconds": round(outcome.exit.duration_s, 3),
            "attempt": run.attempt,
        }
    )


async def _tell(conn: Connection, run_id: RunId, message: str, now: datetime) -> Run:
    run = await lock_run(conn, run_id)
    await append(conn, run, [status_event(run, plain(message, ERROR_LIMIT), now)])
    return run
