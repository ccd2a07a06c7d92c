"""A small fleet that lives the story again and again, at a pace to watch it.

One VM after another is tampered with, quarantined, repaired by its playbook and trusted
again. A person may approve the run, or reject it; where nobody does, the demo approves
after a while. Started again on the same data directory it goes on with the same fleet.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from trustfabric.config import load_settings
from trustfabric.domain.runs import ApprovalState, RunStatus
from trustfabric.domain.trust import Lifecycle
from trustfabric.errors import FabricError, UnavailableError
from trustfabric.scenarios.client import RefusedError
from trustfabric.scenarios.hypervisor import private_hypervisor
from trustfabric.scenarios.runtime import Runtime
from trustfabric.scenarios.steps import (
    REGISTRY,
    SERVERS,
    Story,
    restored,
)
from trustfabric.scenarios.stream import NotSeenError
from trustfabric.scenarios.tenants import Tenant, World, peopled

FLEET: Mapping[int, Sequence[str]] = {
    1: ("web-1", "web-2", "worker-1"),
    2: ("ledger-1", "ledger-2"),
}
"""The servers of each owner; the first owner is whom the printed token is for."""
SETTINGS: Mapping[str, str] = {
    "VM_ATTESTATION_POLICY": "demo-software-tpm",
    # A fleet of five that is tampered with by turns is no storm.
    "REMEDIATION_BREAKER_MINIMUM": "1000",
}
SETTLES_S = 20.0
"""Within that a VM that boots, or is challenged, is trusted again."""
REASON = "the demo goes on"
"""Of what only an operator may decide."""
_FAILED = 1


@dataclass(frozen=True, slots=True)
class Pace:
    """How long people get to look, in seconds."""

    between: float = 4.0
    """From one step to the next."""
    approval: float = 20.0
    """For a person to approve, before the demo does."""


def main(
    data_dir: Path | None = None, pace: Pace | None = None, *, qemu: bool = False
) -> int:
    """Run the demo until SIGINT or SIGTERM; return the exit code.

    With `qemu` its VMs are real guests, at a libvirtd of the demo's own.
    """
    given = {} if data_dir is None else {"TRUSTFABRIC_DATA_DIR": str(data_dir)}
    place = load_settings(flags=given).data_dir
    try:
        with contextlib.ExitStack() as stack:
            machines = stack.enter_context(private_hypervisor(place)) if qemu else {}
            runtime = Runtime(place, {**SETTINGS, **machines})
            return asyncio.run(_until_told(runtime, pace or Pace(), qemu=qemu))
    except UnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return _FAILED


async def _until_told(runtime: Runtime, pace: Pace, *, qemu: bool) -> int:
    playing = asyncio.create_task(_play(runtime, pace, qemu=qemu))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, playing.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await playing
    return 0


async def _play(runtime: Runtime, pace: Pace, *, qemu: bool) -> None:
    """Play for as long as the runtime runs."""
    async with runtime.running():
        _announce(runtime, qemu=qemu)
        playing = asyncio.create_task(_live(runtime, pace))
        ended = asyncio.create_task(runtime.ended())
        try:
            await asyncio.wait((playing, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            playing.cancel()
            ended.cancel()
            await asyncio.wait((playing, ended))
        if not playing.cancelled():
            playing.result()
        raise UnavailableError(f"the runtime is gone:\n{runtime.last_words()}")


async def _live(runtime: Runtime, pace: Pace) -> None:
    async with peopled(runtime, {f"owner {sub}": sub for sub in FLEET}) as world:
        stories = [
            story
            for tenant in world.tenants.values()
            for story in await _fleet_of(world, tenant)
        ]
        for story in cycle(stories):
            await _turn(story, pace)
            await asyncio.sleep(pace.between)


def _announce(runtime: Runtime, *, qemu: bool) -> None:
    """Print what the runtime printed, with a shell command that works from here."""
    mcpctl = Path(sys.argv[0]).name or "mcpctl"
    command = shlex.join(
        [
            os.path.relpath(sys.argv[0]) if mcpctl == "mcpctl" else "mcpctl",
            *("--host", runtime.url),
            *("--token-file", str(runtime.data_dir / "operator-token")),
        ]
    )
    for line in runtime.facts:
        print(f"shell: {command} shell" if line.startswith("shell:") else line)
    if qemu:
        print(f"consoles: {command} servers logs 1 -f")
    print(f"log: {runtime.log_path}", flush=True)


async def _fleet_of(world: World, tenant: Tenant) -> list[Story]:
    """Return the owner's servers: those that are there, and those that are not yet."""
    there = {one["name"]: one["id"] for one in await tenant.operator.get(SERVERS)}
    stories = []
    for name in FLEET[tenant.sub]:
        story = Story(world, tenant, name)
        if name in there:
            story.adopt(there[name])
        else:
            _tell(story, f"created for {tenant.name}; its VM boots")
            await story.launch()
            _tell(story, "restored: its first evidence is good")
        stories.append(story)
    return stories


async def _turn(story: Story, pace: Pace) -> None:
    """Take one server from where it is to where it is trusted."""
    try:
        await _go_on(story, pace)
    except FabricError as error:
        _tell(story, f"held up: {error}")


async def _go_on(story: Story, pace: Pace) -> None:
    instance = await _instance(story)
    if instance is None:
        await _launch_anew(story)
        return
    active = instance["active_run"]
    match instance["trust_lifecycle_state"]:
        case Lifecycle.RESTORED:
            await _break(story, pace)
            await _mend(story, pace)
        case Lifecycle.REMEDIATING if active is not None:
            story.run_id = active["id"]
            await _mend(story, pace)
        case Lifecycle.QUARANTINED:
            await _release(story, instance["version"])
        case state:
            _tell(story, f"{state}: waits for evidence")
            await _settled(story)


async def _instance(story: Story) -> dict[str, Any] | None:
    """Return the living instance where one runs or is kept from running."""
    story.since = len(story.tenant.trust)
    view = await story.tenant.operator.get(f"{SERVERS}/{story.server_id}/vm")
    for instance in view["instances"]:
        if instance["terminated_at"] is None:
            await story.look()
            distrusted = instance["trust_lifecycle_state"] in (
                Lifecycle.QUARANTINED,
                Lifecycle.REMEDIATING,
            )
            runs = instance["desired_state"] != "stopped" or distrusted
            return dict(instance) if runs else None
    return None


async def _break(story: Story, pace: Pace) -> None:
    _tell(story, "tampered with: something was measured into PCR 8")
    await story.distrust()
    _tell(story, "quarantined: its quote shows a register that nobody expects")
    await asyncio.sleep(pace.between)
    await story.stage()
    _tell(story, f"run {story.run_id} is staged and waits for approval")


async def _mend(story: Story, pace: Pace) -> None:
    """See the run through: a person's word, or ours; its end; the new verdict."""
    if (await story.run())["approval_state"] == ApprovalState.PENDING:
        await _decided(story, pace)
    status = await _ended(story)
    if status != RunStatus.COMPLETED:
        _tell(story, f"run {story.run_id} ended: {status}")
        return
    _tell(story, f"run {story.run_id} has restarted the VM; it is challenged again")
    await _settled(story)


async def _decided(story: Story, pace: Pace) -> None:
    wanted = story.run_id
    try:
        await story.tenant.runs.wait_for(
            lambda data: (
                data["run_id"] == wanted
                and data["event"].get("approval_state") not in (None, "pending")
            ),
            within_s=pace.approval,
            what="a person's decision",
        )
        _tell(story, f"run {wanted}: a person has decided")
    except NotSeenError:
        await story.approve()
        _tell(story, f"run {wanted} is approved; the playbook runs")


async def _ended(story: Story) -> str:
    status = str((await story.run())["status"])
    if status in (RunStatus.PENDING, RunStatus.RUNNING):
        status = str((await story.ended())["status"])
    return status


async def _settled(story: Story) -> None:
    """Wait until it is trusted, from now or already."""
    row = await story.tenant.operator.get(f"{REGISTRY}/{story.instance_id}")
    if not restored(row):
        # Its VM may be gone by now, and never will be; another takes its place.
        await story.until_restored(within_s=SETTLES_S)
    _tell(story, "restored: fresh evidence is good")


async def _launch_anew(story: Story) -> None:
    """Start its next VM; where the last one ended distrusted, as an operator allows."""
    try:
        await story.start()
    except RefusedError as error:
        if error.slug != "placement-blocked":
            raise
        path = f"{SERVERS}/{story.server_id}/release"
        await story.tenant.operator.post(path, {"reason": REASON})
        _tell(story, "released, for its last VM ended distrusted; a new one boots")
        await story.start()


async def _release(story: Story, version: int) -> None:
    """Give it another chance, as an operator may: it is challenged at once."""
    body = {"reason": REASON, "expected_version": version}
    await story.tenant.operator.post(f"{REGISTRY}/{story.instance_id}/release", body)
    _tell(story, "released from quarantine; it is challenged at once")


def _tell(story: Story, what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {story.name:10} {what}", flush=True)
