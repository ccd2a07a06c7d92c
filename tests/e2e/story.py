"""The story of the product as a person lives it: over REST, SSE and `mcpctl`."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from trustfabric.scenarios.client import Person
from trustfabric.scenarios.runtime import Runtime, free_port
from trustfabric.scenarios.stream import Recorder

PATIENCE_S = 60.0
PLAYBOOK = "default-vm-remediation"
SCRIPT = (
    Path(__file__).parents[2] / "trustfabric/scenarios/playbooks/restart-vm.sh"
).read_text()
ALICE, BOSS = 7, 9
TAMPERED = "aa" * 32

SETTINGS: Mapping[str, str] = {
    "VM_ATTESTATION_POLICY": "demo-software-tpm",
    "CHAOS_ENABLED": "true",
    "REMEDIATION_TICK_SECONDS": "1",
    "REMEDIATION_LEASE_SECONDS": "3",
    "SCHEDULER_TICK_SECONDS": "1",
    "LOG_FORMAT": "json",
}

Data = dict[str, Any]


@dataclass
class Story:
    """One server whose VM is trusted, tampered with, remedied and trusted again."""

    runtime: Runtime
    alice: Person
    boss: Person
    alice_token: str
    trust: Recorder
    remediation: Recorder
    server_id: int = 0

    async def begin(self) -> None:
        """Create the playbook and the server, and launch it."""
        await self.boss.post(
            "/api/trust/remediation/playbooks",
            {
                "playbook_key": PLAYBOOK,
                "display_name": "Restart the VM",
                "executor_type": "shell",
                "approval_required": True,
                "shared": True,
                "metadata": {
                    "script": SCRIPT,
                    "timeout_seconds": 120,
                    "on_lost": "retry",
                },
            },
        )
        server = await self.alice.post(
            "/api/servers",
            {
                "name": "web",
                "config": {"attestation": {"kind": "tpm", "source": "swtpm"}},
            },
        )
        self.server_id = server["id"]
        await self.alice.post(f"/api/servers/{self.server_id}/start")

    async def tamper(self) -> None:
        """Extend PCR 8 of the VM's TPM, as software that shouldn't run would."""
        vm = await self.vm()
        socket = self.runtime.data_dir / "tpm" / vm["instance_id"] / "tpm.sock"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "trustfabric.agent.main",
            "--tpm",
            str(socket),
            "extend",
            "8",
            TAMPERED,
        )
        assert await process.wait() == 0

    async def vm(self) -> Data:
        """Return the server's living instance with its badges."""
        answer = await self.alice.get(f"/api/servers/{self.server_id}/vm")
        instances: list[Data] = answer["instances"]
        return instances[0]

    async def row(self) -> Data:
        """Return the registry row of the server's instance."""
        rows: list[Data] = await self.alice.get("/api/trust/registry")
        return next(row for row in rows if row["server_id"] == self.server_id)

    async def challenge(self) -> None:
        await self.alice.post(f"/api/servers/{self.server_id}/vm/attest")

    async def until(
        self, lifecycle: str, wanted: Callable[[Data], bool] = lambda _: True
    ) -> Data:
        """Wait until the stream has told that the instance is in this state now."""
        row = await self.row()
        is_so = row["lifecycle_state"] == lifecycle and wanted(row)
        told = await self.trust.wait_for(
            lambda data: (
                data["version"] >= row["version"] + (not is_so)
                and data["lifecycle_state"] == lifecycle
                and wanted(data)
            ),
            within_s=PATIENCE_S,
            what=f"lifecycle {lifecycle}",
        )
        return row if is_so else told

    async def pending_run(self) -> Data:
        """Wait for the run that waits for approval, and return it."""
        await self.until(
            "remediating",
            lambda data: data["remediation_state"] == "remediation:pending-approval",
        )
        runs: list[Data] = await self.alice.get(
            "/api/trust/remediation/runs", approval_state="pending", status="pending"
        )
        return runs[0]

    async def approve(self, run: Data) -> None:
        await self.boss.post(
            f"/api/trust/remediation/runs/{run['id']}/approval",
            {"new_state": "approved", "expected_version": run["version"]},
        )

    async def release(self) -> None:
        row = await self.row()
        await self.boss.post(
            f"/api/trust/registry/{row['vm_instance_id']}/release",
            {"reason": "its evidence is good", "expected_version": row["version"]},
        )

    async def mcpctl(self, *arguments: str, token: str | None = None) -> "Answer":
        """Run the operator's command line against the runtime."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "trustfabric.main",
            *arguments,
            env={
                **os.environ,
                "MCP_HOST_URL": self.runtime.url,
                "MCP_HOST_TOKEN": token or self.alice_token,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Answer(process.returncode or 0, out.decode(), err.decode())

    async def check(self) -> None:
        """Check that history, registry and stream tell one and the same story."""
        vm = await self.vm()
        history = await self.alice.get(
            f"/api/trust/registry/{vm['id']}/history", limit=200
        )
        events = list(reversed(history["events"]))
        row = await self.row()
        assert [event["version"] for event in events] == [*range(1, row["version"] + 1)]
        await self.trust.wait_for(
            lambda data: data["history_id"] == events[-1]["id"],
            within_s=PATIENCE_S,
            what="the newest transition on the stream",
        )
        told = [
            event.data["history_id"]
            for event in self.trust.events
            if event.data["vm_instance_id"] == vm["id"]
        ]
        assert told == [event["id"] for event in events]
        assert self.trust.resets == 0
        for before, after in pairwise(events):
            assert after["previous_lifecycle_state"] == before["lifecycle_state"]
        for event in events:
            if event["lifecycle_state"] == "restored":
                assert event["attestation_status"] == "trusted"


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@asynccontextmanager
async def a_story(
    data_dir: Path, settings: Mapping[str, str] = SETTINGS
) -> AsyncIterator[Story]:
    """Start a runtime on its embedded defaults, and two people with their streams."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(
            Runtime(data_dir, {**settings, "BIND_PORT": str(free_port())}).running()
        )
        alice_token = await runtime.token(ALICE, "operator")
        boss_token = await runtime.token(BOSS, "admin")
        alice = await stack.enter_async_context(
            Person(runtime.url, alice_token, patience_s=PATIENCE_S)
        )
        boss = await stack.enter_async_context(
            Person(runtime.url, boss_token, patience_s=PATIENCE_S)
        )
        trust = await stack.enter_async_context(
            Recorder(alice, "/api/trust/registry/stream").running()
        )
        remediation = await stack.enter_async_context(
            Recorder(alice, "/api/trust/remediation/stream").running()
        )
        yield Story(runtime, alice, boss, alice_token, trust, remediation)
