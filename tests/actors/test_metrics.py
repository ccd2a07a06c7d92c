"""The Meter: what the streams tell is counted, and what they can't is looked up."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.builders import insert_run
from tests.fix_fabric import ASK_S, Fabric, until
from trustfabric.actors.counters import (
    BATCH_SIZE,
    BREACHES,
    COMMIT,
    DECISIONS,
    DELIVERY,
    EXPIRIES,
    FAMILY,
    MOVES,
    OTHER,
    QUARANTINES,
    REFUSALS,
    RUNS,
    SECONDS,
    TO_QUARANTINE,
    TO_RESTORATION,
    TOLD,
    VERDICTS,
    Counted,
    Counters,
    Measured,
    Spread,
)
from trustfabric.actors.metrics import KEEP_S, Measure, Meter, Reading
from trustfabric.actors.placement import Launch, judge
from trustfabric.actors.trust import TrustRegistry
from trustfabric.db import placement, run_events, runs
from trustfabric.db.session import Database
from trustfabric.domain.attestation.collateral import Stock
from trustfabric.domain.executors import LogStream
from trustfabric.domain.ids import InstanceId, RunId
from trustfabric.domain.run_events import RunEvent
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Signal
from trustfabric.errors import FabricError
from trustfabric.supervision import (
    Address,
    AskError,
    ChildSpec,
    ManualClock,
    Runtime,
    SupervisorSpec,
)

L = Lifecycle


@dataclass(kw_only=True)
class Metered(Fabric):
    """The tree with a Meter."""

    counters: Counters = field(default_factory=Counters)
    meter: Address[Meter] = field(default_factory=lambda: Address("metrics"))

    async def stock(self) -> dict[str, Stock]:
        return {"amd": Stock(self.clock.now(), 2)}

    def spec(self) -> SupervisorSpec:
        below = super().spec()
        return SupervisorSpec(
            name=below.name,
            max_restarts=100,
            children=(
                below.children[0],
                ChildSpec(
                    address=self.trust,
                    start=lambda: TrustRegistry(self.database, self.counters),
                ),
                ChildSpec(
                    address=self.meter,
                    start=lambda: Meter(
                        self.database, self.broadcaster, self.counters, self.stock
                    ),
                ),
            ),
        )

    async def measure(self) -> Reading:
        return await self.meter.ask(Measure(), within_s=ASK_S)

    async def until_count(self, family: Counted, *labels: str, is_: int = 1) -> None:
        async def look() -> bool | None:
            return self.count(family, *labels) == is_ or None

        await until(look, f"{family.name}{labels} to be {is_}")

    def count(self, family: Counted, *labels: str) -> int:
        return dict(self.counters.counts(family)).get(labels, 0)

    def spread(self, family: Measured, *labels: str) -> Spread:
        known = dict(self.counters.spreads(family))
        return known.get(labels, Spread(family.buckets))

    async def verdict(
        self, instance: InstanceId, signal: Signal, status: str, **told: Any
    ) -> None:
        """Record a verdict with the row of its evidence, as attestation does."""
        async with self.database.writing() as conn:
            cursor = await conn.execute(
                """
                INSERT INTO runtime_vm_attestations (
                       runtime_vm_instance_id, attestation_kind, verification_status)
                VALUES (%s, 'tpm', %s) RETURNING id
                """,
                [instance, status],
            )
            row = await cursor.fetchone()
        assert row is not None
        await self.change(
            instance,
            signal,
            actor="actor:attestation",
            attestation_id=row[0],
            provenance_ref=f"attestation:tpm:{row[0]}",
            provenance={"kind": "tpm", **told},
        )


@pytest_asyncio.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Metered]:
    runtime = Runtime(clock=ManualClock(), answers=(FabricError, AskError))
    started = Metered(
        runtime=runtime,
        clock=runtime._clock,  # type: ignore[arg-type]
        database=database,
        database_url=database_url,
    )
    await runtime.start(started.spec())
    await runtime.quiet()
    await started.measure()
    yield started
    await runtime.stop()


async def test_verdicts_are_counted_by_kind_status_and_code(fabric: Metered) -> None:
    instance = await fabric.instance()

    for _ in range(2):
        await fabric.verdict(instance, Signal.TRUSTED_VERDICT, "trusted", code="ok")
    await fabric.verdict(
        instance, Signal.UNTRUSTED_VERDICT, "untrusted", code="nonce-mismatch"
    )

    await fabric.until_count(VERDICTS, "tpm", "trusted", "ok", is_=2)
    await fabric.until_count(VERDICTS, "tpm", "untrusted", "nonce-mismatch")


async def test_the_way_to_quarantine_and_back_is_timed(fabric: Metered) -> None:
    instance = await fabric.instance()
    issued = fabric.clock.now()
    fabric.clock.advance(0.2)

    await fabric.verdict(
        instance,
        Signal.UNTRUSTED_VERDICT,
        "untrusted",
        code="measurement-unknown",
        challenge={"issued_at": issued.isoformat()},
    )
    await fabric.until_count(QUARANTINES, "verdict")
    fabric.clock.advance(60)
    await fabric.change(instance, Signal.RELEASED)
    fabric.clock.advance(60)
    await fabric.verdict(instance, Signal.TRUSTED_VERDICT, "trusted", code="ok")

    await fabric.until_count(MOVES, L.SUSPECT, L.RESTORED)
    assert fabric.spread(TO_QUARANTINE).sum == pytest.approx(0.2)
    assert fabric.spread(TO_RESTORATION).sum == pytest.approx(120)
    assert sum(fabric.spread(TO_RESTORATION).counts) == 1


async def test_a_quarantine_from_before_its_start_is_timed_as_well(
    fabric: Metered,
) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.QUARANTINED_BY_HAND, actor="user:7")
    await fabric.until_count(QUARANTINES, "operator")
    fabric.clock.advance(10)

    await fabric.kill("fabric/metrics")
    await fabric.measure()
    await fabric.runtime.quiet()
    fabric.clock.advance(31)
    await fabric.measure()
    deadline = fabric.clock.now() + timedelta(hours=1)
    await fabric.change(instance, Signal.OVERRIDDEN, deadline=deadline)

    await fabric.until_count(MOVES, L.QUARANTINED, L.RESTORED)
    assert fabric.spread(TO_RESTORATION).sum >= 41


async def test_what_nobody_renewed_is_counted(fabric: Metered) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    fabric.clock.advance(300)

    await fabric.change(instance, Signal.EXPIRED, actor="actor:scheduler")

    await fabric.until_count(EXPIRIES)


async def test_commits_and_deliveries_are_measured(fabric: Metered) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.ANNOTATED)

    async def look() -> bool | None:
        return sum(fabric.spread(DELIVERY, "trust").counts) >= 2 or None

    await until(look, "the events")
    assert sum(fabric.spread(COMMIT).counts) == 1
    assert fabric.spread(BATCH_SIZE).sum == 1


async def ended(fabric: Metered, run: RunId, status: str, reason: str | None) -> None:
    told = {"event": "status", "status": status, "failure_reason": reason}
    async with fabric.database.writing() as conn:
        await conn.execute(
            """
            UPDATE runtime_vm_remediation_runs
               SET status = %s, failure_reason = %s, completed_at = %s WHERE id = %s
            """,
            [status, reason, fabric.clock.now(), run],
        )
        event = RunEvent(
            kind="status",
            stream=LogStream.SYSTEM,
            message=status,
            at=fabric.clock.now(),
            event=told,
        )
        row = await runs.lock_run(conn, run)
        assert row is not None
        await run_events.append(conn, [(row, [event])])


async def test_runs_are_counted_as_they_end_and_late_ones_as_breaches(
    fabric: Metered,
) -> None:
    for late in (False, True):
        instance = await fabric.instance()
        async with fabric.database.writing() as conn:
            run = RunId(await insert_run(conn, instance))
            soon = fabric.clock.now() + timedelta(seconds=60)
            await conn.execute(
                """
                UPDATE runtime_vm_remediation_runs SET sla_deadline = %s WHERE id = %s
                """,
                [soon, run],
            )
        fabric.clock.advance(120 if late else 1)
        await ended(fabric, run, "failed", "timeout")

    await fabric.until_count(RUNS, "failed", "timeout", is_=2)
    await fabric.until_count(BREACHES, is_=1)


# --- looked up ---------------------------------------------------------------------


async def test_the_fleet_is_looked_up_without_what_is_over(fabric: Metered) -> None:
    one, two, gone = await fabric.instances(3)
    await fabric.change(one, Signal.UNTRUSTED_VERDICT)
    await fabric.change(two, Signal.TRUSTED_VERDICT)
    async with fabric.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET terminated_at = now() WHERE id = %s",
            [gone],
        )
    fabric.clock.advance(300)

    reading = await fabric.measure()

    assert reading.fleet is not None
    assert reading.fleet.lifecycles == {L.QUARANTINED: 1, L.RESTORED: 1}
    assert reading.fleet.statuses == {
        AttestationStatus.UNTRUSTED: 1,
        AttestationStatus.TRUSTED: 1,
    }
    assert reading.fleet.stale == 1
    assert sum(reading.fleet.servers.values()) == 3
    assert set(reading.lag_s) == {"trust", "remediation"}


async def test_the_queue_is_looked_up_by_stage(fabric: Metered) -> None:
    waiting, ready = await fabric.instances(2)
    async with fabric.database.writing() as conn:
        await insert_run(conn, waiting)
        await conn.execute(
            "UPDATE runtime_vm_remediation_runs SET approval_state = 'pending'"
        )
        await insert_run(conn, ready)
        await conn.execute(
            "UPDATE runtime_vm_remediation_runs SET queued_at = %s, sla_deadline = %s",
            [fabric.clock.now(), fabric.clock.now() + timedelta(seconds=5)],
        )
    fabric.clock.advance(10)

    reading = await fabric.measure()

    stages = {stage.name: stage for stage in reading.runs}
    assert {name: stage.count for name, stage in stages.items()} == {
        "awaiting-approval": 1,
        "ready": 1,
    }
    assert stages["ready"].oldest == reading.at - timedelta(seconds=10)
    assert stages["ready"].overdue == 1


async def test_a_reading_is_kept_for_a_while(fabric: Metered) -> None:
    first = await fabric.measure()
    fabric.clock.advance(KEEP_S - 0.1)
    assert await fabric.measure() is first

    fabric.clock.advance(0.2)

    assert await fabric.measure() is not first


async def test_decisions_are_counted_with_what_refused_them(fabric: Metered) -> None:
    instance = await fabric.instance()
    server = (await fabric.posture(instance)).server_id
    await fabric.measure()
    await fabric.change(instance, Signal.QUARANTINED_BY_HAND)
    launch = Launch(server_id=server, verb="start", backend="libvirt", tier="standard")

    for _ in range(3):
        async with fabric.database.writing() as conn:
            await placement.take_turn(conn)
            await judge(conn, launch, fabric.clock.now())
    fabric.clock.advance(31)
    await fabric.measure()
    fabric.clock.advance(31)
    await fabric.measure()

    assert fabric.count(DECISIONS, "start", "false") == 3
    assert fabric.count(REFUSALS, "lifecycle:quarantined") == 3


async def test_without_a_database_it_says_so(fabric: Metered) -> None:
    await fabric.database.close()
    fabric.clock.advance(60)

    reading = await fabric.measure()

    assert reading.fleet is None
    assert reading.collateral["amd"].unusable == 2


# --- counters ----------------------------------------------------------------------


def test_a_family_is_bounded_whatever_its_labels() -> None:
    counters = Counters()

    for number in range(10 * FAMILY):
        counters.count(TOLD, "trust", str(number))
        counters.measure(DELIVERY, 1.0, str(number))

    counts = dict(counters.counts(TOLD))
    assert len(counts) == FAMILY + 1
    assert counts[OTHER, OTHER] == 9 * FAMILY
    assert len(dict(counters.spreads(DELIVERY))) == FAMILY + 1


def test_measurements_fall_into_the_bucket_that_ends_with_them() -> None:
    spread = Spread(SECONDS)

    for seconds in (0.0, 0.005, 0.006, 30.0, 31.0):
        spread.add(seconds)

    assert spread.counts[:2] == [2, 1]
    assert spread.counts[-2:] == [1, 1]
    assert spread.sum == pytest.approx(61.011)
