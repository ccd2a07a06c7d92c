"""Remediation runs: how one moves from queued to ended, and what decides it.

Everything that affects a run's status is in this file: `TRANSITIONS` is the state
machine as data, and a pair that is not in it is refused. A run waits (`pending`)
for approval, then for its turn, then for a retry's time; it is `running` under a
lease; the three other statuses are ends. Approval is a second, smaller machine: it
leaves `pending` once, and only while the run waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from trustfabric.domain.executors import ExitStatus
from trustfabric.domain.failures import (
    FailureClass,
    FailureReason,
    classification_of,
    tag_of,
)
from trustfabric.domain.ids import (
    InstanceId,
    OwnerId,
    PlaybookId,
    RunId,
    ServerId,
)
from trustfabric.domain.parameters import filled
from trustfabric.domain.playbooks import (
    Playbook,
    content_sha256,
    snapshot_of,
)
from trustfabric.domain.rules import approvals_required
from trustfabric.domain.specs import ExecutorType, OnLost, on_lost, retry_limit
from trustfabric.domain.trust import Signal, Tag
from trustfabric.errors import (
    ConflictError,
    VersionConflictError,
    VersionRequiredError,
)

NOTES_LIMIT = 500
ERROR_LIMIT = 2000


class RunStatus(StrEnum):
    """How far a run is."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def active(self) -> bool:
        """An instance has at most one such run."""
        return self in {RunStatus.PENDING, RunStatus.RUNNING}


class ApprovalState(StrEnum):
    """Whether the run may be carried out."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    AUTO_APPROVED = "auto-approved"
    """The playbook asks for nobody's consent."""


class RunSignal(StrEnum):
    """What happens to a run."""

    APPROVED = "approved"
    REJECTED = "rejected"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRYING = "retrying"
    CANCELLED = "cancelled"


TRANSITIONS: Mapping[RunStatus, Mapping[RunSignal, RunStatus]] = {
    RunStatus.PENDING: {
        RunSignal.APPROVED: RunStatus.PENDING,
        RunSignal.REJECTED: RunStatus.CANCELLED,
        RunSignal.CLAIMED: RunStatus.RUNNING,
        RunSignal.CANCELLED: RunStatus.CANCELLED,
    },
    RunStatus.RUNNING: {
        RunSignal.COMPLETED: RunStatus.COMPLETED,
        RunSignal.FAILED: RunStatus.FAILED,
        RunSignal.RETRYING: RunStatus.PENDING,
        RunSignal.CANCELLED: RunStatus.CANCELLED,
    },
    RunStatus.COMPLETED: {},
    RunStatus.FAILED: {},
    RunStatus.CANCELLED: {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of the runs, and whose instance it is for."""

    id: RunId
    instance_id: InstanceId
    instance_name: str
    server_id: ServerId
    owner_id: OwnerId
    """The owner of the instance's server."""
    playbook: str
    playbook_id: PlaybookId | None
    status: RunStatus
    approval_required: bool
    approval_state: ApprovalState
    approval_decided_at: datetime | None
    approval_decided_by: str | None
    approval_notes: str | None
    requested_by: str
    """`user:7`, or `actor:dispatcher` for what the runtime staged itself."""
    assigned_owner_id: OwnerId | None
    sla_deadline: datetime | None
    automation_payload: Mapping[str, Any] | None
    metadata: Mapping[str, Any]
    playbook_snapshot: Mapping[str, Any]
    content_sha256: str
    priority: int
    not_before: datetime | None
    result: Mapping[str, Any] | None
    failure_reason: FailureReason | None
    last_error: str | None
    attempt: int
    queued_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    cancelled_at: datetime | None
    cancellation_reason: str | None
    """On a running run: somebody asked for its end and the program is stopping."""
    lease_owner: str | None
    lease_epoch: int
    lease_expires_at: datetime | None
    version: int
    created_at: datetime
    updated_at: datetime
    approvals_required: int = 0
    """How many people have to agree; 0 where nobody has to."""
    approvals_given: int = 0
    sla_breached_at: datetime | None = None
    """When it was told that the SLA deadline had passed; that is told once."""

    @property
    def parameters(self) -> Mapping[str, Any] | None:
        """What the executor is given: the payload, defaults filled in."""
        pinned: Mapping[str, Any] | None = self.playbook_snapshot.get(
            "parameters", self.automation_payload
        )
        return pinned

    def is_late(self, now: datetime) -> bool:
        """Whether the SLA deadline has passed and nobody has said so yet."""
        if self.sla_deadline is None or self.sla_breached_at is not None:
            return False
        return self.sla_deadline <= now

    def is_under(self, epoch: int) -> bool:
        """Whether the run is being carried out under the lease of that epoch."""
        return self.status is RunStatus.RUNNING and self.lease_epoch == epoch

    @property
    def spec(self) -> Mapping[str, Any]:
        """The pinned playbook's metadata."""
        spec: Mapping[str, Any] = self.playbook_snapshot.get("metadata", {})
        return spec

    @property
    def is_intact(self) -> bool:
        """Whether what will run is what its digest, and so its approval, stands for."""
        kept = content_sha256(self.playbook_snapshot, self.automation_payload)
        return kept == self.content_sha256

    @property
    def executor_type(self) -> ExecutorType:
        return ExecutorType(self.playbook_snapshot.get("executor_type", "shell"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """What is asked for when a run is enqueued."""

    instance_id: InstanceId
    requested_by: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    automation_payload: Mapping[str, Any] | None = None
    assigned_owner_id: OwnerId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run before it has an id: the order, and the playbook as it is now."""

    order: RunOrder
    playbook: Playbook
    snapshot: Mapping[str, Any]
    content_sha256: str
    approval_state: ApprovalState
    approvals_required: int
    sla_deadline: datetime | None
    queued_at: datetime

    @property
    def tag(self) -> Tag:
        """What the instance waits for once the run is staged."""
        waits = self.approval_state is ApprovalState.PENDING
        return Tag.PENDING_APPROVAL if waits else Tag.AWAITING_EXECUTOR


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and how soon, a transient failure is tried again."""

    limit: int = 5
    base_s: float = 5.0
    longest_s: float = 300.0

    def delay_s(self, attempt: int, jitter: float) -> float:
        """Return the wait after the n-th attempt; `jitter` is within 0 … 1."""
        delay = min(self.base_s * 2 ** min(attempt - 1, 30), self.longest_s)
        return float(delay * (0.5 + jitter / 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the end of an execution makes of its run and of its instance."""

    status: RunStatus
    signal: Signal
    tag: Tag
    exit: ExitStatus
    not_before: datetime | None = None
    """Set where the run goes back to `pending` for another try."""


def enqueue(playbook: Playbook, order: RunOrder, now: datetime) -> NewRun:
    """Pin the playbook as it is now; it decides whether a person has to agree.

    Raise InvalidError, with a pointer, where the payload is not what it takes.
    """
    snapshot = snapshot_of(playbook)
    schema = playbook.metadata.get("parameters")
    if schema is not None:
        snapshot["parameters"] = filled(schema, order.automation_payload)
    gated, sla = playbook.approval_required, playbook.sla_duration_s
    return NewRun(
        order=order,
        playbook=playbook,
        snapshot=snapshot,
        content_sha256=content_sha256(snapshot, order.automation_payload),
        approval_state=(
            ApprovalState.PENDING if gated else ApprovalState.AUTO_APPROVED
        ),
        approvals_required=approvals_required(playbook.metadata) if gated else 0,
        sla_deadline=None if sla is None else now + timedelta(seconds=sla),
        queued_at=now,
    )


def check_version(run: Run, expected: int | None) -> None:
    """Raise where a write is not based on the run as it is."""
    if expected is None:
        raise VersionRequiredError(
            f"run {run.id}: expected_version is required",
            expected=None,
            current=run.version,
        )
    if expected != run.version:
        raise VersionConflictError(
            f"run {run.id} is at version {run.version}, not {expected}",
            expected=expected,
            current=run.version,
        )


def advance(run: Run, signal: RunSignal) -> RunStatus:
    """Return the status after `signal`, or raise ConflictError."""
    try:
        return TRANSITIONS[run.status][signal]
    except KeyError:
        raise ConflictError(
            f"run {run.id} is {run.status}: it can't be {signal}", status=run.status
        ) from None


def outcome(
    run: Run, exit_status: ExitStatus, policy: RetryPolicy, now: datetime, jitter: float
) -> Outcome:
    """Decide what follows from how an execution ended."""
    reason = exit_status.failure_reason
    if reason is None:
        return Outcome(
            status=advance(run, RunSignal.COMPLETED),
            signal=Signal.RUN_COMPLETED,
            tag=Tag.AUTOMATION_COMPLETE,
            exit=exit_status,
        )
    match classification_of(reason):
        case FailureClass.CANCELLED:
            return _ended(run, RunSignal.CANCELLED, reason, exit_status)
        case FailureClass.TRANSIENT if run.attempt <= _retries(run, policy):
            delay = timedelta(seconds=policy.delay_s(run.attempt, jitter))
            return Outcome(
                status=advance(run, RunSignal.RETRYING),
                signal=Signal.RUN_RETRYING,
                tag=tag_of(reason),
                exit=exit_status,
                not_before=now + delay,
            )
        case _:
            return _ended(run, RunSignal.FAILED, reason, exit_status)


def outcome_of_lost(
    run: Run, policy: RetryPolicy, now: datetime, jitter: float, *, begun: bool = True
) -> Outcome:
    """Decide what follows when the runtime or the actor of a running run died.

    What had not `begun` is tried again whatever its playbook says.
    """
    if run.cancellation_reason is not None:
        ended = _exit("the program was stopped", FailureReason.CANCELLED)
        return outcome(run, ended, policy, now, jitter)
    lost = _exit(
        "the runtime lost this run while it was running",
        FailureReason.TRANSIENT_INFRASTRUCTURE,
    )
    if not begun or on_lost(run.spec) is OnLost.RETRY:
        return outcome(run, lost, policy, now, jitter)
    return _ended(run, RunSignal.FAILED, FailureReason.TRANSIENT_INFRASTRUCTURE, lost)


def called_off(run: Run, reason: FailureReason, message: str) -> Outcome:
    """Decide the end of a run that never started: cancelled, or too late."""
    return _ended(run, RunSignal.CANCELLED, reason, _exit(message, reason))


def _retries(run: Run, policy: RetryPolicy) -> int:
    return retry_limit(run.spec, default=policy.limit)


def _exit(message: str, reason: FailureReason) -> ExitStatus:
    return ExitStatus(code=None, message=message, failure_reason=reason, duration_s=0.0)


def _ended(
    run: Run, signal: RunSignal, reason: FailureReason, exit_status: ExitStatus
) -> Outcome:
    return Outcome(
        status=advance(run, signal),
        signal=Signal.RUN_ENDED,
        tag=tag_of(reason),
        exit=exit_status,
    )
