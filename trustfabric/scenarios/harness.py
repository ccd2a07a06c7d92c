"""The matrix: every scenario for every tenant, at once, against one runtime."""

import asyncio
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from trustfabric.config import load_settings
from trustfabric.errors import ConfigError, FabricError
from trustfabric.scenarios import storm
from trustfabric.scenarios.faults import ExecutorOutage
from trustfabric.scenarios.invariants import violations
from trustfabric.scenarios.kinds import KINDS, Case
from trustfabric.scenarios.manifest import Manifest, load
from trustfabric.scenarios.model import Kind, Scenario, SteadyState
from trustfabric.scenarios.report import (
    TRANSCRIPT_NAME,
    Verdict,
    manifest_document,
    masked,
    transcribing,
    write_manifest,
)
from trustfabric.scenarios.runtime import Runtime, free_port
from trustfabric.scenarios.tenants import (
    APPROVER_SUB,
    FIRST_SUB,
    IMPATIENT_PLAYBOOK,
    ORDERED_PLAYBOOK,
    World,
    add_playbook,
    peopled,
)

DEFAULT_OUTPUT = Path("build") / "scenarios"
AT_ONCE = 12
"""Cells in flight: each has a VM with a software TPM, and programs of its own."""
CELL_S = 300.0

SETTINGS: Mapping[str, str] = {
    "VM_ATTESTATION_POLICY": "demo-software-tpm",
    "CHAOS_ENABLED": "true",
    "REMEDIATION_TICK_SECONDS": "1",
    "REMEDIATION_LEASE_SECONDS": "5",
    "REMEDIATION_RETRY_BASE_SECONDS": "0.5",
    "REMEDIATION_RETRY_MAX_SECONDS": "5",
    "REMEDIATION_CONCURRENCY": "32",
    "REMEDIATION_OWNER_CONCURRENCY": "16",
    # Everything here is quarantined on purpose, and much of it within a minute.
    "REMEDIATION_BREAKER_MINIMUM": "100000",
    "SCHEDULER_TICK_SECONDS": "2",
    # A stream that lost its broadcaster notices at its next heartbeat.
    "SSE_HEARTBEAT_SECONDS": "3",
}


def main(
    *, directory: Path | None = None, names: Sequence[str] = (), output: Path | None
) -> int:
    """Run all scenarios of `directory`, or those named; return the exit code."""
    manifest = load(directory)
    url = load_settings().database.url
    database_url = None if url is None else masked(url.get_secret_value())
    chosen = _chosen(manifest, names)
    return asyncio.run(_run(manifest, chosen, output or DEFAULT_OUTPUT, database_url))


def _chosen(manifest: Manifest, names: Sequence[str]) -> list[Scenario]:
    known = {one.name: one for one in manifest.scenarios}
    if unknown := [f"{name}: no such scenario" for name in names if name not in known]:
        raise ConfigError(unknown)
    return [known[name] for name in names] if names else list(manifest.scenarios)


async def _run(
    manifest: Manifest,
    chosen: Sequence[Scenario],
    output: Path,
    database_url: str | None,
) -> int:
    data_dir = _fresh(output / "data")
    _fresh(output / "data-of-storms")
    transcript = output / TRANSCRIPT_NAME
    runtime = Runtime(data_dir, {**SETTINGS, "BIND_PORT": str(free_port())})
    async with runtime.running():
        token = await runtime.token(APPROVER_SUB, "admin")
        names = sorted({name for one in chosen for name in one.tenants})
        tenants = {name: FIRST_SUB + number for number, name in enumerate(names)}
        async with (
            transcribing(transcript, runtime.url, token),
            peopled(runtime, tenants) as world,
        ):
            for sub in tenants.values():
                await add_playbook(world.admin, ORDERED_PLAYBOOK, sub)
                await add_playbook(world.admin, IMPATIENT_PLAYBOOK, sub, retry_limit=1)
            verdicts = await _matrix(chosen, world)
    verdicts += await _storms(chosen, output / "data-of-storms")
    document = manifest_document(
        manifest,
        verdicts,
        database_url=database_url or f"postgresql:///?host={data_dir}/postgres",
        transcript=transcript,
    )
    path = write_manifest(output, document)
    failed = [one for one in verdicts if one.faults]
    print(f"{len(verdicts) - len(failed)} of {len(verdicts)} passed; {path}")
    return 1 if failed else 0


def _fresh(data_dir: Path) -> Path:
    """Make room for this run's state; what an earlier run left there goes."""
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    if data_dir.exists():
        if not (data_dir / "runtime.log").exists():
            raise ConfigError([f"{data_dir}: holds something that is not ours"])
        shutil.rmtree(data_dir)
    return data_dir


async def _matrix(chosen: Sequence[Scenario], world: World) -> list[Verdict]:
    """Run everything at once; only a kill of the whole process has its own turn.

    Storms have a runtime of their own: see `_storms`.
    """
    outage = ExecutorOutage(world.runtime.data_dir)
    cases = [
        Case(one, world.tenants[name], world, outage)
        for one in chosen
        for name in one.tenants
    ]
    alone = {Kind.PROCESS_KILL, Kind.STORM}
    together = [one for one in cases if one.scenario.kind not in alone]
    verdicts = await _at_once(together)
    for scenario in chosen:
        if scenario.kind is Kind.PROCESS_KILL:
            verdicts += await _at_once(
                [one for one in cases if one.scenario is scenario]
            )
    return verdicts


async def _storms(chosen: Sequence[Scenario], data_dir: Path) -> list[Verdict]:
    """Run the storms one by one, where the breaker opens as it does in earnest."""
    scenarios = [one for one in chosen if one.kind is Kind.STORM]
    if not scenarios:
        return []
    names = sorted({name for one in scenarios for name in one.tenants})
    tenants = {name: FIRST_SUB + number for number, name in enumerate(names)}
    settings = {**SETTINGS, **storm.SETTINGS, "BIND_PORT": str(free_port())}
    runtime, verdicts = Runtime(data_dir, settings), []
    async with runtime.running(), peopled(runtime, tenants) as world:
        outage = ExecutorOutage(data_dir)
        for scenario in scenarios:
            for name in scenario.tenants:
                case = Case(scenario, world.tenants[name], world, outage)
                verdicts += await _at_once([case])
    return verdicts


async def _at_once(cases: Sequence[Case]) -> list[Verdict]:
    free = asyncio.Semaphore(AT_ONCE)

    async def limited(case: Case) -> Verdict:
        async with free:
            verdict = await _judge(case)
        _tell(verdict)
        return verdict

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(limited(case)) for case in cases]
    return [one.result() for one in running]


async def _judge(case: Case) -> Verdict:
    started = time.monotonic()
    faults: list[str] = []
    try:
        async with asyncio.timeout(CELL_S):
            story = await KINDS[case.scenario.kind](case)
            seconds = time.monotonic() - started
            experiment = case.scenario.experiment
            faults = await violations(
                case.tenant,
                story.server_id,
                story.instance_id,
                SteadyState() if experiment is None else experiment.steady_state,
            )
    except (FabricError, TimeoutError) as error:
        seconds = time.monotonic() - started
        faults.append(str(error) or f"not over within {CELL_S:g} s")
    return Verdict(
        scenario=case.scenario.name,
        tenant=case.tenant.name,
        seconds=round(seconds, 2),
        faults=tuple(faults),
    )


def _tell(verdict: Verdict) -> None:
    took = f"{verdict.seconds:6.1f} s"
    print(f"{verdict.word}  {took}  {verdict.scenario}  {verdict.tenant}")
    for fault in verdict.faults:
        print(f"      {fault}")
    sys.stdout.flush()
