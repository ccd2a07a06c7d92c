"""A run whose program is at work, and somebody with its token."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest_asyncio

from tests.fix_runtime import Served
from tests.http.client import Caller, Json
from tests.http.conftest import Still, a_playbook, a_run, run_becomes

RUNS = "/api/trust/remediation/runs"


@dataclass
class Working:
    """A run whose program is at work, and somebody with its token."""

    program: Caller
    run: Json
    vm: Still
    claims: Json

    @property
    def server(self) -> str:
        return f"/api/servers/{self.vm.server_id}"

    def with_claims(self, **claims: Any) -> Caller:
        token = self.program.runtime.token(
            self.program.user, **{**self.claims, **claims}
        )
        return Caller(self.program.runtime, self.program.http, token=token)


@pytest_asyncio.fixture
async def working(
    runtime: Served, http: aiohttp.ClientSession, alice: Caller, boss: Caller, vm: Still
) -> AsyncIterator[Working]:
    key = f"sleep-{boss.user}"
    await a_playbook(
        boss,
        key,
        shared=True,
        executor_type="shell",
        approval_required=False,
        metadata={"command": ["sleep", "60"], "kill_grace_seconds": 1},
    )
    run = await a_run(alice, vm, key)
    run = await run_becomes(alice, run["id"], "running")
    ((epoch,),) = runtime.rows(
        "SELECT lease_epoch FROM runtime_vm_remediation_runs WHERE id = %s", run["id"]
    )
    claims: Json = {
        "role": "run",
        "run": run["id"],
        "instance": vm.id,
        "server": vm.server_id,
        "epoch": epoch,
    }
    token = runtime.token(alice.user, **claims)
    yield Working(Caller(runtime, http, alice.user, token), run, vm, claims)
    await alice.post(f"{RUNS}/{run['id']}/cancel")
