"""Two runtimes' schedulers on one database: what is due is done once, whoever dies."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.fix_fabric import until
from tests.fix_runtime import Served, serving
from tests.http.client import Json

pytestmark = [pytest.mark.slow, pytest.mark.libvirt, pytest.mark.timeout(120)]

OFTEN = {
    "SCHEDULER_TICK_SECONDS": "0.2",
    "SCHEDULER_CADENCE_SECONDS": "1.5",
    "SCHEDULER_LOOK_AHEAD_SECONDS": "3",
    "VM_ATTESTATION_MAX_AGE_SECONDS": "6",
    "VM_ATTESTATION_TIMEOUT_SECONDS": "5",
}
TPM: Json = {"attestation": {"kind": "tpm", "source": "swtpm"}}

JOBS = """
    SELECT certification_id, status, attempts, lease_owner, created_at, finished_at
      FROM evaluation_refresh_jobs ORDER BY id
"""
OVERLAPS = """
    SELECT count(*) FROM evaluation_refresh_jobs a
      JOIN evaluation_refresh_jobs b
        ON b.certification_id = a.certification_id AND b.id > a.id
       AND b.created_at < coalesce(a.finished_at, 'infinity')
"""
TWICE = """
    SELECT count(*) FROM (
        SELECT nonce_digest FROM attestation_challenges
         GROUP BY nonce_digest HAVING count(*) > 1) each
"""
EXPIRED = """
    SELECT count(*) FROM runtime_vm_trust_history
     WHERE transition_reason = 'freshness deadline passed'
"""


async def a_trusted_vm(runtime: Served, owner: int) -> None:
    """Start a VM with a TPM of its own."""
    headers = {"Authorization": f"Bearer {runtime.token(owner)}"}
    async with aiohttp.ClientSession(runtime.url, headers=headers) as http:
        made = {"name": "web", "config": TPM}
        async with http.post("/api/servers", json=made) as response:
            server = await response.json()
        async with http.post(f"/api/servers/{server['id']}/start") as response:
            assert response.status == 202, await response.text()


async def until_rows(
    runtime: Served, query: str, good: Callable[[list[tuple[object, ...]]], bool]
) -> list[tuple[object, ...]]:
    async def look() -> list[tuple[object, ...]] | None:
        rows = await asyncio.to_thread(runtime.rows, query)
        return rows if good(rows) else None

    # What met a VM that was just gone is tried again after RefreshSettings.backoff.
    return await until(look, "the schedulers", within_s=60)


def done_by_each(count: int, certifications: int) -> Callable[[object], bool]:
    def good(rows: object) -> bool:
        assert isinstance(rows, list)
        done = Counter(row[0] for row in rows if row[1] == "done")
        return len(done) == certifications and min(done.values()) >= count

    return good


async def test_what_is_due_is_done_once(database_url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(serving(tmp_path / name, database_url, **OFTEN))
            for name in ("a", "b")
        )
        for number in range(2):
            await a_trusted_vm(one, 1000 + number)
            await a_trusted_vm(other, 2000 + number)

        await until_rows(one, JOBS, done_by_each(3, 4))
        await asyncio.to_thread(other.stop, signal.SIGKILL)
        await asyncio.to_thread(other.start)
        before = len(one.rows(JOBS))
        await until_rows(one, JOBS, done_by_each(6, 4))

        jobs = one.rows(JOBS)
        assert len(jobs) > before
        # Each was claimed once, but for those that were in hand when their runtime
        # was killed: these were asked for anew.
        assert sum(row[2] > 1 for row in jobs) <= 2
        assert one.rows(OVERLAPS) == [(0,)]
        assert one.rows(TWICE) == [(0,)]
        healthy = "SELECT lifecycle_state FROM runtime_vm_trust_registry"
        await until_rows(one, healthy, lambda rows: set(rows) == {("restored",)})


async def test_a_deadline_is_noted_once_by_whichever_comes_first(
    database_url: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        runtimes = [
            stack.enter_context(serving(tmp_path / name, database_url, **OFTEN))
            for name in ("a", "b")
        ]
        await a_trusted_vm(runtimes[0], 1000)
        restored = "SELECT lifecycle_state FROM runtime_vm_trust_registry"
        await until_rows(runtimes[0], restored, lambda rows: rows == [("restored",)])

        # Its owner is gone, and nobody else has its TPM: the other one finds it.
        await asyncio.to_thread(runtimes[0].stop, signal.SIGKILL)

        await until_rows(runtimes[1], restored, lambda rows: rows == [("suspect",)])
        assert runtimes[1].rows(EXPIRED) == [(1,)]
