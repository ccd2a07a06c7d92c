"""Random lives of two instances through the registry, beside a model of contract §2."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

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

from tests.builders import insert_run
from tests.domain.test_trust import MOVES, REFUSED
from tests.fix_fabric import Fabric, a_fabric
from trustfabric.db import trust
from trustfabric.db.session import Database
from trustfabric.db.trust import PostureFilter
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Signal
from trustfabric.domain.wishes import Wish
from trustfabric.errors import (
    FabricError,
    ForbiddenError,
    IllegalTransitionError,
    InvalidError,
    VersionConflictError,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

T = TypeVar("T")
S, L, A = Signal, Lifecycle, AttestationStatus
POWER = {S.BOOTED, S.CRASHED, S.VANISHED, S.EXPIRED}
VERDICTS = {S.TRUSTED_VERDICT, S.UNTRUSTED_VERDICT, S.UNKNOWN_VERDICT}
FRESH = timedelta(seconds=300)


@dataclass(frozen=True)
class Model:
    """What contract §2 says an instance's trust is, in plain words."""

    lifecycle: Lifecycle = L.SUSPECT
    status: AttestationStatus = A.PENDING
    deadline: datetime | None = None
    attempts: int = 0
    version: int = 1
    running: bool = True
    run: int | None = None
    run_ended: datetime | None = None

    def signalled(self, signal: Signal, now: datetime) -> "Model":
        """Return what becomes of it. IllegalTransitionError."""
        if (self.lifecycle, signal) in REFUSED:
            raise IllegalTransitionError("no such move")
        stale = self.deadline is not None and self.deadline <= now
        if signal is S.EXPIRED and not (self.running and stale):
            return self
        lifecycle = MOVES.get((self.lifecycle, signal), self.lifecycle)
        if self.lifecycle is L.REMEDIATING and signal in VERDICTS:
            judged = self.run is None and (
                self.run_ended is None or now > self.run_ended
            )
            lifecycle = lifecycle if judged else self.lifecycle
        status = self._status(signal)
        deadline = self.deadline
        if signal in {S.TRUSTED_VERDICT, S.OVERRIDDEN}:
            deadline = now + FRESH
        if signal in POWER or status is not A.TRUSTED:
            deadline = None
        attempts = self.attempts + (signal is S.RUN_STARTED)
        if signal is S.TRUSTED_VERDICT:
            attempts = 0
        after = replace(
            self,
            lifecycle=lifecycle,
            status=status,
            deadline=deadline,
            attempts=attempts,
        )
        if signal in POWER and after == self:
            return self
        return replace(after, version=self.version + 1)

    def _status(self, signal: Signal) -> AttestationStatus:
        if signal in {S.TRUSTED_VERDICT, S.OVERRIDDEN}:
            return A.TRUSTED
        if signal is S.UNTRUSTED_VERDICT:
            return A.UNTRUSTED
        if signal is S.UNKNOWN_VERDICT and self.status is A.PENDING:
            return A.UNKNOWN
        if (signal in POWER or signal is S.RELEASED) and self.status is A.TRUSTED:
            return A.UNKNOWN
        return self.status

    def wished(self, wish: Wish, now: datetime) -> "Model":
        """Return what a person's wish makes of it, or raise what refuses it."""
        if wish.override:
            if not wish.is_admin:
                raise ForbiddenError("not an admin")
            asked = wish.lifecycle, wish.status
            if asked != (L.RESTORED, A.TRUSTED) or not (wish.reason and wish.deadline):
                raise InvalidError("no override of that")
            return self.signalled(S.OVERRIDDEN, now)
        signal = self._meant(wish)
        if wish.status is not self.status and (
            wish.status is A.TRUSTED or signal is S.ANNOTATED
        ):
            raise IllegalTransitionError("not a status to ask for")
        if wish.deadline and (not self.deadline or wish.deadline > self.deadline):
            raise IllegalTransitionError("freshness is not to be had by hand")
        after = self.signalled(signal, now)
        if signal is S.QUARANTINED_BY_HAND and wish.status is not A.TRUSTED:
            after = replace(after, status=wish.status, deadline=None)
        if wish.deadline and after.deadline:
            after = replace(after, deadline=wish.deadline)
        return after

    def _meant(self, wish: Wish) -> Signal:
        if wish.lifecycle is L.QUARANTINED:
            return S.QUARANTINED_BY_HAND
        if (self.lifecycle, wish.lifecycle) == (L.QUARANTINED, L.SUSPECT):
            if not wish.reason:
                raise InvalidError("no reason")
            return S.RELEASED
        if wish.lifecycle is self.lifecycle:
            return S.ANNOTATED
        raise IllegalTransitionError("not by hand")


class Lives(RuleBasedStateMachine):
    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.fabric: Fabric
        self.ids: list[InstanceId] = []
        self.models: list[Model] = []

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            database = await Database.open(self.url, pool_size=3)
            self._stack.push_async_callback(database.close)
            self.fabric = await self._stack.enter_async_context(
                a_fabric(database, self.url)
            )
            self.ids = await self.fabric.instances(2)
            self.models = [Model(), Model()]

        self._do(begin())

    def teardown(self) -> None:
        self._do(self._stack.aclose())
        self._runner.close()

    @rule(
        which=st.integers(0, 1),
        signal=st.sampled_from(Signal),
        behind=st.sampled_from([None, 0, 0, 1]),
    )
    def a_signal(self, which: int, signal: Signal, behind: int | None) -> None:
        now = self.fabric.clock.now()
        parts = {}
        if signal in {S.TRUSTED_VERDICT, S.OVERRIDDEN}:
            parts["deadline"] = now + FRESH
        change = self.fabric.a_change(signal, **parts)
        self._ask(which, change, behind, lambda model: model.signalled(signal, now))

    @rule(
        which=st.integers(0, 1),
        lifecycle=st.sampled_from(Lifecycle),
        status=st.sampled_from(AttestationStatus),
        is_admin=st.booleans(),
        override=st.booleans(),
        reason=st.sampled_from([None, "why"]),
        fresh_s=st.sampled_from([None, 10, 200, 400]),
        behind=st.sampled_from([None, 0, 1]),
    )
    def a_wish(
        self, which: int, behind: int | None, fresh_s: int | None, **parts: Any
    ) -> None:
        now = self.fabric.clock.now()
        if parts["override"] and fresh_s:
            fresh_s = 300
        deadline = None if fresh_s is None else now + timedelta(seconds=fresh_s)
        wish = Wish(actor="user:7", deadline=deadline, **parts)
        self._ask(which, wish, behind, lambda model: model.wished(wish, now))

    def _ask(self, which: int, change: Any, behind: int | None, expect: Any) -> None:
        model, now_is = self.models[which], self.models[which].version
        expected: Model | type[FabricError]
        try:
            expected = expect(model)
        except FabricError as error:
            expected = type(error)
        if behind:
            expected = VersionConflictError
        version = None if behind is None else now_is - behind
        asked = self.fabric.apply(self.ids[which], change, expected_version=version)
        if isinstance(expected, Model):
            self._do(asked)
            self.models[which] = expected
        else:
            with pytest.raises(expected):
                self._do(asked)

    @rule(seconds=st.sampled_from([1, 60, 299, 300]))
    def time_passes(self, seconds: int) -> None:
        self.fabric.clock.advance(seconds)

    @rule(which=st.integers(0, 1))
    def it_is_stopped_or_started(self, which: int) -> None:
        running = not self.models[which].running
        wanted = "running" if running else "stopped"
        self._sql(
            "UPDATE runtime_vm_instances SET desired_state = %s WHERE id = %s",
            [wanted, self.ids[which]],
        )
        self.models[which] = replace(self.models[which], running=running)

    @precondition(lambda self: any(model.run is None for model in self.models))
    @rule()
    def a_run_is_queued(self) -> None:
        which = next(at for at, model in enumerate(self.models) if model.run is None)

        async def insert() -> int:
            async with self.fabric.database.writing() as conn:
                return await insert_run(conn, self.ids[which])

        self.models[which] = replace(self.models[which], run=self._do(insert()))

    @precondition(lambda self: any(model.run is not None for model in self.models))
    @rule()
    def a_run_ends(self) -> None:
        which = next(at for at, model in enumerate(self.models) if model.run)
        now = self.fabric.clock.now()
        self._sql(
            """
            UPDATE runtime_vm_remediation_runs
               SET status = 'completed', completed_at = %s WHERE id = %s
            """,
            [now, self.models[which].run],
        )
        self.models[which] = replace(self.models[which], run=None, run_ended=now)

    def _sql(self, query: str, values: list[Any]) -> None:
        async def execute() -> None:
            async with self.fabric.database.writing() as conn:
                await conn.execute(query.encode(), values)

        self._do(execute())

    @invariant()
    def the_registry_is_as_the_model_says(self) -> None:
        if self.ids:
            self._do(self._compare())

    async def _compare(self) -> None:
        now = self.fabric.clock.now()
        for instance, model in zip(self.ids, self.models, strict=True):
            row = await self.fabric.posture(instance)
            assert (
                row.lifecycle,
                row.attestation_status,
                row.freshness_deadline,
                row.remediation_attempts,
                row.version,
            ) == (
                model.lifecycle,
                model.status,
                model.deadline,
                model.attempts,
                model.version,
            )
            events = await self.fabric.history(instance)
            newest = events[-1]
            assert [one.version for one in events] == list(range(1, row.version + 1))
            assert (newest.lifecycle, newest.status, newest.freshness_deadline) == (
                row.lifecycle,
                row.attestation_status,
                row.freshness_deadline,
            )
        async with self.fabric.database.reading() as conn:
            stale = await trust.list_postures(conn, PostureFilter(stale=True), now)
            decayed = await trust.list_decayed(conn, now, limit=1000)
        mine = dict(zip(self.ids, self.models, strict=True))
        overdue = {
            instance
            for instance, model in mine.items()
            if model.deadline is not None and model.deadline <= now
        }
        assert {one.instance_id for one in stale} & set(mine) == overdue
        assert set(decayed) & set(mine) == {
            instance
            for instance in overdue
            if mine[instance].running and mine[instance].lifecycle is L.RESTORED
        }


def test_every_life_is_as_the_contract_says(database_url: str) -> None:
    Lives.url = database_url
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
