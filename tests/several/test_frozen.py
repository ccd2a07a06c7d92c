"""A runtime that is stopped in mid-transaction keeps nobody else for long."""

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fix_runtime import Served, serving
from tests.http.conftest import still_instance
from tests.several.clients import admin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

BOUND_S = 6.0
"""Two seconds until the server takes the turn away, and what a busy machine adds."""

HOLDS_THE_TURN = """
    SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
     WHERE l.locktype = 'advisory' AND l.granted AND a.state = 'idle in transaction'
       AND a.datname = current_database()
"""


async def _quarantine(runtime: Served, instance: int) -> dict[str, Any] | None:
    """Quarantine by hand at whatever version it has, which looks for a run to end."""
    path = f"/api/trust/registry/{instance}"
    async with aiohttp.ClientSession(runtime.url, headers=admin(runtime)) as http:
        async with http.get(path) as answer:
            row = await answer.json()
        body = {
            "attestation_status": "untrusted",
            "lifecycle_state": "quarantined",
            "expected_version": row["version"],
        }
        async with http.post(f"{path}/transition", json=body) as answer:
            told: dict[str, Any] = await answer.json()
            assert answer.status in (200, 409, 503), told
            return told if answer.status == 200 else None


async def _keep_on(runtime: Served, instance: int) -> None:
    while True:
        with suppress(aiohttp.ClientError, TimeoutError):
            await _quarantine(runtime, instance)


async def _freeze_in_its_turn(runtime: Served) -> None:
    """Stop the process at a moment when it holds the registry's turn."""
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.003)
            os.kill(runtime.pid, signal.SIGSTOP)
            await asyncio.sleep(0.05)  # whatever the server was doing is done
            ((holders,),) = await asyncio.to_thread(runtime.rows, HOLDS_THE_TURN)
            if holders:
                return
            os.kill(runtime.pid, signal.SIGCONT)


async def test_the_others_go_on_and_so_does_it(
    database_url: str, tmp_path: Path
) -> None:
    with (
        serving(tmp_path / "0", database_url) as frozen,
        serving(tmp_path / "1", database_url) as other,
    ):
        ids = [still_instance(frozen, 1000 + at).id for at in range(6)]
        writing = [asyncio.create_task(_keep_on(frozen, one)) for one in ids[:5]]
        try:
            await _freeze_in_its_turn(frozen)
            began = time.monotonic()
            row = await _quarantine(other, ids[5])
            took = time.monotonic() - began
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
            for task in writing:
                task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)

        assert row is not None
        assert took < BOUND_S
        # It has lost its connection and its batch, and nothing else.
        async with asyncio.timeout(20):
            while await _quarantine(frozen, ids[0]) is None:
                await asyncio.sleep(0.05)
        gaps = frozen.rows(
            """
            SELECT runtime_vm_instance_id, version, count(h.id), max(registry_version)
              FROM runtime_vm_trust_registry JOIN runtime_vm_trust_history h
             USING (runtime_vm_instance_id)
             GROUP BY 1, 2 HAVING NOT (version = count(*) AND version = max(
                   registry_version))
            """
        )
        assert gaps == []
