"""Approvals of runs: who may agree to one, to what exactly, and when that is enough."""

from collections.abc import Collection
from dataclasses import dataclass

from trustfabric.domain.ids import OwnerId
from trustfabric.domain.playbooks import Playbook, still_runs
from trustfabric.domain.runs import (
    ApprovalState,
    Run,
    RunSignal,
    advance,
    check_version,
)
from trustfabric.errors import ApprovalStaleError, ConflictError, SelfApprovalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """A person's decision on a run that waits for approval."""

    approve: bool
    by: OwnerId
    expected_version: int | None
    notes: str | None = None
    content_sha256: str | None = None
    """What the person saw; None: whatever the run pinned."""

    @property
    def actor(self) -> str:
        return f"user:{self.by}"


def after_ruling(run: Run, ruling: Ruling) -> ApprovalState:
    """Return where approval stands then: one rejection ends it, the last consent too.

    Asked of the run as it was read, and again of its locked row.
    """
    if not ruling.approve:
        return ApprovalState.REJECTED
    enough = run.approvals_given + 1 >= run.approvals_required
    return ApprovalState.APPROVED if enough else ApprovalState.PENDING


def check_ruling(
    run: Run,
    ruling: Ruling,
    current: Playbook | None,
    *,
    approvers: Collection[OwnerId] = (),
    requester_may_approve: bool = False,
) -> None:
    """Raise where this person may not decide so on this run, now.

    `current` is the run's playbook as it is in the catalogue: consent to what it no
    longer says is stale. `approvers` have agreed already; each counts once. A
    rejection needs neither that nor another person.
    """
    if (
        ruling.approve
        and not requester_may_approve
        and run.requested_by == ruling.actor
    ):
        raise SelfApprovalError(f"run {run.id} was requested by {ruling.actor}")
    check_version(run, ruling.expected_version)
    signal = RunSignal.APPROVED if ruling.approve else RunSignal.REJECTED
    advance(run, signal)
    if run.approval_state is not ApprovalState.PENDING:
        raise ConflictError(
            f"run {run.id}: approval is {run.approval_state} already",
            approval_state=run.approval_state,
        )
    if ruling.approve:
        if ruling.by in approvers:
            raise ConflictError(
                f"run {run.id}: {ruling.actor} approved already, and it takes "
                f"{run.approvals_required} people",
                approvals_given=run.approvals_given,
                approvals_required=run.approvals_required,
            )
        _check_content(run, ruling, current)


def _check_content(run: Run, ruling: Ruling, current: Playbook | None) -> None:
    seen = ruling.content_sha256
    if seen is not None and seen != run.content_sha256:
        raise ApprovalStaleError(
            f"run {run.id} would run other content than was approved",
            content_sha256=run.content_sha256,
        )
    if current is None or not still_runs(current, run.playbook_snapshot):
        raise ApprovalStaleError(
            f"run {run.id} pinned playbook {run.playbook} version "
            f"{run.playbook_snapshot.get('version')}, which was changed since: "
            "reject it and enqueue anew",
            content_sha256=run.content_sha256,
        )
