"""What changes a run; most of it travels as a companion of a change of trust.

Each write locks the run's row, lets `domain/runs.py` decide, and adds the status
event in the same transaction. Claims and ends are written many at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from trustfabric.db.accelerators import worsen_accelerators
from trustfabric.db.artifacts import NewArtifact, insert_artifacts
from trustfabric.db.companions import write_alone
from trustfabric.db.playbooks import keep_playbook
from trustfabric.db.run_events import append
from trustfabric.db.runs import (
    RUN_COLUMNS,
    change_runs,
    lock_active_run,
    lock_run,
    lock_runs,
)
from trustfabric.db.session import Connection
from trustfabric.domain.accelerators import read_accelerators
from trustfabric.domain.documents import plain
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import OwnerId, RunId
from trustfabric.domain.run_events import RunEvent, status_event
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
from trustfabric.errors import (
    ConflictError,
    FabricError,
    NotFoundError,
    UnknownPlaybookError,
)

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
        return await write_alone(conn, self, before)

    @staticmethod
    async def write_all(
        conn: Connection, batch: Sequence[tuple["FinishRun", Snapshot]]
    ) -> list[int | FabricError]:
        runs = await lock_runs(conn, {one.run_id for one, _ in batch})
        found = [one.refusal(runs.get(one.run_id)) for one, _ in batch]
        ending = [
            one for (one, _), error in zip(batch, found, strict=True) if error is None
        ]
        await settle(
            conn,
            [End(runs[one.run_id], one.outcome, one.now, one.by) for one in ending],
        )
        await insert_artifacts(conn, [one.log for one in ending if one.log is not None])
        return [
            error or one.run_id for (one, _), error in zip(batch, found, strict=True)
        ]

    def refusal(self, run: Run | None) -> FabricError | None:
        """Return why this can't be done to the run as it is."""
        if run is None:
            return NotFoundError(f"no run {self.run_id}")
        held = self.lease_epoch is None or run.is_under(self.lease_epoch)
        alive = self.lease_over_by is not None and (
            run.lease_expires_at is None or run.lease_expires_at > self.lease_over_by
        )
        if not held or alive or self.version not in {None, run.version}:
            return ConflictError(f"run {run.id} has moved on", status=run.status)
        if self.outcome.status is RunStatus.PENDING and run.cancellation_reason:
            # Asked for since the decision was made: it is to be made anew.
            return ConflictError(f"run {run.id} is to be cancelled")
        return None


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
        await settle(conn, [End(run, ended, self.now, self.by)])
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

_SETTLE_SQL: LiteralString = (
    """
UPDATE runtime_vm_remediation_runs r
   SET status = c.status, failure_reason = c.reason, last_error = c.error,
       result = c.result, not_before = c.not_before, lease_owner = NULL,
       lease_expires_at = NULL, lease_epoch = r.lease_epoch + 1,
       completed_at = CASE WHEN c.status IN ('completed', 'failed') THEN c.now END,
       cancelled_at = CASE WHEN c.status = 'cancelled' THEN c.now END,
       cancellation_reason = CASE WHEN c.status = 'cancelled'
           THEN coalesce(r.cancellation_reason, c.cancellation) END,
       sla_breached_at = CASE WHEN c.is_late THEN c.now ELSE r.sla_breached_at END,
       version = r.version + 1, updated_at = c.now
  FROM json_to_recordset(%(batch)s::json)
       AS c(id bigint, status text, reason text, error text, result jsonb,
            not_before timestamptz, cancellation text, is_late boolean,
            now timestamptz), runtime_vm_instances i, servers s
 WHERE r.id = c.id AND i.id = r.runtime_vm_instance_id AND s.id = i.server_id
RETURNING
"""
    + RUN_COLUMNS
)


@dataclass(frozen=True, slots=True)
class End:
    """How a run that is locked ends, or goes back to wait for another try."""

    run: Run
    outcome: Outcome
    now: datetime
    by: str

    @property
    def goes_back(self) -> bool:
        return self.outcome.status is RunStatus.PENDING

    @property
    def is_late(self) -> bool:
        """Whether it is to be told with the end that the SLA deadline has passed."""
        return not self.goes_back and self.run.is_late(self.now)


async def settle(conn: Connection, ends: Sequence[End]) -> None:
    """End runs; the caller holds the locks on their rows. At most one of each run."""
    after = await change_runs(conn, _SETTLE_SQL, [_settled(end) for end in ends])
    events: list[tuple[Run, Sequence[RunEvent]]] = []
    for end in ends:
        if end.is_late:
            late = replace(end.run, sla_breached_at=end.now)
            events.append((late, [status_event(late, SLA_BREACHED, end.now)]))
        message = end.outcome.exit.message
        if end.goes_back:
            message = f"will be tried again: {message}"
        run = after[end.run.id]
        events.append((run, [status_event(run, message, end.now, was=end.run.status)]))
    await append(conn, events)


def _settled(end: End) -> Mapping[str, Any]:
    outcome = end.outcome
    ended, failed = outcome.exit, outcome.exit.failure_reason
    no_error = failed is None and not end.goes_back
    return {
        "id": end.run.id,
        "status": outcome.status,
        "reason": failed,
        "error": None if no_error else plain(ended.message, ERROR_LIMIT),
        "result": _result(end.run, outcome),
        "not_before": outcome.not_before if end.goes_back else None,
        "cancellation": plain(f"{ended.message} ({end.by})", NOTES_LIMIT),
        "is_late": end.is_late,
        "now": end.now,
    }


def _result(run: Run, outcome: Outcome) -> Mapping[str, Any]:
    return {
        **outcome.exit.detail,
        "code": outcome.exit.code,
        "message": plain(outcome.exit.message, ERROR_LIMIT),
        "failure_reason": outcome.exit.failure_reason,
        "duration_seconds": round(outcome.exit.duration_s, 3),
        "attempt": run.attempt,
    }


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
    await append(conn, [(run, [status_event(run, message, now, was=was)])])
    return run
