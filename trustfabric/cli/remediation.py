"""`mcpctl remediation`: playbooks, runs, and the stream of what runs do."""

from collections.abc import Mapping
from typing import Any

import click

from trustfabric.cli.holds import breaker, incidents, release_breaker
from trustfabric.cli.options import INSTANCE, RUN
from trustfabric.cli.playbooks import playbooks
from trustfabric.cli.render import cell
from trustfabric.cli.runs import RUN_STATUS, runs
from trustfabric.cli.session import Session
from trustfabric.cli.watch import Until
from trustfabric.cli.watch import options as watch_options
from trustfabric.cli.watch import watch as watch_stream

STREAM = "/api/trust/remediation/stream"


@click.group(help="Playbooks and their runs.")
def remediation() -> None:
    pass


remediation.add_command(playbooks)
remediation.add_command(runs)
remediation.add_command(incidents)
remediation.add_command(breaker)
remediation.add_command(release_breaker)


@remediation.command()
@click.option("--run-id", type=RUN)
@click.option("--instance-id", type=INSTANCE)
@click.option("--status", type=RUN_STATUS)
@watch_options
@click.pass_obj
async def watch(session: Session, /, **flags: Any) -> None:
    """Follow logs and status changes of runs."""
    until, params = Until.taken_from(flags)
    await watch_stream(session, STREAM, params, describe, until)


def describe(data: Mapping[str, Any]) -> list[str]:
    """One event of a run; a status change with the governance around it."""
    found = data.get("event")
    event: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    run = f"run {cell(data.get('run_id'))}"
    if event.get("event") == "log":
        stream, message = cell(event.get("stream")), cell(event.get("message") or "")
        return [f"{run}  {cell(event.get('seq'))}  {stream}  {message}"]
    parts = [
        run,
        f"instance {cell(data.get('instance_id'))}",
        cell(data.get("playbook")),
        cell(event.get("status")),
        cell(event.get("approval_state")),
    ]
    if event.get("approvals_required"):
        given, required = event.get("approvals_given"), event["approvals_required"]
        parts.append(f"{cell(given)}/{cell(required)}")
    if event.get("sla_breached"):
        parts.append("SLA BREACHED")
    parts += [cell(event[k]) for k in ("failure_reason", "message") if event.get(k)]
    return ["  ".join(parts), *(f"    {line}" for line in _governance(data))]


def _governance(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, name in (
        ("manifest_tags", "tags"),
        ("policy_feedback", "policy feedback"),
    ):
        if data.get(key):
            lines.append(f"{name}: {cell(data[key])}")
    found = data.get("policy_gate")
    gate: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    if gate.get("remediation_hooks"):
        lines.append(f"gate: {cell(gate['remediation_hooks'])}")
    for item in _objects(gate.get("accelerator_gates")):
        blocked = f"gate: accelerator {cell(item.get('accelerator_id'))}"
        hooks, reasons = cell(item.get("hooks")), cell(item.get("reasons"))
        lines.append(f"{blocked}: {hooks} because {reasons}")
    for item in _objects(data.get("accelerators")):
        kind, posture = cell(item.get("accelerator_type")), cell(item.get("posture"))
        lines.append(
            f"accelerator {cell(item.get('accelerator_id'))}: {kind} {posture}"
        )
    return lines


def _objects(value: object) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, Mapping)]
