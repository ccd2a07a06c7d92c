"""The end of a run's attempt, written down with what it means for trust."""

from dataclasses import dataclass
from datetime import datetime

from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import artifacts, runs
from trustfabric.db.artifacts import execution_log
from trustfabric.db.run_writes import FinishRun
from trustfabric.db.session import Database
from trustfabric.domain.run_events import LogDigest
from trustfabric.domain.runs import Outcome, Run, RunStatus
from trustfabric.domain.trust import Change, Signal
from trustfabric.errors import IllegalTransitionError
from trustfabric.supervision import Address

ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended that was made under the run's lease."""

    run: Run
    decided: Outcome
    log: LogDigest

    async def write(
        self, database: Database, trust: Address[TrustRegistry], now: datetime
    ) -> None:
        """Keep its files and end it; ConflictError: the run has moved on."""
        await self._keep_files(database)
        run, decided = self.run, self.decided
        by, is_last = f"run:{run.id}", decided.status is not RunStatus.PENDING
        text = execution_log(run.id, self.log, recorded_by=by)
        finish = FinishRun(
            run_id=run.id,
            outcome=decided,
            now=now,
            by=by,
            lease_epoch=run.lease_epoch,
            log=text if is_last else None,
        )
        try:
            await self._apply(trust, decided.signal, finish)
        except IllegalTransitionError:
            # Somebody moved the instance meanwhile: the run ends, the state stays.
            await self._apply(trust, Signal.ANNOTATED, finish)

    async def _keep_files(self, database: Database) -> None:
        """Keep what the last attempt left, beside the registry's own commits."""
        files = self.decided.exit.files
        if self.decided.status is RunStatus.PENDING or not files:
            return
        async with database.writing() as conn:
            run = await runs.lock_run(conn, self.run.id)
            if run.lease_epoch == self.run.lease_epoch:
                await artifacts.keep_files(conn, run, files)

    async def _apply(
        self, trust: Address[TrustRegistry], signal: Signal, finish: FinishRun
    ) -> None:
        change = Change(
            signal=signal,
            actor=finish.by,
            reason=f"run {self.run.id}: {self.decided.exit.message}",
            tag=self.decided.tag,
            metadata={"run_id": self.run.id},
        )
        await trust.ask(
            ApplyChange(
                instance_id=self.run.instance_id, change=change, companions=(finish,)
            ),
            within_s=ASK_S,
        )
