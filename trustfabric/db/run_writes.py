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
from trustfabric.db.playbooks import keep_playbook
from trustfabric.db.run_events import append
from trustfabric.db.runs import lock_active_run, lock_run
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
    Run,
    RunSignal,
    RunStatus,
    advance,
    called_off,
)
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import ConflictError, NotFoundError, UnknownPlaybookError

_INSERT_SQL: LiteralString = """
INSERT INTO runtime_vm_remediation_runs
       (runtime_vm_instance_id, playbook, playbook_id, approval_required,
        approval_state, requested_by, assigned_owner_id, sla_deadline,
        automation_payload, metadata, playbook_snapshot, content_sha256, queued_at,
        approvals_required)
SELECT i.id, %(playbook)s, %(playbook_id)s, %(approval_required)s,
       %(approval_state)s, %(requested_by)s, %(assigned_owner_id)s,
       %(sla_deadline)s, %(payload)s, %(metadata)s, %(snapshot)s, %(sha256)s,
       %(queued_at)s, %(approvals_required)s
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
                "approvals_required": new.approvals_required,
            },
        )
        row = await cursor.fetchone()
        if row is None:
            raise NotFoundError(f"instance {before.instance_id} is terminated")
        run_id = RunId(row[0])
        accelerators = read_accelerators(new.order.metadata)
        await worsen_accelerators(conn, before.instance_id, accelerators, new.queued_at)
        await tell(conn, run_id, "queued", new.queued_at)
        return run_id


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
           AND (%(owner_limit)s::bigint IS NULL OR %(owner_limit)s > (
               SELECT count(*) FROM runtime_vm_remediation_runs o
                 JOIN runtime_vm_instances i ON i.id = o.runtime_vm_instance_id
                 JOIN servers s ON s.id = i.server_id
                WHERE o.status = 'running' AND s.owner_id = %(owner_id)s))
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
    owner_limit: int | None = None
    """How many runs of the instance's owner may be under way, this one included.

    Exact over all runtimes, since the registry's writers take turns.
    """

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        cursor = await conn.execute(
            _CLAIM_SQL,
            {
                "id": self.run_id,
                "owner": self.lease_owner,
                "until": self.now + timedelta(seconds=self.lease_s),
                "now": self.now,
                "owner_id": before.owner_id,
                "owner_limit": self.owner_limit,
            },
        )
        row = await cursor.fetchone()
        if row is None:
            raise ConflictError(f"run {self.run_id} is not there to be claimed")
        await tell(conn, self.run_id, "started", self.now, was=RunStatus.PENDING)
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
            if run.cancellation_reason is not None:
                # Asked for since the decision was made: it is to be made anew.
                raise ConflictError(f"run {run.id} is to be cancelled")
            await _send_back(conn, run, self.outcome, self.now)
        else:
            await end(conn, run, self.outcome, self.now, by=self.by)
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
        await end(conn, run, ended, self.now, by=self.by)
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
    return await tell(conn, run_id, f"cancel requested: {reason}", now)


_BREACH_SQL: LiteralString = """
UPDATE runtime_vm_remediation_runs
   SET sla_breached_at = %(now)s
 WHERE id = %(id)s
"""


async def tell_breach(conn: Connection, run_id: RunId, now: datetime) -> bool:
    """Say in a run's events that its SLA deadline has passed; False: it was said.

    It says nothing of what the run is, so that its version stays as people saw it.
    """
    run = await lock_run(conn, run_id)
    if not run.status.active or not run.is_late(now):
        return False
    await conn.execute(_BREACH_SQL, {"id": run_id, "now": now})
    await tell(conn, run_id, SLA_BREACHED, now)
    return True


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


async def end(
    conn: Connection, run: Run, outcome: Outcome, now: datetime, *, by: str
) -> None:
    if run.is_late(now):
        await tell_breach(conn, run.id, now)
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
    await tell(conn, run.id, outcome.exit.message, now, was=run.status)


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
    message = f"will be tried again: {outcome.exit.message}"
    await tell(conn, run.id, message, now, was=run.status)


def _result(run: Run, outcome: Outcome) -> Jsonb:
    return Jsonb(
        {
            **outcome.exit.detail,
            "code": outcome.exit.code,
            "message": plain(outcome.exit.message, ERROR_LIMIT),
            "failure_reason": outcome.exit.failure_reason,
            "duration_seconds": round(outcome.exit.duration_s, 3),
            "attempt": run.attempt,
        }
    )


async def tell(
    conn: Connection,
    run_id: RunId,
    message: str,
    now: datetime,
    *,
    was: RunStatus | None = None,
) -> Run:
    """Add a status event to a run's log; `was`: the status that it has left."""
    run = await lock_run(conn, run_id)
    event = status_event(run, plain(message, ERROR_LIMIT), now, was=was)
    await append(conn, run, [event])
    return run
