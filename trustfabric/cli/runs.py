"""`mcpctl remediation runs`: automation attempts, from queued to ended."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from trustfabric.cli import render, versions
from trustfabric.cli.client import Row
from trustfabric.cli.errors import BrokenAnswerError
from trustfabric.cli.options import (
    INSTANCE,
    NOT_NEGATIVE,
    OBJECT,
    PLAYBOOK_KEY,
    POSITIVE,
    RUN,
    as_json,
    given,
    limit,
)
from trustfabric.cli.render import cell
from trustfabric.cli.session import Session

RUNS = "/api/trust/remediation/runs"
RUN_STATUS = click.Choice(["pending", "running", "completed", "failed", "cancelled"])
ENDED = frozenset({"completed", "failed", "cancelled"})
_APPROVAL = click.Choice(["pending", "approved", "rejected", "auto-approved"])
_POLL_S = 0.5

_COLUMNS = (
    ("id", "RUN"),
    ("runtime_vm_instance_id", "INSTANCE"),
    ("playbook", "PLAYBOOK"),
    ("status", "STATUS"),
    ("approval_state", "APPROVAL"),
    ("approvals", "GIVEN"),
    ("attempt", "ATTEMPT"),
    ("failure_reason", "FAILURE"),
    ("sla", "SLA"),
    ("version", "VERSION"),
    ("queued_at", "QUEUED"),
    ("started_at", "STARTED"),
    ("completed_at", "ENDED"),
)
_ARTIFACT_COLUMNS = (
    ("id", "ARTIFACT"),
    ("artifact_type", "TYPE"),
    ("name", "NAME"),
    ("media_type", "MEDIA TYPE"),
    ("size", "SIZE"),
    ("sha256", "SHA-256"),
    ("uri", "URI"),
    ("created_at", "CREATED"),
)
_OUTCOME = (
    ("id", "run"),
    ("status", ""),
    ("approval_state", "approval"),
    ("approvals", "given"),
    ("version", "version"),
)
_expected_version = click.option(
    "--version",
    "--expected-version",
    "version",
    type=NOT_NEGATIVE,
    help="Refuse if the run is at another version. Absent: it is read first.",
)


@click.group(help="Automation attempts.")
def runs() -> None:
    pass


@runs.command("list")
@click.option("--instance-id", "runtime_vm_instance_id", type=INSTANCE)
@click.option("--status", type=RUN_STATUS)
@click.option("--approval-state", type=_APPROVAL)
@click.option("--playbook", type=PLAYBOOK_KEY, metavar="KEY")
@limit
@as_json
@click.pass_obj
async def list_(
    session: Session, /, *, limit: int, as_json: bool, **filters: Any
) -> None:
    """List runs."""
    found = await session.client.rows(RUNS, filters, limit)
    rows = found.rows if as_json else [_badged(row) for row in found.rows]
    render.show_rows(rows, _COLUMNS, as_json=as_json, more=found.more)


def _badged(row: Any) -> Any:
    """Add how many approvals of how many, and the badge of a breached deadline."""
    if not isinstance(row, Mapping):
        return row
    required, deadline = row.get("approvals_required"), row.get("sla_deadline")
    badges: dict[str, object] = {}
    if required:
        badges["approvals"] = f"{cell(row.get('approvals_given'))}/{cell(required)}"
    if deadline:
        badges["sla"] = f"BREACHED {deadline}" if row.get("sla_breached") else deadline
    return {**row, **badges}


@runs.command()
@click.argument("run", type=RUN)
@as_json
@click.pass_obj
async def get(session: Session, /, run: int, *, as_json: bool) -> None:
    """Show one run."""
    render.show_record(await session.client.get(f"{RUNS}/{run}"), as_json=as_json)


@runs.command()
@click.argument("instance", type=INSTANCE)
@click.argument("playbook", type=PLAYBOOK_KEY)
@click.option("--metadata", type=OBJECT, metavar="JSON|@FILE")
@click.option("--payload", "automation_payload", type=OBJECT, metavar="JSON|@FILE")
@click.option("--owner", "assigned_owner_id", type=POSITIVE)
@click.option("--idempotency-key", help="The same key again: the same answer.")
@as_json
@click.pass_obj
async def enqueue(
    session: Session,
    /,
    instance: int,
    playbook: str,
    *,
    idempotency_key: str | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Queue PLAYBOOK (its key) for INSTANCE."""
    body = {"runtime_vm_instance_id": instance, "playbook": playbook} | given(fields)
    headers = given({"Idempotency-Key": idempotency_key})
    answer = await session.client.send("POST", RUNS, body, headers=headers)
    _show_queued(answer, as_json=as_json)


def _show_queued(answer: object, *, as_json: bool) -> None:
    if as_json:
        render.whole(answer)
        return
    found = answer if isinstance(answer, Mapping) else {}
    run = found.get("run") or {}
    made = "queued" if found.get("created") else "exists already:"
    state = f"{cell(run.get('status'))}, approval {cell(run.get('approval_state'))}"
    render.line(f"{made} run {cell(run.get('id'))} ({state})")


@runs.command()
@click.argument("run", type=RUN)
@click.option(
    "--state",
    type=click.Choice(["approved", "rejected"]),
    default="approved",
    show_default=True,
)
@click.option("--notes")
@_expected_version
@as_json
@click.pass_obj
async def approve(
    session: Session,
    /,
    run: int,
    *,
    state: str,
    notes: str | None,
    version: int | None,
    as_json: bool,
) -> None:
    """Decide on a run that waits for approval."""
    await _decide(session, run, state, notes, version, as_json=as_json)


@runs.command()
@click.argument("run", type=RUN)
@click.option("--notes")
@_expected_version
@as_json
@click.pass_obj
async def reject(
    session: Session,
    /,
    run: int,
    *,
    notes: str | None,
    version: int | None,
    as_json: bool,
) -> None:
    """Refuse a run that waits for approval."""
    await _decide(session, run, "rejected", notes, version, as_json=as_json)


async def _decide(
    session: Session,
    run: int,
    state: str,
    notes: str | None,
    version: int | None,
    *,
    as_json: bool,
) -> None:
    path = f"{RUNS}/{run}"
    expected = await versions.version(session.client, path, version)
    body = {"new_state": state, "expected_version": expected}
    body |= given({"approval_notes": notes})
    answer = await session.client.send("POST", f"{path}/approval", body)
    shown = answer if as_json else _badged(answer)
    render.show_outcome(shown, _OUTCOME, as_json=as_json)


@runs.command()
@click.argument("run", type=RUN)
@click.option("--reason")
@as_json
@click.pass_obj
async def cancel(
    session: Session, /, run: int, *, reason: str | None, as_json: bool
) -> None:
    """End a run that has not ended."""
    body = given({"reason": reason})
    answer = await session.client.send("POST", f"{RUNS}/{run}/cancel", body)
    render.show_outcome(answer, _OUTCOME, as_json=as_json)


@runs.command()
@click.argument("run", type=RUN)
@as_json
@click.pass_obj
async def retry(session: Session, /, run: int, *, as_json: bool) -> None:
    """Queue an ended run again, as a new one."""
    answer = await session.client.send("POST", f"{RUNS}/{run}/retry")
    _show_queued(answer, as_json=as_json)


@runs.command()
@click.argument("run", type=RUN)
@click.option("--after", type=NOT_NEGATIVE, default=0, help="Only after this number.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_obj
async def logs(
    session: Session, /, run: int, *, after: int, follow: bool, as_json: bool
) -> None:
    """Print what a run wrote."""
    path = f"{RUNS}/{run}"
    session.endless = follow
    while True:
        ended = not follow or (await session.client.row(path)).get("status") in ENDED
        async for row in _written(session, path, after):
            after = row["seq"]
            render.jsonl(row) if as_json else render.line(_log_line(row))
        if ended:
            return
        await asyncio.sleep(_POLL_S)


async def _written(session: Session, path: str, after: int) -> AsyncIterator[Row]:
    """Every line after that number, batch by batch."""
    while True:
        batch = (await session.client.page(f"{path}/logs", {"after": after})).rows
        for row in batch:
            if not isinstance(row.get("seq"), int) or row["seq"] <= after:
                raise BrokenAnswerError(f"GET {path}/logs: the lines are out of order")
            after = row["seq"]
            yield row
        if not batch:
            return


def _log_line(row: Mapping[str, Any]) -> str:
    at = cell(row.get("at") or row.get("timestamp"))
    message = cell(row.get("message") or "")
    return f"{at}  {cell(row.get('seq'))}  {cell(row.get('stream'))}  {message}"


@runs.command()
@click.argument("run", type=RUN)
@click.argument("artifact", required=False)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE"
)
@as_json
@click.pass_obj
async def artifacts(
    session: Session,
    /,
    run: int,
    artifact: str | None,
    *,
    output: Path | None,
    as_json: bool,
) -> None:
    """List what a run left, or fetch one ARTIFACT."""
    path = f"{RUNS}/{run}/artifacts"
    if artifact is None:
        found = await session.client.rows(path, None, 0)
        render.show_rows(found.rows, _ARTIFACT_COLUMNS, as_json=as_json)
        return
    content = await session.client.raw(f"{path}/{quote(artifact, safe='')}")
    if output is not None:
        await asyncio.to_thread(output.write_bytes, content)
        render.note(f"{len(content)} bytes in {output}")
    elif sys.stdout.isatty():
        render.text(content.decode(errors="replace"))
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
