"""A run's actor: holds its lease, has it executed, writes down what it says.

It is temporary: a half-done playbook is never blindly begun again. When it dies, its
program dies with it, and the Dispatcher finds the run and decides.

The lease is what makes one execution of a run the only one. It is renewed by a
heartbeat, and a guard beside the mailbox kills the program before the lease runs
out, whatever the mailbox waits for: from then on the run may be somebody else's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

import structlog

from trustfabric.actors.attestation import Attest, Attestation
from trustfabric.actors.endings import Ending
from trustfabric.actors.ledger import Enter, Ledger
from trustfabric.actors.trust import TrustRegistry
from trustfabric.db.ledger import Entered, Entry
from trustfabric.db.session import Database
from trustfabric.domain.executors import (
    Executor,
    ExitStatus,
    Job,
    RemediationLogEvent,
)
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import RunId
from trustfabric.domain.observed import observe
from trustfabric.domain.rules import is_observe_only
from trustfabric.domain.run_events import LogDigest, RunEvent, log_event
from trustfabric.domain.runs import Outcome, RetryPolicy, Run, outcome
from trustfabric.domain.specs import ExecutorType, budget_s
from trustfabric.errors import (
    ConflictError,
    InvalidError,
    UnavailableError,
)
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
    ledger: Address[Ledger]
    attestation: Address[Attestation]
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
        self._lines: list[RunEvent] = []
        self._room = asyncio.Event()
        self._flush_due = False
        self._in_store = 0
        """Log lines of the run that are in the database for certain."""
        self._is_unsure = False
        self._log = LogDigest()
        """Of those lines."""

    def on_start(self) -> None:
        self.address.tell(_Begin())

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
        until = self.now() + timedelta(seconds=self._tools.lease_s)
        entered = await self._enter(until=until, begins=True)
        if entered is None:
            self.after(AGAIN_S, _Begin())
            return
        run = entered.run
        if run is None:
            self._over()
            return
        assert entered.log is not None
        self._log, self._in_store = entered.log, entered.in_store
        self._row = run
        self._lease_until = until
        if run.cancellation_reason is not None:
            self._cancelled.set()
        self._work = self.run(self._execute(run), _Executed)
        self._guarding = self.run(self._guard(self._work), lambda _: _GuardEnded())
        self._beat_later()

    async def _execute(self, run: Run) -> ExitStatus:
        if not run.is_intact:
            return ExitStatus(
                code=None,
                message="what would run is not what was agreed to: its digest differs",
                failure_reason=FailureReason.POLICY_DENIED,
                duration_s=0.0,
            )
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

    async def _enter(
        self,
        *,
        until: datetime | None = None,
        begins: bool = False,
        lines: Sequence[RunEvent] = (),
    ) -> Entered | None:
        """Have something written under the lease; None: nobody knows whether it was."""
        entry = Entry(
            run_id=self._run_id,
            epoch=self._epoch,
            now=self.now(),
            until=until,
            begins=begins,
            lines=lines,
            in_store=self._in_store,
            is_unsure=self._is_unsure and bool(lines),
        )
        try:
            return await self._tools.ledger.ask(Enter(entry), within_s=ASK_S)
        except InvalidError as error:
            raise RuntimeError("the program printed what can't be stored") from error
        except (UnavailableError, AskError) as error:
            log.warning("run.entry-waits", run_id=self._run_id, error=str(error))
            return None

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
        until = self.now() + timedelta(seconds=self._tools.lease_s)
        entered = await self._enter(until=until)
        if entered is None:
            return
        if entered.run is None:
            self._lose()
            return
        self._lease_until = until
        if entered.run.cancellation_reason is not None:
            self._cancelled.set()

    def _lose(self) -> None:
        self._is_lost = True
        if self._work is not None and not self._work.done():
            self._work.cancel()
        else:
            self._over()

    def _is_taken(self) -> bool:
        return self._is_lost or self._is_over

    def _over(self) -> None:
        self._is_over = True
        self.stop()

    # --- the log ------------------------------------------------------------------

    async def _emit(self, line: RemediationLogEvent) -> None:
        while len(self._lines) >= LOG_BUFFER:
            self._room.clear()
            await self._room.wait()
        self._lines.append(log_event(line, self.now()))
        self._flush_soon(0)

    def _flush_soon(self, delay_s: float) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.after(delay_s, _Flush())

    async def _flush(self) -> None:
        self._flush_due = False
        if self._lines and not await self._write_lines() and not self._is_lost:
            self._flush_soon(AGAIN_S)

    async def _write_lines(self) -> bool:
        """Write the lines that wait, each exactly once; False: not for certain."""
        lines = self._lines[:LOG_BUFFER]
        entered = await self._enter(lines=lines)
        # A commit may have happened although its answer was lost.
        self._is_unsure = entered is None
        if entered is None:
            return False
        if not entered.held:
            self._lose()
            return True
        written = lines[: entered.in_store - self._in_store]
        self._log = self._log.after(written, entered.through_seq)
        self._in_store = entered.in_store
        del self._lines[: len(written)]
        self._room.set()
        return True

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
        if self._is_taken():
            self._over()
            return
        assert self._row is not None
        decided = self._decide(self._row)
        if self._lines and not await self._write_lines():
            self.after(AGAIN_S, _Finish())
            return
        if self._is_taken():
            return
        try:
            ending = Ending(self._row, decided, self._log)
            await ending.write(self._tools.database, self._tools.trust, self.now())
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
            self._tools.attestation.tell(Attest(self._row.instance_id, "post-run"))
        self._over()

    def _decide(self, run: Run) -> Outcome:
        assert self._exit is not None
        policy, jitter = self._tools.retry, self.random.random()
        return outcome(run, self._exit, policy, self.now(), jitter)
