"""Transitions through the registry actor, beside pgbench and the bare statement."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, redirect_stderr
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.bench import Bench, Seed
from benchmarks.frame import By, Figure, Part, Sample, percentile
from trustfabric import log
from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import trust
from trustfabric.db.session import Connection, Database
from trustfabric.db.trust import _SAVE_SQL, _record
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Change, Signal, advance
from trustfabric.errors import FabricError
from trustfabric.supervision import Address, ChildSpec, Runtime, SupervisorSpec

INSTANCES = 2_000
IN_FLIGHT = 500
"""Askers at once, as requests and verdicts are; the bare batch is as large."""
CLIENTS = (1, 8, 32)
WITHIN_S = 60.0

BESIDE_PGBENCH = Figure(
    name="durable transitions/s through the registry",
    unit="/s",
    peer="pgbench, a transaction each, its best of 1, 8, 32 clients",
    by=By.RATIO,
    floor=3,
    aim=6,
)
BESIDE_BATCH = Figure(
    name="durable transitions/s, of the batched limit",
    unit="/s",
    peer=f"the batched statement alone, {IN_FLIGHT} rows each",
    by=By.RATIO,
    floor=0.5,
    aim=0.8,
)
IDLE = Figure(
    name="one transition, idle system, p50",
    unit="ms",
    peer="the bare statement",
    by=By.RATIO,
    less_is_better=True,
    floor=1.5,
    aim=1.2,
)

_PGBENCH = """
\\set id random(1, {instances})
WITH saved AS (
    UPDATE runtime_vm_trust_registry
       SET attestation_status = 'trusted', lifecycle_state = 'restored',
           remediation_state = 'remediation' || chr(58) || 'none',
           remediation_attempts = 0,
           freshness_deadline = now() + interval '1 day',
           provenance_ref = 'attestation' || chr(58) || '1',
           provenance = '{provenance}',
           version = version + 1, updated_at = now()
     WHERE runtime_vm_instance_id = :id
 RETURNING *
)
INSERT INTO runtime_vm_trust_history
       (runtime_vm_instance_id, previous_status, current_status,
        previous_lifecycle_state, current_lifecycle_state, transition_reason,
        remediation_state, remediation_attempts, freshness_deadline, provenance_ref,
        provenance, metadata, registry_version, actor, triggered_at)
SELECT runtime_vm_instance_id, 'trusted', attestation_status, 'restored',
       lifecycle_state, 'evidence accepted', remediation_state, remediation_attempts,
       freshness_deadline, provenance_ref, provenance, '{{}}', version,
       'actor' || chr(58) || 'attestation', updated_at
  FROM saved;
"""
"""The same rows as the registry's; a bare colon would be a variable of pgbench."""


async def measure_throughput(bench: Bench) -> list[Sample]:
    seconds = bench.size(4, 1)
    async with bench.database(Seed(instances=INSTANCES)) as url:
        beside = max([await _pgbench(bench, url, n, seconds) for n in CLIENTS])
        limit = await _batches(url, seconds)
        async with registry(bench, url) as address:
            ours = await asked(address, seconds)
    return [
        Sample(BESIDE_PGBENCH.name, ours, beside),
        Sample(BESIDE_BATCH.name, ours, limit),
    ]


async def measure_idle(bench: Bench) -> list[Sample]:
    """Take turns, so that both meet the same disk."""
    ours, bare = [], []
    async with (
        bench.database(Seed(instances=INSTANCES)) as url,
        registry(bench, url) as address,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as conn,
    ):
        row = _Batch(await _moves(conn, [InstanceId(INSTANCES)]))
        for number in range(bench.size(600, 150)):
            begun = time.perf_counter()
            await address.ask(verdict(1 + number % 100), within_s=WITHIN_S)
            between = time.perf_counter()
            await row.save(conn)
            bare.append(time.perf_counter() - between)
            ours.append(between - begun)
    return [Sample(IDLE.name, percentile(ours, 0.5) * 1e3, percentile(bare, 0.5) * 1e3)]


PARTS = (
    Part("registry throughput", (BESIDE_PGBENCH, BESIDE_BATCH), measure_throughput),
    Part("registry idle", (IDLE,), measure_idle),
)


@asynccontextmanager
async def registry(bench: Bench, url: str) -> AsyncIterator[Address[TrustRegistry]]:
    """Run the registry actor as the product does, its log to a file included."""
    address: Address[TrustRegistry] = Address("trust")
    runtime = Runtime(answers=(FabricError,))
    database = await Database.open(url)
    root = SupervisorSpec(
        name="bench",
        children=(ChildSpec(address=address, start=lambda: TrustRegistry(database)),),
    )
    with _logging_to(bench.folder() / "log"):
        await runtime.start(root)
        try:
            yield address
        finally:
            await runtime.stop()
            await database.close()


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    with path.open("w") as file, redirect_stderr(file):
        log.set_up("info", "json")
        yield


def verdict(instance_id: int) -> ApplyChange:
    """Return what a fleet sends most: evidence accepted once more."""
    return ApplyChange(instance_id=InstanceId(instance_id), change=_change())


def _change() -> Change:
    now = datetime.now(UTC)
    return Change(
        signal=Signal.TRUSTED_VERDICT,
        actor="actor:attestation",
        reason="evidence accepted",
        deadline=now + timedelta(days=1),
        challenge_issued_at=now,
        provenance_ref="attestation:1",
        provenance=_PROVENANCE,
    )


_PROVENANCE = {"kind": "tpm", "policy": "demo-software-tpm", "measurement": "5a" * 32}


async def asked(address: Address[TrustRegistry], seconds: float) -> float:
    """Return how many changes a second many askers get done, each one at a time."""
    done = 0
    until = time.perf_counter() + seconds

    async def asker(first: int) -> None:
        nonlocal done
        at = first
        while time.perf_counter() < until:
            await address.ask(verdict(1 + at % INSTANCES), within_s=WITHIN_S)
            at += IN_FLIGHT
            done += 1

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for first in range(IN_FLIGHT):
            group.create_task(asker(first))
    return done / (time.perf_counter() - begun)


class _Batch:
    """The write alone: the registry's own statement, again and again."""

    def __init__(self, moves: Sequence[trust.Transition]) -> None:
        self._rows: list[dict[str, Any]] = [{**_record(move)} for move in moves]

    async def save(self, conn: Connection) -> None:
        now = datetime.now(UTC)
        for row in self._rows:
            row["updated_at"], row["deadline"] = now, now + timedelta(days=1)
        batch = orjson.dumps(self._rows).decode()
        cursor = await conn.execute(_SAVE_SQL, {"batch": batch})
        assert cursor.rowcount == 0
        for row in self._rows:
            row["read_version"] += 1


async def _batches(url: str, seconds: float) -> float:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        groups = [
            _Batch(await _moves(conn, range(first + 1, first + IN_FLIGHT + 1)))
            for first in range(0, INSTANCES, IN_FLIGHT)
        ]
        done, begun = 0, time.perf_counter()
        while time.perf_counter() < begun + seconds:
            await groups[done % len(groups)].save(conn)
            done += 1
        return done * IN_FLIGHT / (time.perf_counter() - begun)


async def _moves(conn: Connection, ids: Any) -> list[trust.Transition]:
    change = _change()
    async with conn.transaction():
        rows = await trust.lock(conn, ids)
    now = datetime.now(UTC)
    return [
        trust.Transition(before, advance(before, facts, change, now), change)
        for before, facts in rows.values()
    ]


async def _pgbench(bench: Bench, url: str, clients: int, seconds: int) -> float:
    script = bench.folder() / "transition.sql"
    provenance = str(_PROVENANCE).replace("'", '"')
    script.write_text(_PGBENCH.format(instances=INSTANCES, provenance=provenance))
    known = conninfo_to_dict(url)
    process = await asyncio.create_subprocess_exec(
        str(bench.programs / "pgbench"),
        *("--no-vacuum", "--protocol=prepared", f"--file={script}"),
        *(f"--client={clients}", f"--jobs={min(clients, 2)}", f"--time={seconds}"),
        str(known["dbname"]),
        env={
            **os.environ,
            "PGHOST": str(known["host"]),
            "PGUSER": str(known["user"]),
            "PGPASSWORD": str(known["password"]),
        },
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    (line,) = (one for one in told.decode().splitlines() if one.startswith("tps = "))
    return float(line.split()[2])
