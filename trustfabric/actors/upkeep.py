"""What the Dispatcher sees to by the clock: runs that were lost, forgotten or late."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from trustfabric.actors import orders
from trustfabric.actors.attestation import Attest
from trustfabric.actors.orders import Desk
from trustfabric.actors.runs import RunTools
from trustfabric.db import dispatch
from trustfabric.db.artifacts import digest_logs, execution_log
from trustfabric.db.run_writes import FinishRun, tell_breach
from trustfabric.domain.dispatch import DISPATCHER, DispatchSettings
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.runs import (
    ApprovalState,
    Run,
    RunStatus,
    called_off,
    outcome_of_lost,
)

log = structlog.get_logger(__name__)

BATCH = 100
ATTEST_QUIET = timedelta(seconds=30)
"""A re-attestation that is due is asked for again after so long."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """The chores of one Dispatcher."""

    desk: Desk
    tools: RunTools
    settings: DispatchSettings

    async def has_begun(self, run: Run) -> bool:
        """Whether a running run's program may have been started already."""
        async with self.desk.database.reading() as conn:
            return await dispatch.has_begun(conn, run)

    async def end_lost(
        self, run: Run, now: datetime, *, mine: bool, jitter: float
    ) -> None:
        """End a run whose actor or runtime died, or have it tried again.

        `mine`: it was this runtime's and nobody works on it; otherwise its lease has
        to have run out still when this is written.
        """
        executor = self.tools.executors.get(run.executor_type)
        killed = 0 if executor is None else await executor.reap(run.id)
        decided = outcome_of_lost(
            run, self.tools.retry, now, jitter, begun=await self.has_begun(run)
        )
        async with self.desk.database.reading() as conn:
            logs = await digest_logs(conn, [run.id])
        text = execution_log(run.id, logs[run.id], recorded_by=DISPATCHER)
        finish = FinishRun(
            run_id=run.id,
            outcome=decided,
            now=now,
            by=DISPATCHER,
            lease_epoch=run.lease_epoch,
            lease_over_by=None if mine else now,
            log=None if decided.status is RunStatus.PENDING else text,
        )
        change = orders.ended(run, decided, DISPATCHER)
        await self.desk.apply(run.instance_id, change, finish)
        log.warning("run.lost", run_id=run.id, then=decided.status, killed=killed)

    async def overdue(self, now: datetime) -> list[Run]:
        """Return runs that waited too long for a person, or for their turn."""
        async with self.desk.database.reading() as conn:
            return await dispatch.list_overdue(
                conn,
                now,
                approval_ttl_s=self.settings.approval_ttl_s,
                queue_ttl_s=self.settings.queue_ttl_s,
                limit=BATCH,
            )

    async def call_off(self, run: Run, now: datetime) -> None:
        """End a run that is overdue."""
        if run.approval_state is ApprovalState.PENDING:
            reason, text = FailureReason.APPROVAL_EXPIRED, "nobody approved in time"
        else:
            reason, text = FailureReason.QUEUE_EXPIRED, "its turn came too late"
        decided = called_off(run, reason, text)
        await orders.end_run(self.desk, run, decided, DISPATCHER, now)

    async def mended(self, among: Collection[InstanceId] | None) -> list[Run]:
        """Return runs that wait for what was mended meanwhile."""
        async with self.desk.database.reading() as conn:
            return await dispatch.list_mended(conn, among, limit=BATCH)

    async def forsaken(self) -> list[Run]:
        """Return runs that wait for a VM that is gone for good."""
        async with self.desk.database.reading() as conn:
            return await dispatch.list_forsaken(conn, limit=BATCH)

    async def spare(self, run: Run, why: str, now: datetime) -> None:
        """End a run that nobody needs any more."""
        text = f"not needed any more: {why}"
        decided = called_off(run, FailureReason.CANCELLED, text)
        await orders.end_run(self.desk, run, decided, DISPATCHER, now)

    async def tell_breaches(self, now: datetime) -> None:
        """Say of each run, once, that its SLA deadline has passed."""
        async with self.desk.database.reading() as conn:
            breached = await dispatch.list_breached(conn, now, limit=BATCH)
        for run_id in breached:
            async with self.desk.database.writing() as conn:
                told = await tell_breach(conn, run_id, now)
            if told:
                log.warning("run.sla-breached", run_id=run_id)

    async def ask_for_evidence(self, now: datetime) -> None:
        """Have instances re-attested whose run ended while nobody could ask for it."""
        async with self.desk.database.reading() as conn:
            due = await dispatch.list_unverified(conn, now - ATTEST_QUIET, limit=BATCH)
        for instance_id in due:
            self.tools.attestation.tell(Attest(instance_id, "post-run"))
