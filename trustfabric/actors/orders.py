"""Orders on runs: each becomes one change of trust, with the run's own row in it.

What may be done is decided on the locked rows, in the transaction that writes it
(`db/run_writes.py`); what is read here beforehand only shapes the change.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from trustfabric.actors.trust import Applied, ApplyChange, TrustRegistry
from trustfabric.db import playbooks, runs
from trustfabric.db.approvals import DecideRun
from trustfabric.db.companions import Companion
from trustfabric.db.run_writes import (
    FinishRun,
    InsertRun,
    request_cancel,
)
from trustfabric.db.session import Database
from trustfabric.domain.accelerators import read_accelerators
from trustfabric.domain.approvals import Ruling, after_ruling
from trustfabric.domain.documents import check_document, plain
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.playbooks import NAME_LIMIT
from trustfabric.domain.runs import (
    NOTES_LIMIT,
    ApprovalState,
    Outcome,
    Run,
    RunOrder,
    RunSignal,
    RunStatus,
    advance,
    called_off,
    enqueue,
)
from trustfabric.domain.trust import Change, Signal, Tag
from trustfabric.errors import (
    ConflictError,
    FabricError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
    UnknownPlaybookError,
)
from trustfabric.supervision import Address, AskError

log = structlog.get_logger(__name__)

ASK_S = 10.0
TRIES = 3
"""Of a cancellation that races a claim."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What carrying out an order needs."""

    database: Database
    trust: Address[TrustRegistry]

    async def apply(
        self,
        instance_id: InstanceId,
        change: Change,
        *companions: Companion,
        owner: OwnerId | None = None,
        expected_version: int | None = None,
    ) -> Applied:
        """Have the trust registry make one change, with its companions."""
        request = ApplyChange(
            instance_id=instance_id,
            change=change,
            owner_id=owner,
            expected_version=expected_version,
            companions=companions,
        )
        try:
            return await self.trust.ask(request, within_s=ASK_S)
        except AskError as error:
            raise UnavailableError(
                f"the trust registry gave no answer; the change may be made: {error}",
                outcome="unknown",
            ) from error

    async def read(self, owner: OwnerId | None, run_id: RunId) -> Run:
        """Return a run as it is now; NotFoundError."""
        async with self.database.reading() as conn:
            run = await runs.get_run(conn, owner, run_id)
        if run is None:
            raise NotFoundError(f"no run {run_id}")
        return run


async def enqueue_run(
    desk: Desk, owner: OwnerId | None, order: RunOrder, key: str, now: datetime
) -> Run:
    """Stage a run that a person asks for."""
    check_document("metadata", order.metadata)
    check_document("automation_payload", order.automation_payload)
    read_accelerators(order.metadata)
    assigned = order.assigned_owner_id
    if owner is not None and assigned not in {None, owner}:
        raise ForbiddenError("assigned_owner_id: only role admin assigns to others")
    async with desk.database.reading() as conn:
        whose = await runs.owner_of(conn, owner, order.instance_id)
        playbook = await playbooks.find_playbook(conn, whose, plain(key, NAME_LIMIT))
    if playbook is None:
        raise UnknownPlaybookError(f"playbook: {plain(key, NAME_LIMIT)!r} is not known")
    new = enqueue(playbook, order, now)
    change = Change(
        signal=Signal.RUN_STAGED,
        actor=order.requested_by,
        reason=f"playbook {playbook.key} enqueued",
        tag=new.tag,
    )
    applied = await desk.apply(order.instance_id, change, InsertRun(new), owner=owner)
    return await desk.read(owner, _made(applied))


async def retry_run(
    desk: Desk, owner: OwnerId | None, run_id: RunId, by: OwnerId, now: datetime
) -> Run:
    """Stage a new run like one that has ended."""
    old = await desk.read(owner, run_id)
    if old.status.active:
        raise ConflictError(
            f"run {run_id} is {old.status}: only an ended run is retried",
            status=old.status,
        )
    order = RunOrder(
        instance_id=old.instance_id,
        requested_by=f"user:{by}",
        metadata=old.metadata,
        automation_payload=old.automation_payload,
        assigned_owner_id=old.assigned_owner_id if owner is None else None,
    )
    return await enqueue_run(desk, owner, order, old.playbook, now)


async def decide_approval(
    desk: Desk,
    owner: OwnerId | None,
    run_id: RunId,
    ruling: Ruling,
    now: datetime,
    *,
    requester_may_approve: bool,
) -> Run:
    """Approve a run, or reject it, which ends it."""
    run = await desk.read(owner, run_id)
    notes = f": {plain(ruling.notes, NOTES_LIMIT)}" if ruling.notes else ""
    becomes = after_ruling(run, ruling)
    signal, tag, word = _RULINGS[becomes]
    change = Change(
        signal=signal,
        actor=ruling.actor,
        reason=f"run {run_id} {word}{notes}",
        tag=tag,
        metadata={"run_id": run_id},
    )
    decide = DecideRun(
        run_id=run_id,
        ruling=ruling,
        becomes=becomes,
        now=now,
        requester_may_approve=requester_may_approve,
    )
    await desk.apply(run.instance_id, change, decide, owner=owner)
    return await desk.read(owner, run_id)


_RULINGS: Mapping[ApprovalState, tuple[Signal, Tag, str]] = {
    ApprovalState.PENDING: (
        Signal.ANNOTATED,
        Tag.PENDING_APPROVAL,
        "approved by one more",
    ),
    ApprovalState.APPROVED: (Signal.RUN_APPROVED, Tag.AWAITING_EXECUTOR, "approved"),
    ApprovalState.REJECTED: (Signal.RUN_ENDED, Tag.APPROVAL_REJECTED, "rejected"),
}


async def cancel_run(
    desk: Desk,
    owner: OwnerId | None,
    run_id: RunId,
    by: str,
    reason: str | None,
    now: datetime,
) -> Run:
    """End a run that waits; of one that runs, ask for the end of its program."""
    why = plain(reason or "cancelled", NOTES_LIMIT)
    for attempt in range(1, TRIES + 1):
        run = await desk.read(owner, run_id)
        advance(run, RunSignal.CANCELLED)
        try:
            if run.status is RunStatus.RUNNING:
                async with desk.database.writing() as conn:
                    return await request_cancel(conn, owner, run_id, why, now)
            await end_run(
                desk, run, called_off(run, FailureReason.CANCELLED, why), by, now
            )
            return await desk.read(owner, run_id)
        except ConflictError:
            if attempt == TRIES:
                raise
    raise AssertionError("unreachable")


async def end_run(
    desk: Desk, run: Run, decided: Outcome, by: str, now: datetime
) -> None:
    """End a run that waits, as it was read; ConflictError if it moved on since."""
    await desk.apply(
        run.instance_id,
        ended(run, decided, by),
        FinishRun(run_id=run.id, outcome=decided, now=now, by=by, version=run.version),
    )


def ended(run: Run, decided: Outcome, by: str) -> Change:
    """Return what the end of a run, or its retry, means for trust."""
    return Change(
        signal=decided.signal,
        actor=by,
        reason=f"run {run.id}: {decided.exit.message}",
        tag=decided.tag,
        metadata={"run_id": run.id},
    )


async def settled(work: Awaitable[None]) -> None:
    """Let one instance's refusal be: the world moved on, and the rest goes on."""
    try:
        await work
    except UnavailableError:
        raise
    except FabricError as error:
        log.info("dispatch.overtaken", error=str(error))


def _made(applied: Applied) -> RunId:
    (run_id,) = applied.written
    assert run_id is not None
    return RunId(run_id)
