"""The story of one VM, a step each: launched, tampered with, approved, restored.

Every step returns when an event stream has told that it is done. Between steps the
story says where it is, so that a fault can come in mid-work.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trustfabric.agent.tpm import Tpm, TpmError
from trustfabric.agent.transport import TpmUnreachableError, open_tpm
from trustfabric.domain.runs import RunStatus
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Tag
from trustfabric.errors import FabricError, UnavailableError
from trustfabric.scenarios.client import RefusedError
from trustfabric.scenarios.model import Phase
from trustfabric.scenarios.stream import NotSeenError
from trustfabric.scenarios.tenants import Tenant, World

REGISTRY = "/api/trust/registry"
RUNS = "/api/trust/remediation/runs"
SERVERS = "/api/servers"

STEP_S = 120.0
ASK_AGAIN_S = 15.0
"""A crash may swallow the wish for a challenge, and a boot undo the tampering."""
TAMPERED_PCR = 8
TPM_S = 5.0


class FailedError(FabricError):
    """The product did something else than the scenario expects."""

    code = "failed"


async def _nothing(_: "Story", __: Phase) -> None:
    """Let the story go on undisturbed."""


@dataclass(slots=True)
class Story:
    """One server of a tenant, and how far its story is."""

    world: World
    tenant: Tenant
    name: str
    image: str = "demo"
    at: Callable[["Story", Phase], Awaitable[None]] = _nothing
    """Called when a phase has begun."""
    step_s: float = STEP_S
    server_id: int = 0
    instance_id: int = 0
    instance_name: str = ""
    run_id: int = 0
    since: int = 0
    """Where in the trust stream its present repair begins."""
    milestones: list[tuple[Phase, float]] = field(default_factory=list)
    """When each phase came to its good end."""

    async def play(self) -> None:
        """Live the whole story once."""
        await self.launch()
        await self.distrust()
        await self.stage()
        await self.approve()
        await self.execute()
        await self.verify()

    # --- launch --------------------------------------------------------------

    async def launch(self) -> None:
        """Create the server and start it; done when its VM is trusted."""
        config = {
            "vm": {"image": self.image},
            "attestation": {"kind": "tpm", "source": "swtpm"},
        }
        server = await self.tenant.operator.post(
            SERVERS, {"name": self.name, "config": config}
        )
        self.adopt(server["id"])
        await self.start()

    def adopt(self, server_id: int) -> None:
        """Make a server that is already there the story's own."""
        self.server_id = server_id
        self.tenant.servers.add(server_id)

    async def start(self) -> None:
        self.since = len(self.tenant.trust)
        try:
            await self.tenant.operator.post(f"{SERVERS}/{self.server_id}/start")
        except RefusedError as error:
            if error.slug != "already-running":
                raise
        await self.look()
        await self.at(self, Phase.LAUNCH)
        await self._trust(f"{self.name} restored after its start", restored)
        self._reached(Phase.LAUNCH)

    async def look(self) -> dict[str, Any]:
        """Find out which instance the server runs on."""
        view: dict[str, Any] = await self.tenant.operator.get(
            f"{SERVERS}/{self.server_id}/vm"
        )
        newest = view["instances"][0]
        self.instance_id, self.instance_name = newest["id"], newest["instance_id"]
        self.tenant.instances.add(self.instance_id)
        return view

    # --- distrust ------------------------------------------------------------

    async def distrust(self) -> None:
        """Tamper with the VM and have it challenged; done when it is quarantined."""
        self.since = len(self.tenant.trust)
        await self._tamper_and_challenge()
        await self.at(self, Phase.ATTEST)
        what = f"{self.name} quarantined after tampering"
        for _ in range(int(self.step_s // ASK_AGAIN_S)):
            try:
                await self._trust(what, quarantined, within_s=ASK_AGAIN_S)
                break
            except NotSeenError:
                await self._tamper_and_challenge()
        else:
            raise NotSeenError(f"not seen within {self.step_s:g} s: {what}")
        self._reached(Phase.ATTEST)

    async def _tamper_and_challenge(self) -> None:
        await self.tamper()
        await self.tenant.operator.post(f"{SERVERS}/{self.server_id}/vm/attest")

    async def tamper(self) -> None:
        """Measure something into a register that a clean boot leaves alone."""
        path = self.world.runtime.data_dir / "tpm" / self.instance_name / "tpm.sock"
        digest = secrets.token_bytes(32)

        def extend() -> None:
            with open_tpm(path, TPM_S) as transport:
                Tpm(transport).pcr_extend(TAMPERED_PCR, "sha256", digest)

        try:
            await asyncio.to_thread(extend)
        except (TpmUnreachableError, TpmError) as error:
            raise UnavailableError(f"software TPM of {self.name}: {error}") from error

    # --- approval ------------------------------------------------------------

    async def order(self, playbook: str, metadata: Mapping[str, Any]) -> None:
        """Enqueue a run by hand, as the operator."""
        self.since = len(self.tenant.trust)
        body = {
            "runtime_vm_instance_id": self.instance_id,
            "playbook": playbook,
            "metadata": dict(metadata),
        }
        try:
            await self.tenant.operator.post(RUNS, body)
        except RefusedError as error:
            if error.slug != "run-active":
                raise  # else the answer to our first try was lost
        await self.stage()

    async def stage(self) -> None:
        """Wait for the run that the quarantine stages."""
        run = await self._pending_run()
        if run is None:
            await self._trust(f"a run staged for {self.name}", awaits_approval)
            run = await self._pending_run()
        if run is None:
            raise FailedError(f"{self.name}: pending approval without a run")
        self.run_id = run["id"]

    async def _pending_run(self) -> dict[str, Any] | None:
        found = await self.tenant.operator.get(
            RUNS, runtime_vm_instance_id=self.instance_id, status=RunStatus.PENDING
        )
        return found[0] if found else None

    async def approve(self) -> None:
        """Agree to the run; a person who gets no answer looks and tries again."""
        await self.at(self, Phase.APPROVAL)
        while (run := await self.run())["approval_state"] == "pending":
            body = {"new_state": "approved", "expected_version": run["version"]}
            try:
                await self.world.admin.post(f"{RUNS}/{self.run_id}/approval", body)
            except RefusedError as error:
                if error.slug not in ("version-conflict", "conflict"):
                    raise
        if run["approval_state"] != "approved":
            raise FailedError(f"run {self.run_id}: {run['approval_state']}")

    async def run(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self.tenant.operator.get(f"{RUNS}/{self.run_id}")
        return answer

    # --- the run -------------------------------------------------------------

    async def execute(self) -> None:
        """Wait until the playbook works, then until the run has ended well."""
        await self._told("its first line", lambda event: event["event"] == "log")
        self._reached(Phase.APPROVAL)
        await self.at(self, Phase.RUN)
        ended = await self.ended()
        if ended["status"] != RunStatus.COMPLETED:
            raise FailedError(
                f"run {self.run_id}: {ended['status']}: {ended['message']}"
            )
        self._reached(Phase.RUN)

    async def ended(self) -> dict[str, Any]:
        """Wait until the run has ended; the event that said so."""
        over = {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}
        return await self._told("its end", lambda event: event.get("status") in over)

    async def _told(
        self, what: str, wanted: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        found = await self.tenant.runs.wait_for(
            lambda data: data["run_id"] == self.run_id and wanted(data["event"]),
            within_s=self.step_s,
            what=f"run {self.run_id} of {self.name}: {what}",
        )
        event: dict[str, Any] = found["event"]
        return event

    # --- the end -------------------------------------------------------------

    async def verify(self) -> None:
        """Wait until the VM is trusted again, by evidence from after the run."""
        completed = await self._trust("the run's end", run_completed)
        await self.at(self, Phase.VERIFY)
        await self._trust(
            f"{self.name} restored after run {self.run_id}",
            lambda data: restored(data) and data["version"] > completed["version"],
        )
        self._reached(Phase.VERIFY)

    async def until_restored(self, within_s: float | None = None) -> None:
        """Wait until it is trusted, by whatever comes from `since` on."""
        await self._trust(f"{self.name} restored", restored, within_s=within_s)

    async def _trust(
        self,
        what: str,
        wanted: Callable[[dict[str, Any]], bool],
        *,
        within_s: float | None = None,
    ) -> dict[str, Any]:
        return await self.tenant.trust.wait_for(
            lambda data: data["vm_instance_id"] == self.instance_id and wanted(data),
            within_s=within_s or self.step_s,
            what=what,
            since=self.since,
        )

    def _reached(self, phase: Phase) -> None:
        self.milestones.append((phase, time.monotonic()))


def restored(data: dict[str, Any]) -> bool:
    trusted = data["attestation_status"] == AttestationStatus.TRUSTED
    return bool(trusted and data["lifecycle_state"] == Lifecycle.RESTORED)


def quarantined(data: dict[str, Any]) -> bool:
    return bool(data["lifecycle_state"] == Lifecycle.QUARANTINED)


def awaits_approval(data: dict[str, Any]) -> bool:
    return bool(data["remediation_state"] == Tag.PENDING_APPROVAL)


def run_completed(data: dict[str, Any]) -> bool:
    return bool(data["remediation_state"] == Tag.AUTOMATION_COMPLETE)
