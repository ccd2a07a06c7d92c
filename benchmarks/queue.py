"""Runs through the queue: claimed under a lease, executed (a no-op), and ended.

Everything the product does for a run is done: two transitions of trust with their
history, the status events and the log that streams replay, the execution log's digest.
The peers move a bare job. Where they are not installed, what they did here counts.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import LiteralString

import psycopg
from psycopg.types.json import Jsonb

from benchmarks.bench import Bench, Seed
from benchmarks.frame import By, Figure, Part, Sample
from benchmarks.registry import _logging_to
from trustfabric.actors.attestation import Attest, Attestation
from trustfabric.actors.dispatch import Dispatcher
from trustfabric.actors.holds import Holds
from trustfabric.actors.ledger import Ledger
from trustfabric.actors.listener import Listener
from trustfabric.actors.orders import Desk
from trustfabric.actors.runs import RunActor, RunTools
from trustfabric.actors.streams import Broadcaster, Feed, Stream
from trustfabric.actors.trust import TrustRegistry
from trustfabric.db import hold_events, listen, run_events, trust_events
from trustfabric.db.session import Database
from trustfabric.domain.dispatch import DispatchSettings
from trustfabric.domain.executors import Cancellation, Emit, ExitStatus, Job
from trustfabric.domain.ids import RunId
from trustfabric.domain.playbooks import content_sha256
from trustfabric.domain.runs import RetryPolicy, Run
from trustfabric.domain.specs import ExecutorType
from trustfabric.domain.storms import StormLimits
from trustfabric.errors import FabricError
from trustfabric.supervision import (
    Actor,
    Address,
    ChildSpec,
    DynamicAddress,
    DynamicSpec,
    Restart,
    Runtime,
    SupervisorSpec,
)

BEST_PEER = 1_555.0
"""Jobs a second of pgqueuer on this machine, the best of those tried (goals)."""

CONCURRENCY = 200
QUEUE = Figure(
    name="runs through the queue/s",
    unit="/s",
    peer="pgqueuer, a bare job each (measured earlier)",
    by=By.RATIO,
    floor=2,
    aim=5,
)
FEEDS = (
    Feed(Stream.TRUST, listen.TRUST_CHANNEL, trust_events.events_after),
    Feed(Stream.REMEDIATION, listen.REMEDIATION_CHANNEL, run_events.events_after),
    Feed(Stream.HOLDS, hold_events.CHANNEL, hold_events.events_after),
)

_SNAPSHOT = {"executor_type": "shell", "metadata": {"command": ["true"]}}
_QUEUED = """
WITH queued AS (
    INSERT INTO runtime_vm_remediation_runs (
           runtime_vm_instance_id, playbook, requested_by, playbook_snapshot,
           content_sha256)
    SELECT id, 'noop', 'user:1', %s, %s
      FROM runtime_vm_instances
)
UPDATE runtime_vm_trust_registry
   SET lifecycle_state = 'remediating', attestation_status = 'untrusted'
"""
_IS_ACTIVE = """
SELECT EXISTS (SELECT 1 FROM runtime_vm_remediation_runs
                WHERE status IN ('pending', 'running'))
"""
_COMPLETED = """
SELECT count(*) FROM runtime_vm_remediation_runs WHERE status = 'completed'
"""


class Noop:
    """Carries out nothing, successfully."""

    async def execute(
        self, job: Job, emit: Emit, cancelled: Cancellation
    ) -> ExitStatus:
        del job, emit, cancelled
        return ExitStatus(
            code=0, message="exit code 0", failure_reason=None, duration_s=0.0
        )

    async def reap(self, run_id: RunId) -> int:
        del run_id
        return 0


class Unasked(Actor):
    """Stands where attestation does: verdicts are no part of this figure."""

    def handle(self, message: Attest) -> None:
        del message


async def measure(bench: Bench) -> list[Sample]:
    count = bench.size(4_000, 500)
    async with (
        bench.database(Seed(instances=count)) as url,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as conn,
    ):
        digest = content_sha256(_SNAPSHOT, None)
        await conn.execute(_QUEUED, [Jsonb(_SNAPSHOT), digest])
        await conn.execute("VACUUM ANALYZE")
        begun = time.perf_counter()
        async with _dispatching(bench, url):
            while await _read(conn, _IS_ACTIVE):  # noqa: ASYNC110  # from outside
                await asyncio.sleep(0.02)
            took = time.perf_counter() - begun
        assert await _read(conn, _COMPLETED) == count
    return [Sample(QUEUE.name, count / took, BEST_PEER)]


async def _read(
    conn: psycopg.AsyncConnection[tuple[int]], question: LiteralString
) -> int:
    row = await (await conn.execute(question)).fetchone()
    assert row is not None
    return int(row[0])


@asynccontextmanager
async def _dispatching(bench: Bench, url: str) -> AsyncIterator[None]:
    """Run the remediation half of the tree as the product does."""
    database = await Database.open(url, pool_size=16)
    runtime = Runtime(answers=(FabricError,))
    with _logging_to(bench.folder() / "log"):
        await runtime.start(_tree(database, url))
        gc.freeze()
        try:
            yield
        finally:
            gc.unfreeze()
            await runtime.stop()
            await database.close()


def _tree(database: Database, url: str) -> SupervisorSpec:
    settings = DispatchSettings(
        runtime_id="bench", concurrency=CONCURRENCY, owner_concurrency=CONCURRENCY
    )
    broadcaster: Address[Broadcaster] = Address("broadcaster")
    trust: Address[TrustRegistry] = Address("trust")
    ledger: Address[Ledger] = Address("ledger")
    on_hold: Address[Holds] = Address("holds")
    attestation: Address[Attestation] = Address("attestation")
    running: DynamicAddress[RunActor] = DynamicAddress("runs")
    dispatcher: Address[Dispatcher] = Address("dispatcher")
    tools = RunTools(
        database=database,
        trust=trust,
        ledger=ledger,
        attestation=attestation,
        executors={ExecutorType.SHELL: Noop()},
        issue_token=_no_token,
        retry=RetryPolicy(),
        lease_s=60.0,
    )

    async def open_wakeups(channels: Sequence[str]) -> listen.Wakeups:
        return await listen.Wakeups.open(url, channels)

    def dispatch() -> Dispatcher:
        desk = Desk(database, trust)
        return Dispatcher(desk, tools, broadcaster, on_hold, running, settings)

    return SupervisorSpec(
        name="bench",
        children=(
            ChildSpec(
                address=broadcaster, start=lambda: Broadcaster(database, FEEDS, "bench")
            ),
            ChildSpec(
                name="listener",
                start=lambda: Listener(
                    database, broadcaster, FEEDS, "bench", open_wakeups
                ),
            ),
            ChildSpec(address=trust, start=lambda: TrustRegistry(database)),
            ChildSpec(address=ledger, start=lambda: Ledger(database)),
            ChildSpec(
                address=on_hold,
                start=lambda: Holds(database, StormLimits(), "bench"),
            ),
            ChildSpec(address=attestation, start=Unasked),
            DynamicSpec(address=running, restart=Restart.TEMPORARY),
            ChildSpec(address=dispatcher, start=dispatch),
        ),
    )


def _no_token(run: Run, until: datetime) -> str:
    del run, until
    return "none"


PARTS = (Part("queue", (QUEUE,), measure),)
