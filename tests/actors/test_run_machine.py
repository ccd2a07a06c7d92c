"""Runs as a state machine against the real database: what is done, done to a model too.

Two runtimes take turns to claim. The model is written from contract §1, §2 and §7, and
shares no rule with the product.
"""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.builders import insert_owner
from tests.db.fix_runs import ALICE, BOB, add_instance, add_playbook
from trustfabric.actors import orders
from trustfabric.actors.claims import Claims
from trustfabric.actors.orders import Desk
from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import runs, trust
from trustfabric.db.ledger import Entered, Entry, enter
from trustfabric.db.run_writes import FinishRun
from trustfabric.db.session import Database
from trustfabric.domain.approvals import Ruling
from trustfabric.domain.dispatch import DispatchSettings
from trustfabric.domain.executors import ExitStatus
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.runs import (
    RetryPolicy,
    Run,
    RunOrder,
    RunStatus,
    outcome,
    outcome_of_lost,
)
from trustfabric.domain.trust import Change, Lifecycle, Signal
from trustfabric.errors import ConflictError, FabricError, ForbiddenError
from trustfabric.supervision import (
    Address,
    ChildSpec,
    ManualClock,
    Runtime,
    SupervisorSpec,
)

T = TypeVar("T")
CAROL = OwnerId(9)
LEASE_S = 30.0
POLICY = RetryPolicy(limit=2, base_s=10.0, longest_s=10.0)
PEOPLE = st.sampled_from([ALICE, BOB, CAROL])
KEYS = st.sampled_from(["free", "free", "gated", "paired"])
SELDOM = st.integers(0, 5).map(lambda n: n == 0)
"""Of what ends a run: without it few would ever come to be running."""
NEEDED = {"free": 0, "gated": 1, "paired": 2}
ENDS = st.sampled_from([None, FailureReason.EXECUTION_FAILURE, FailureReason.TIMEOUT])


@dataclass
class World:
    """One database and one clock for all examples, each with an instance of its own."""

    loop: asyncio.AbstractEventLoop
    clock: ManualClock
    database: Database
    desk: Desk

    def do(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)


@dataclass
class Expected:
    """What the newest run of the instance has to be."""

    id: RunId
    needed: int
    status: str = "pending"
    given: set[int] = field(default_factory=set)
    rejected: bool = False
    epoch: int = 0
    attempt: int = 0
    stopping: bool = False
    waits_until: Any = None
    lease_until: Any = None

    @property
    def active(self) -> bool:
        return self.status in {"pending", "running"}

    @property
    def approval(self) -> str:
        if self.rejected:
            return "rejected"
        if not self.needed:
            return "auto-approved"
        return "approved" if len(self.given) >= self.needed else "pending"


class RunMachine(RuleBasedStateMachine):
    world: World

    @initialize(quarantined=st.booleans(), key=KEYS)
    def begin(self, key: str, *, quarantined: bool) -> None:
        self.instance: InstanceId = self.world.do(add_instance(self.world.database))
        self.run: Expected | None = None
        self.epochs: list[int] = []
        self.attempts = 0
        self.lifecycle = "suspect"
        if quarantined:
            self.verdict(trusted=False)
        self.enqueue(key)

    def teardown(self) -> None:
        """Leave no run to the next example."""

        async def clear() -> None:
            async with self.world.database.writing() as conn:
                await conn.execute(
                    "UPDATE runtime_vm_remediation_runs SET status = 'cancelled'"
                    " WHERE status IN ('pending', 'running')"
                )

        self.world.do(clear())

    # --- people -------------------------------------------------------------------

    @rule(key=KEYS)
    def enqueue(self, key: str) -> None:
        order = RunOrder(instance_id=self.instance, requested_by=f"user:{ALICE}")
        work = orders.enqueue_run(self.world.desk, None, order, key, self.now)
        if self.run is not None and self.run.active:
            self.refused(work)
            return
        made = self.world.do(work)
        self.run, self.epochs = Expected(made.id, NEEDED[key]), []
        if self.lifecycle == "quarantined":
            self.lifecycle = "remediating"

    @precondition(lambda self: self.run is not None)
    @rule(by=PEOPLE, reject=SELDOM, stale=st.booleans())
    def decide(self, by: OwnerId, *, reject: bool, stale: bool) -> None:
        run, approve = self.expected, not reject
        version = self.read().version - stale
        ruling = Ruling(approve=approve, by=by, expected_version=version)
        work = orders.decide_approval(
            self.world.desk, None, run.id, ruling, self.now, requester_may_approve=False
        )
        allowed = run.status == "pending" and run.approval == "pending" and not stale
        if not allowed or (approve and (by == ALICE or by in run.given)):
            self.refused(work)
            return
        self.world.do(work)
        if approve:
            run.given.add(by)
        else:
            run.rejected = True
            self.end("cancelled")

    def consent(self) -> None:
        """Have everybody agree whom it takes."""
        for by in (BOB, CAROL):
            if self.waits_for_people and by not in self.expected.given:
                self.decide(by, reject=False, stale=False)

    @precondition(lambda self: self.run is not None)
    @rule(really=SELDOM)
    def cancel(self, *, really: bool) -> None:
        run = self.expected
        if run.active and not really:
            return
        work = orders.cancel_run(
            self.world.desk, None, run.id, "user:8", None, self.now
        )
        if not run.active:
            self.refused(work)
            return
        self.world.do(work)
        if run.status == "running":
            run.stopping = True
        else:
            self.end("cancelled")

    # --- runtimes -----------------------------------------------------------------

    @precondition(lambda self: self.run is not None and self.run.status == "pending")
    @rule()
    def claim_in_time(self) -> None:
        """Claim it when it may be: what is rare by chance is the heart of it."""
        if self.expected.waits_until is not None:
            self.wait(10)
        self.consent()
        self.claim("one")

    @rule(runtime=st.sampled_from(["one", "two"]))
    def claim(self, runtime: str) -> None:
        started: list[tuple[RunId, int]] = []

        async def start(run_id: RunId, epoch: int) -> None:
            started.append((run_id, epoch))

        chosen = replace(SETTINGS, runtime_id=runtime)
        claims = Claims(self.world.desk, chosen, LEASE_S, start)
        self.world.do(claims.claim(self.now))
        run = self.run
        ready = (
            run is not None
            and run.status == "pending"
            and run.approval in {"approved", "auto-approved"}
            and (run.waits_until is None or run.waits_until <= self.now)
        )
        mine = [(one, epoch) for one, epoch in started if run and one == run.id]
        if not ready:
            assert not mine
            return
        assert run is not None
        assert len(mine) == 1
        run.epoch = mine[0][1]
        assert run.epoch not in self.epochs
        self.epochs.append(run.epoch)
        self.attempts += run.attempt == 0
        run.attempt += 1
        run.status, run.waits_until = "running", None
        run.lease_until = self.now + timedelta(seconds=LEASE_S)
        self.lifecycle = "remediating"

    @precondition(lambda self: self.run is not None and self.run.attempt > 0)
    @rule(reason=ENDS, data=st.data())
    def finish(self, reason: FailureReason | None, data: st.DataObject) -> None:
        """End it as its actor does; one whose lease is not the newest ends nothing."""
        self.finish_under(data.draw(st.sampled_from(self.epochs)), reason)

    @precondition(lambda self: self.run is not None and self.run.status == "running")
    @rule()
    def try_again(self) -> None:
        """Go through a transient failure; the lease before is then worth nothing."""
        old = self.expected.epoch
        self.finish_under(old, FailureReason.TIMEOUT)
        if self.expected.status == "pending":
            self.wait(10)
            self.claim("two")
            self.beat_under(old)
            self.finish_under(old, None)

    @precondition(lambda self: self.run is not None and self.run.status == "running")
    @rule()
    def come_too_late(self) -> None:
        """Let the lease run out: it is not to be had again."""
        self.wait(31)
        self.beat_under(self.expected.epoch)

    def finish_under(self, epoch: int, reason: FailureReason | None) -> None:
        run = self.expected
        stopped = FailureReason.CANCELLED if run.stopping else reason
        exit_status = ExitStatus(
            code=None, message="ended", failure_reason=stopped, duration_s=1.0
        )
        row = self.read()
        held = run.status == "running" and epoch == run.epoch
        if not held:
            self.refused(self.write_end(row, exit_status, epoch, held=False))
            return
        self.world.do(self.write_end(row, exit_status, epoch, held=True))
        match stopped:
            case None:
                run.status = "completed"
            case FailureReason.TIMEOUT if run.attempt <= POLICY.limit:
                run.status = "pending"
                run.waits_until = self.now + timedelta(seconds=10)
            case FailureReason.CANCELLED:
                self.end("cancelled")
            case _:
                self.end("failed")

    async def write_end(
        self, row: Run, exit_status: ExitStatus, epoch: int, *, held: bool
    ) -> None:
        if not held:
            # What a runtime decides that never heard of the lease it lost.
            row = believed_running(row)
        decided = outcome(row, exit_status, POLICY, self.now, 1.0)
        await self.world.desk.apply(
            self.instance,
            orders.ended(row, decided, f"run:{row.id}"),
            FinishRun(
                run_id=row.id,
                outcome=decided,
                now=self.now,
                by="test",
                lease_epoch=epoch,
            ),
        )

    @precondition(lambda self: self.run is not None and self.run.attempt > 0)
    @rule(begun=st.booleans(), stale=st.booleans())
    def sweep(self, *, begun: bool, stale: bool) -> None:
        """Another runtime takes the run for lost: only if its lease has run out."""
        run, lost = self.expected, replace(self.read(), status=RunStatus.RUNNING)
        if stale:
            lost = believed_running(lost)  # read before anybody asked for its end
        decided = outcome_of_lost(lost, POLICY, self.now, 1.0, begun=begun)
        work = self.world.desk.apply(
            self.instance,
            orders.ended(lost, decided, "actor:dispatcher"),
            FinishRun(
                run_id=run.id,
                outcome=decided,
                now=self.now,
                by="test",
                lease_epoch=run.epoch,
                lease_over_by=self.now,
            ),
        )
        retried = not begun and run.attempt <= POLICY.limit
        over = run.status == "running" and run.lease_until <= self.now
        if not over or (retried and run.stopping and stale):
            self.refused(work)
        elif run.stopping and not stale:
            self.world.do(work)
            self.end("cancelled")
        elif retried:
            self.world.do(work)
            run.status = "pending"
            run.waits_until = self.now + timedelta(seconds=10)
        else:
            self.world.do(work)
            self.end("failed")

    @precondition(lambda self: self.run is not None and self.run.attempt > 0)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        """Renew a lease; only the newest, and only while it lasts."""
        self.beat_under(data.draw(st.sampled_from(self.epochs)))

    def beat_under(self, epoch: int) -> None:
        run = self.expected
        until = self.now + timedelta(seconds=LEASE_S)

        async def beat() -> Entered:
            entry = Entry(run_id=run.id, epoch=epoch, now=self.now, until=until)
            async with self.world.database.writing() as conn:
                return (await enter(conn, [entry]))[run.id]

        found = self.world.do(beat())
        held = run.status == "running" and epoch == run.epoch
        assert found.held == (held and run.lease_until > self.now)
        if found.held:
            run.lease_until = until
            assert found.run is not None
            assert (found.run.cancellation_reason is not None) == run.stopping

    # --- evidence and time ----------------------------------------------------------

    @rule(trusted=st.booleans())
    def verdict(self, *, trusted: bool) -> None:
        signal = Signal.TRUSTED_VERDICT if trusted else Signal.UNTRUSTED_VERDICT
        self.world.clock.advance(1)  # it is of a challenge issued after the run ended
        change = Change(
            signal=signal,
            actor="test",
            reason="verdict",
            challenge_issued_at=self.now,
        )
        self.world.do(
            self.world.desk.trust.ask(
                ApplyChange(instance_id=self.instance, change=change), within_s=10
            )
        )
        if trusted:
            self.attempts = 0
        repaired = self.lifecycle == "remediating" and not (
            self.run and self.run.active
        )
        if self.lifecycle in {"suspect", "restored"} or repaired:
            self.lifecycle = "restored" if trusted else "quarantined"

    @rule(seconds=st.sampled_from([1, 10, 31]))
    def wait(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    # --- what always holds ----------------------------------------------------------

    @invariant()
    def the_rows_are_as_expected(self) -> None:
        if self.run is None:
            return
        run = self.run
        row, events = self.world.do(self.look(run.id))
        assert (row.status, row.approval_state) == (run.status, run.approval)
        assert (row.attempt, row.approvals_given) == (run.attempt, len(run.given))
        assert row.lease_epoch >= run.epoch
        assert (row.lease_owner is not None) == (run.status == "running")
        assert (row.failure_reason is not None) == (
            run.status in {"failed", "cancelled"}
            or (run.status == "pending" and run.waits_until is not None)
        )
        assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
        assert events[-1][1] == run.status

    @invariant()
    def the_registry_agrees(self) -> None:
        posture = self.world.do(self.posture())
        assert posture.lifecycle == self.lifecycle
        assert posture.remediation_attempts == self.attempts
        if posture.lifecycle is Lifecycle.REMEDIATING:
            assert self.run is not None
            assert self.run.active or self.run.status == "completed"
        if self.run is not None and self.run.status == "running":
            assert posture.lifecycle is Lifecycle.REMEDIATING

    # --- means ------------------------------------------------------------------------

    @property
    def waits_for_people(self) -> bool:
        run = self.run
        waits = run is not None and run.status == "pending"
        return waits and self.expected.approval == "pending"

    @property
    def now(self) -> Any:
        return self.world.clock.now()

    @property
    def expected(self) -> Expected:
        assert self.run is not None
        return self.run

    def end(self, status: str) -> None:
        self.expected.status = status
        if self.lifecycle == "remediating":
            self.lifecycle = "quarantined"

    def read(self) -> Run:
        return self.world.do(self.world.desk.read(None, self.expected.id))

    def refused(self, work: Awaitable[object]) -> None:
        with pytest.raises((ConflictError, ForbiddenError)):
            self.world.do(work)

    async def look(self, run_id: RunId) -> tuple[Run, list[Any]]:
        async with self.world.database.reading() as conn:
            row = await runs.get_run(conn, None, run_id)
            events = await conn.execute(
                "SELECT seq, payload #>> '{event,status}'"
                "  FROM runtime_vm_remediation_events WHERE run_id = %s ORDER BY seq",
                [run_id],
            )
            assert row is not None
            return row, await events.fetchall()

    async def posture(self) -> Any:
        async with self.world.database.reading() as conn:
            found = await trust.get_posture(conn, None, self.instance)
        assert found is not None
        return found


SETTINGS = DispatchSettings(
    runtime_id="", concurrency=100_000, owner_concurrency=100_000
)


def believed_running(row: Run) -> Run:
    """The row as somebody holds it who believes that it runs."""
    return replace(row, status=RunStatus.RUNNING, cancellation_reason=None)


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    loop, clock = asyncio.new_event_loop(), ManualClock()
    stack = AsyncExitStack()

    async def build() -> World:
        database = await Database.open(database_url)
        stack.push_async_callback(database.close)
        registry: Address[TrustRegistry] = Address("trust")
        runtime = Runtime(answers=(FabricError,), clock=clock)
        child = ChildSpec(address=registry, start=lambda: TrustRegistry(database))
        await runtime.start(SupervisorSpec(name="fabric", children=(child,)))
        stack.push_async_callback(runtime.stop)
        async with database.writing() as conn:
            for user in (ALICE, BOB, CAROL):
                await insert_owner(conn, user)
        for key, count in NEEDED.items():
            rules = {"approvals_required": count} if count else {}
            await add_playbook(
                database,
                key=key,
                approval_required=count > 0,
                metadata={"script": "true", **rules},
            )
        return World(loop, clock, database, Desk(database, registry))

    built = loop.run_until_complete(build())
    try:
        yield built
    finally:
        loop.run_until_complete(stack.aclose())
        loop.close()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_whatever_is_done_runs_stay_as_the_contract_says(world: World) -> None:
    machine = type("Machine", (RunMachine,), {"world": world})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
