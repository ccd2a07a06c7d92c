"""200 runs while runtimes are killed with -9 at moments drawn from a seed.

Every run ends; no program is started twice under one lease; what was told of a run
stays told; and in the end the registry says what the runs say.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fix_runtime import Served, serving
from tests.several.clients import until
from trustfabric.domain.playbooks import content_sha256
from trustfabric.keys import runtime_id_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

RUNS = 200
OWNERS = 20
SEED = 7
LEASE_S = 2.0
SETTINGS = {
    "REMEDIATION_CONCURRENCY": "8",
    "REMEDIATION_OWNER_CONCURRENCY": "4",
    "REMEDIATION_LEASE_SECONDS": str(LEASE_S),
    "REMEDIATION_RETRY_BASE_SECONDS": "0.1",
    "REMEDIATION_RETRY_MAX_SECONDS": "0.5",
    "REMEDIATION_RETRY_LIMIT": "100",
    "EXECUTOR_UNSANDBOXED": "false" if os.geteuid() == 0 else "true",
    "LOG_LEVEL": "warning",
}
SCRIPT = """
echo "$TRUSTFABRIC_RUN_ID $TRUSTFABRIC_LEASE_EPOCH" >> {journal}
for n in 1 2 3; do echo "$TRUSTFABRIC_LEASE_EPOCH: line $n"; sleep 0.05; done
"""
"""One short write to a file in append mode: lines of programs never mix."""


@pytest.fixture
def journal() -> Iterator[Path]:
    """A file that programs of whatever account may append to."""
    folder = Path(tempfile.mkdtemp(prefix="tf-crashes-"))
    folder.chmod(0o755)
    path = folder / "started"
    path.touch()
    path.chmod(0o666)
    try:
        yield path
    finally:
        shutil.rmtree(folder)


def add_runs(url: str, journal: Path) -> None:
    """Queue all runs as enqueueing leaves them; of every fourth a lost one fails."""
    script = SCRIPT.format(journal=journal)
    fails, retries = pinned(script, "fail"), pinned(script, "retry")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            """
            WITH users AS (
                INSERT INTO users (id) SELECT generate_series(1, %(owners)s)
            ), servers AS (
                INSERT INTO servers (id, owner_id, name)
                SELECT n, 1 + n %% %(owners)s, 'web'
                  FROM generate_series(1000, 999 + %(runs)s) n
            ), instances AS (
                INSERT INTO runtime_vm_instances
                       (id, server_id, instance_id, driver, desired_state, power_state,
                        runtime_owner)
                SELECT n, n, 'vm-' || n, 'libvirt', 'running', 'running', 'elsewhere'
                  FROM generate_series(1000, 999 + %(runs)s) n
            ), registered AS (
                INSERT INTO runtime_vm_trust_registry
                       (runtime_vm_instance_id, lifecycle_state, attestation_status)
                SELECT n, 'remediating', 'untrusted'
                  FROM generate_series(1000, 999 + %(runs)s) n
            ), told AS (
                INSERT INTO runtime_vm_trust_history (
                       runtime_vm_instance_id, current_status, current_lifecycle_state,
                       transition_reason, remediation_state, remediation_attempts,
                       registry_version, actor)
                SELECT n, 'untrusted', 'remediating', 'staged', 'remediation:none', 0,
                       1, 'test'
                  FROM generate_series(1000, 999 + %(runs)s) n
            )
            INSERT INTO runtime_vm_remediation_runs (
                   runtime_vm_instance_id, playbook, requested_by, playbook_snapshot,
                   content_sha256)
            SELECT n, 'crash', 'user:1', snapshot, digest
              FROM generate_series(1000, 999 + %(runs)s) n
              JOIN (VALUES (true, %(fails)s::jsonb, %(of_fails)s),
                           (false, %(retries)s::jsonb, %(of_retries)s)
                   ) AS pinned (fails, snapshot, digest) ON fails = (n %% 4 = 0)
            """,
            {
                "owners": OWNERS,
                "runs": RUNS,
                "fails": Jsonb(fails),
                "of_fails": content_sha256(fails, None),
                "retries": Jsonb(retries),
                "of_retries": content_sha256(retries, None),
            },
        )


def pinned(script: str, on_lost: str) -> dict[str, Any]:
    return {
        "executor_type": "shell",
        "metadata": {"script": script, "on_lost": on_lost},
    }


@dataclass
class Witness:
    """Notes every event that was committed, while it is."""

    runtime: Served
    seen: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def look(self) -> None:
        for run, seq, kind, message in self.runtime.rows(
            "SELECT run_id, seq, kind, message FROM runtime_vm_remediation_events"
        ):
            known = self.seen.setdefault((run, seq), (kind, message))
            assert known == (kind, message)

    def active(self) -> int:
        ((count,),) = self.runtime.rows(
            "SELECT count(*) FROM runtime_vm_remediation_runs"
            " WHERE status IN ('pending', 'running')"
        )
        return int(count)


async def kill_until_done(
    runtimes: Sequence[Served], witness: Witness, journal: Path
) -> int:
    """Kill one after another, each when so many more runs have ended as the seed says.

    The moment within a run's life is as random, but for one run's: its program has
    begun, and its end is not written down.
    """
    random, kills = Random(SEED), 0
    while (left := witness.active()) > 0:
        goal = max(0, left - random.randint(25, 60))
        victim = random.choice(runtimes)

        def reached(goal: int = goal, victim: Served = victim) -> bool:
            assert all(runtime.is_up for runtime in runtimes)
            witness.look()
            active = witness.active()
            return active == 0 or (active <= goal and caught(victim, journal))

        await until(reached, 200)
        if witness.active() == 0:
            break
        await asyncio.to_thread(victim.stop, signal.SIGKILL)
        kills += 1
        await asyncio.to_thread(victim.start)
    return kills


def caught(victim: Served, journal: Path) -> bool:
    """Stop it, and leave it so if it has a run's program under way."""
    os.kill(victim.pid, signal.SIGSTOP)
    running = victim.rows(
        """
        SELECT id, lease_epoch FROM runtime_vm_remediation_runs
         WHERE status = 'running' AND lease_owner = %s
           AND playbook_snapshot->'metadata'->>'on_lost' = 'retry'
        """,
        runtime_id_of(victim.data_dir),
    )
    started = set(journal.read_text().splitlines())
    if any(f"{run} {epoch}" in started for run, epoch in running):
        return True
    os.kill(victim.pid, signal.SIGCONT)
    return False


async def test_killed_runtimes_leave_no_run_behind_and_start_none_twice(
    database_url: str, tmp_path: Path, journal: Path
) -> None:
    add_runs(database_url, journal)
    with ExitStack() as stack:
        runtimes = [
            stack.enter_context(serving(tmp_path / name, database_url, **SETTINGS))
            for name in ("one", "two")
        ]
        witness = Witness(runtimes[0])
        kills = await kill_until_done(runtimes, witness, journal)
        witness.look()

        ended_all(runtimes[0])
        started_once(runtimes[0], journal)
        nothing_lost(runtimes[0], witness)
        registry_agrees(runtimes[0])
    assert kills >= 2


def ended_all(runtime: Served) -> None:
    ends = Counter(
        runtime.rows("SELECT status, failure_reason FROM runtime_vm_remediation_runs")
    )
    assert set(ends) <= {
        ("completed", None),
        ("failed", "transient-infrastructure"),
    }, ends
    assert ends["completed", None] > RUNS / 2
    # Those were lost, and their playbook says that a lost one is not tried again.
    ((blind,),) = runtime.rows(
        """
        SELECT count(*) FROM runtime_vm_remediation_runs
         WHERE status = 'failed'
           AND playbook_snapshot->'metadata'->>'on_lost' <> 'fail'
        """
    )
    assert blind == 0


def started_once(runtime: Served, journal: Path) -> None:
    started = Counter(journal.read_text().splitlines())
    assert not [line for line, count in started.items() if count > 1]
    begun = {
        f"{run} {epoch}"
        for run, epoch in runtime.rows(
            """
            SELECT id, generate_series(1, lease_epoch)
              FROM runtime_vm_remediation_runs
            """
        )
    }
    assert set(started) <= begun
    of_runs = Counter(line.split()[0] for line in started)
    attempts = runtime.rows("SELECT id, attempt FROM runtime_vm_remediation_runs")
    assert all(of_runs[str(run)] <= attempt for run, attempt in attempts)
    assert max(of_runs.values()) > 1


def nothing_lost(runtime: Served, witness: Witness) -> None:
    rows = runtime.rows(
        "SELECT run_id, seq, kind, message FROM runtime_vm_remediation_events"
    )
    stored = {(run, seq): (kind, message) for run, seq, kind, message in rows}
    assert witness.seen.items() <= stored.items()
    numbered = Counter(run for run, _ in stored)
    assert all((run, count) in stored for run, count in numbered.items()), "a gap"
    # A run that completed has every line of the attempt that did it, in order.
    for run, lines in runtime.rows(
        """
        SELECT e.run_id, array_agg(e.message ORDER BY e.seq)
          FROM runtime_vm_remediation_events e
          JOIN runtime_vm_remediation_runs r ON r.id = e.run_id
         WHERE e.stream = 'stdout' AND r.status = 'completed'
         GROUP BY e.run_id
        """
    ):
        last = lines[-1].partition(":")[0]
        assert lines[-3:] == [f"{last}: line {n}" for n in (1, 2, 3)], (run, lines)


def registry_agrees(runtime: Served) -> None:
    """Remediating ⇔ a run is active, or completed and its re-attestation is due."""
    strange = runtime.rows(
        """
        SELECT g.runtime_vm_instance_id, g.lifecycle_state, g.remediation_state,
               r.status
          FROM runtime_vm_trust_registry g
          JOIN runtime_vm_remediation_runs r
            ON r.runtime_vm_instance_id = g.runtime_vm_instance_id
         WHERE CASE r.status
               WHEN 'completed' THEN g.lifecycle_state <> 'remediating'
                    AND g.remediation_state <> 'remediation:unverified'
               ELSE g.lifecycle_state <> 'quarantined' END
        """
    )
    assert not strange
    doubled = runtime.rows(
        """
        SELECT g.runtime_vm_instance_id FROM runtime_vm_trust_registry g
          JOIN runtime_vm_trust_history h USING (runtime_vm_instance_id)
         GROUP BY g.runtime_vm_instance_id, g.version HAVING count(*) <> g.version
        """
    )
    assert not doubled
