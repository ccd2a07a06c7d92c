"""A run's actor: holds its lease, has it executed, writes down what it says.

It is temporary: a half-done playbook is never blindly begun again. When it dies, its
program dies with it, and the Dispatcher finds the run and decides.

The lease is what makes one execution of a run the only one. It is renewed by a
heartbeat, and a guard beside the mailbox kills the program before the lease runs
out, whatever the mailbox waits for: from then on the run may be somebody else's.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

import structlog

from trustfabric.actors.attestation import Attest, Attestation
from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import artifacts, run_events, runs
from trustfabric.db.run_writes import FinishRun
from trustfabric.db.session import Database
from trustfabric.domain.executors import (
    Executor,
    ExitStatus,
    Job,
    LogStream,
    RemediationLogEvent,
)
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import RunId
from trustfabric.domain.observed import observe
from trustfabric.domain.rules import is_observe_only
from trustfabric.domain.run_events import begins, log_event
from trustfabric.domain.runs import Outcome, RetryPolicy, Run, RunStatus, outcome
from trustfabric.domain.specs import ExecutorType, budget_s
from trustfabric.domain.trust import Change, Signal
from trustfabric.errors import ConflictError, IllegalTransitionError, UnavailableError
from trustfabric.supervision import Actor, Address, Notice
from trustfabric.supervision.errors import AskError

log = structlog.get_logger(__name__)

ASK_S = 10.0
AGAIN_S = 0.5
LOG_BUFFER = 1000
"""Lines that wait to be written; a program that prints more is slowed down."""

LEASE_MARGIN = 0.1
"""The share of a lease that is left when its program is killed at the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTools:
    """What every run's actor works with."""

    database: Database
    trust: Address[TrustRegistry]
    attestation: Address[Attestation]
    over: Callable[[RunId], object]
    """Told when a run's actor has nothing left to do."""
    executors: Mapping[ExecutorType, Executor]
    issue_token: Callable[[Run, datetime], str]
    """A token for this run's lease; the time is when it is of no use any more."""
    retry: RetryPolicy
    lease_s: float


@dataclass(frozen=True, slots=True)
class LookAtLease(Notice["RunActor"]):
    """See at once whether the run is still ours, and whether its end was asked for."""


@dataclass(frozen=True, slots=True)
class _Begin(Notice["RunActor"]):
    pass


@dataclass(frozen=True, slots=True)
class _Flush(Notice["RunActor"]):
    pass


@dataclass(frozen=True, slots=True)
class _Beat(Notice["RunActor"]):
    pass


@dataclass(frozen=True, slots=True)
class _Executed(Notice["RunActor"]):
    result: ExitStatus | BaseException


@dataclass(frozen=True, slots=True)
class _Finish(Notice["RunActor"]):
    pass


@dataclass(frozen=True, slots=True)
class _GuardEnded(Notice["RunActor"]):
    pass


Message = LookAtLease | _Begin | _Flush | _Beat | _Executed | _Finish | _GuardEnded


class RunActor(Actor):
    def __init__(self, run_id: RunId, lease_epoch: int, tools: RunTools) -> None:
        super().__init__()
        self._run_id = run_id
        self._epoch = lease_epoch
        self._tools = tools
        self._row: Run | None = None
        self._lease_until = self.now()
        self._is_lost = False
        self._is_over = False
        self._cancelled = asyncio.Event()
        self._work: asyncio.Task[ExitStatus] | None = None
        self._guarding: asyncio.Task[None] | None = None
        self._exit: ExitStatus | None = None
        self._lines: list[tuple[RemediationLogEvent, datetime]] = []
        self._room = asyncio.Event()
        self._flush_due = False
        self._in_store = 0
        """Log lines of the run that are in the database for certain."""
        self._is_unsure = False

    def on_start(self) -> None:
        self.after(0, _Begin())

    async def handle(self, message: Message) -> None:
        match message:
            case _Begin():
                await self._begin()
            case _Flush():
                await self._flush()
            case _Beat():
                await self._beat()
                self._beat_later()
            case LookAtLease():
                await self._beat()
            case _Executed(result):
                await self._executed(result)
            case _Finish():
                await self._finish()
            case _GuardEnded():
                pass
            case _:
                assert_never(message)

    # --- beginning --------------------------------------------------------------

    async def _begin(self) -> None:
        """Note that this attempt begins, and begin it: the note outlives us."""
        now = self.now()
        until = now + timedelta(seconds=self._tools.lease_s)
        try:
            async with self._tools.database.writing() as conn:
                run = await runs.lock_run(conn, self._run_id)
                beat = await runs.beat(
                    conn, self._run_id, self._epoch, now=now, until=until
                )
                if beat.held:
                    line = RemediationLogEvent(LogStream.SYSTEM, begins(run.attempt))
                    await run_events.append(conn, run, [log_event(line, now)])
                    self._in_store = await run_events.count_log(conn, self._run_id)
        except UnavailableError:
            self.after(AGAIN_S, _Begin())
            return
        if not beat.held:
            self._over()
            return
        self._row = run
        self._lease_until = until
        if beat.cancellation_reason is not None:
            self._cancelled.set()
        self._work = self.run(self._execute(run), _Executed)
        self._guarding = self.run(self._guard(self._work), lambda _: _GuardEnded())
        self._beat_later()

    async def _execute(self, run: Run) -> ExitStatus:
        if is_observe_only(run.spec):
            return await self._observe(run)
        executor = self._tools.executors.get(run.executor_type)
        if executor is None:
            return ExitStatus(
                code=None,
                message=f"this installation has no {run.executor_type} executor",
                failure_reason=FailureReason.EXECUTOR_UNAVAILABLE,
                duration_s=0.0,
            )
        log.info("run.started", run_id=run.id, attempt=run.attempt)
        return await executor.execute(self._job(run), self._emit, self._cancelled)

    async def _observe(self, run: Run) -> ExitStatus:
        observed = observe(run)
        for line in observed.lines:
            await self._emit(line)
        return observed.exit

    def _job(self, run: Run) -> Job:
        longest = timedelta(seconds=budget_s(run.spec) + self._tools.lease_s)
        return Job(
            run_id=run.id,
            instance_id=run.instance_id,
            instance_name=run.instance_name,
            server_id=run.server_id,
            owner_id=run.owner_id,
            playbook=run.playbook,
            attempt=run.attempt,
            lease_epoch=run.lease_epoch,
            spec=run.spec,
            payload=run.parameters,
            metadata=run.metadata,
            token=self._tools.issue_token(run, self.now() + longest),
        )

    # --- the lease ----------------------------------------------------------------

    async def _guard(self, work: asyncio.Task[ExitStatus]) -> None:
        """Kill the program when the lease was not renewed in time."""
        margin = timedelta(seconds=self._tools.lease_s * LEASE_MARGIN)
        while (left := self._lease_until - margin - self.now()) > timedelta():
            await self.sleep(left.total_seconds())
        self._is_lost = True
        work.cancel()

    def _beat_later(self) -> None:
        if not self._is_over:
            self.after(self._tools.lease_s / 3, _Beat())

    async def _beat(self) -> None:
        if self._row is None or self._is_over:
            return
        now = self.now()
        until = now + timedelta(seconds=self._tools.lease_s)
        try:
            async with self._tools.database.writing() as conn:
                beat = await runs.beat(
                    conn, self._run_id, self._epoch, now=now, until=until
                )
        except UnavailableError as error:
            log.warning("run.heartbeat", run_id=self._run_id, error=str(error))
            return
        if not beat.held:
            self._lose()
            return
        self._lease_until = until
        if beat.cancellation_reason is not None:
            self._cancelled.set()

    def _lose(self) -> None:
        self._is_lost = True
        if self._work is not None and not self._work.done():
            self._work.cancel()
        else:
            self._over()

    def _over(self) -> None:
        self._is_over = True
        self._tools.over(self._run_id)

    # --- the log ------------------------------------------------------------------

    async def _emit(self, line: RemediationLogEvent) -> None:
        while len(self._lines) >= LOG_BUFFER:
            self._room.clear()
            await self._room.wait()
        self._lines.append((line, self.now()))
        self._flush_soon(0)

    def _flush_soon(self, delay_s: float) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.after(delay_s, _Flush())

    async def _flush(self) -> None:
        self._flush_due = False
        if not await self._write_lines() and not self._is_lost:
            self._flush_soon(AGAIN_S)

    async def _write_lines(self) -> bool:
        """Write the lines that wait, each exactly once; False: the database is away."""
        batch = self._lines[:LOG_BUFFER]
        try:
            async with self._tools.database.writing() as conn:
                run = await runs.lock_run(conn, self._run_id)
                if run.lease_epoch != self._epoch:
                    self._lose()
                    return True
                if self._is_unsure:
                    # A commit may have happened although its answer was lost.
                    found = await run_events.count_log(conn, self._run_id)
                    self._wrote(found - self._in_store)
                    batch = self._lines[:LOG_BUFFER]
                await run_events.append(
                    conn, run, [log_event(line, at) for line, at in batch]
                )
                self._is_unsure = True
        except UnavailableError as error:
            log.warning("run.log-waits", run_id=self._run_id, error=str(error))
            return False
        self._is_unsure = False
        self._wrote(len(batch))
        return True

    def _wrote(self, count: int) -> None:
        del self._lines[:count]
        self._in_store += count
        self._room.set()

    # --- the end ------------------------------------------------------------------

    async def _executed(self, result: ExitStatus | BaseException) -> None:
        if isinstance(result, ExitStatus):
            self._exit = result
            await self._finish()
        elif self._is_lost:
            log.warning("run.lease-lost", run_id=self._run_id)
            self._over()
        else:
            raise result

    async def _finish(self) -> None:
        """Write the end down, again and again while the lease holds."""
        while self._lines and not self._is_lost:
            if not await self._write_lines():
                self.after(AGAIN_S, _Finish())
                return
        if self._is_lost or self._is_over:
            self._over()
            return
        try:
            decided = await self._record()
        except (UnavailableError, AskError) as error:
            log.warning("run.end-waits", run_id=self._run_id, error=str(error))
            self.after(AGAIN_S, _Finish())
            return
        except ConflictError:
            # Ended or taken over meanwhile; or our own write, whose answer was lost.
            log.info("run.ended-already", run_id=self._run_id)
        else:
            log.info("run.ended", run_id=self._run_id, status=decided.status)
        if self._exit is not None and self._exit.failure_reason is None:
            assert self._row is not None
            self._tools.attestation.tell(Attest(self._row.instance_id, "post-run"))
        self._over()

    async def _record(self) -> Outcome:
        assert self._row is not None
        assert self._exit is not None
        decided = outcome(
            self._row, self._exit, self._tools.retry, self.now(), self.random.random()
        )
        await self._keep_files(decided)
        by, is_last = f"run:{self._run_id}", decided.status is not RunStatus.PENDING
        async with self._tools.database.reading() as conn:
            text = await artifacts.execution_log(conn, self._run_id, recorded_by=by)
        finish = FinishRun(
            run_id=self._run_id,
            outcome=decided,
            now=self.now(),
            by=by,
            lease_epoch=self._epoch,
            log=text if is_last else None,
        )
        try:
            await self._apply(decided, decided.signal, finish)
        except IllegalTransitionError:
            # Somebody moved the instance meanwhile: the run ends, the state stays.
            await self._apply(decided, Signal.ANNOTATED, finish)
        return decided

    async def _keep_files(self, decided: Outcome) -> None:
        """Keep what the last attempt left, beside the registry's own commits."""
        files = decided.exit.files
        if decided.status is RunStatus.PENDING or not files:
            return
        async with self._tools.database.writing() as conn:
            run = await runs.lock_run(conn, self._run_id)
            if run.lease_epoch == self._epoch:
                await artifacts.keep_files(conn, run, files)

    async def _apply(self, decided: Outcome, signal: Signal, finish: FinishRun) -> None:
        assert self._row is not None
        await self._tools.trust.ask(
            ApplyChange(
                instance_id=self._row.instance_id,
                change=Change(
                    signal=signal,
                    actor=f"run:{self._run_id}",
                    reason=f"run {self._run_id}: {decided.exit.message}",
                    tag=decided.tag,
                    metadata={"run_id": self._run_id},
                ),
                companions=(finish,),
            ),
            within_s=ASK_S,
        )
