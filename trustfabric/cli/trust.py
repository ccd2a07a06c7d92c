"""`mcpctl trust`: the registry of trust, its history, and changes by hand."""

from collections.abc import Mapping
from typing import Any

import click

from trustfabric.cli import render, versions
from trustfabric.cli.holds import hold, list_holds, release_hold, watch_holds
from trustfabric.cli.options import (
    INSTANCE,
    NOT_NEGATIVE,
    OBJECT,
    SERVER,
    as_json,
    given,
    limit,
)
from trustfabric.cli.render import cell
from trustfabric.cli.session import Session
from trustfabric.cli.watch import Until
from trustfabric.cli.watch import options as watch_options
from trustfabric.cli.watch import watch as watch_stream
from trustfabric.cli.why import why
from trustfabric.domain.trust import AttestationStatus, Lifecycle

REGISTRY = "/api/trust/registry"

_LIFECYCLE = click.Choice([state.value for state in Lifecycle], case_sensitive=False)
_STATUS = click.Choice([s.value for s in AttestationStatus], case_sensitive=False)
_COLUMNS = (
    ("vm_instance_id", "INSTANCE"),
    ("server_id", "SERVER"),
    ("server_name", "NAME"),
    ("lifecycle_state", "LIFECYCLE"),
    ("attestation_status", "STATUS"),
    ("stale", "STALE"),
    ("remediation_state", "REMEDIATION"),
    ("remediation_attempts", "ATTEMPTS"),
    ("freshness_deadline", "FRESH UNTIL"),
    ("provenance_ref", "PROVENANCE"),
    ("version", "VERSION"),
    ("updated_at", "UPDATED"),
)
_HISTORY_COLUMNS = (
    ("registry_version", "VERSION"),
    ("triggered_at", "AT"),
    ("previous_lifecycle_state", "FROM"),
    ("current_lifecycle_state", "TO"),
    ("previous_status", "STATUS FROM"),
    ("current_status", "STATUS TO"),
    ("transition_reason", "REASON"),
    ("remediation_state", "REMEDIATION"),
    ("remediation_attempts", "ATTEMPTS"),
    ("actor", "BY"),
    ("provenance_ref", "PROVENANCE"),
)
_OUTCOME = (
    ("vm_instance_id", "instance"),
    ("lifecycle_state", ""),
    ("attestation_status", ""),
    ("remediation_state", ""),
    ("version", "version"),
)


@click.group(help="The registry of trust.")
def trust() -> None:
    pass


def _filters(command: Any) -> Any:
    """Declare the flags by which registry and stream are narrowed."""
    for option in (
        click.option(
            "--stale/--fresh", "stale", default=None, help="By age of evidence."
        ),
        click.option("--status", "attestation_status", type=_STATUS),
        click.option("--lifecycle", "lifecycle_state", type=_LIFECYCLE),
        click.option("--server-id", type=SERVER),
    ):
        command = option(command)
    return command


@trust.command()
@_filters
@limit
@as_json
@click.pass_obj
async def registry(
    session: Session, /, *, limit: int, as_json: bool, **filters: Any
) -> None:
    """List the latest snapshot of every instance."""
    found = await session.client.rows(REGISTRY, filters, limit)
    render.show_rows(found.rows, _COLUMNS, as_json=as_json, more=found.more)


@trust.command()
@click.argument("instance", type=INSTANCE)
@as_json
@click.pass_obj
async def get(session: Session, /, instance: int, *, as_json: bool) -> None:
    """Show the latest snapshot of one instance."""
    row = await session.client.get(f"{REGISTRY}/{instance}")
    render.show_record(row, as_json=as_json)


@trust.command()
@click.argument("instance", type=INSTANCE)
@click.option("--limit", type=click.IntRange(min=1), default=25, show_default=True)
@as_json
@click.pass_obj
async def history(
    session: Session, /, instance: int, *, limit: int, as_json: bool
) -> None:
    """List what happened to one instance, newest first."""
    path = f"{REGISTRY}/{instance}/history"
    document: dict[str, Any] = {}
    events: list[Any] = []
    async for page in session.client.pages(path, {"limit": min(limit, 100)}):
        document = document or page
        events += page.get("events") or []
        if len(events) >= limit:
            break
    document = {**document, "events": events[:limit]}
    if as_json:
        render.whole(document)
        return
    where = f"instance {instance} ({cell(document.get('instance_id'))})"
    server = f"{cell(document.get('server_name'))} ({cell(document.get('server_id'))})"
    render.line(f"{where} of server {server}")
    render.table(document["events"], _HISTORY_COLUMNS)


@trust.command()
@click.argument("instance", type=INSTANCE)
@click.option("--status", "attestation_status", type=_STATUS)
@click.option("--lifecycle", "lifecycle_state", type=_LIFECYCLE)
@click.option("--remediation-state", metavar="TAG")
@click.option("--remediation-attempts", type=NOT_NEGATIVE)
@click.option("--freshness-deadline", metavar="RFC3339")
@click.option("--provenance-ref")
@click.option("--provenance", type=OBJECT, metavar="JSON|@FILE")
@click.option("--metadata", type=OBJECT, metavar="JSON|@FILE")
@click.option("--reason", "transition_reason")
@click.option("--override", is_flag=True, default=None, help="Role admin only.")
@click.option(
    "--expected-version",
    type=NOT_NEGATIVE,
    help="Refuse if the row is at another version. Absent: the row is read first.",
)
@as_json
@click.pass_obj
async def transition(
    session: Session,
    /,
    instance: int,
    *,
    expected_version: int | None,
    as_json: bool,
    **changes: Any,
) -> None:
    """Change the trust of an instance by hand.

    A status or lifecycle that is not given stays as it is.
    """
    body = given(changes)
    if not body:
        raise click.UsageError("nothing to change: give at least one flag")
    path = f"{REGISTRY}/{instance}"
    needed = ("attestation_status", "lifecycle_state")
    if expected_version is None:
        row = await versions.current(session.client, path)
        expected_version = int(row["version"])
    elif any(name not in body for name in needed):
        row = await session.client.row(path)
    else:
        row = body
    body = {name: row.get(name) for name in needed} | body
    body["expected_version"] = expected_version
    after = await session.client.send("POST", f"{path}/transition", body)
    render.show_outcome(after, _OUTCOME, as_json=as_json)


@trust.command()
@click.argument("instance", type=INSTANCE)
@click.option("--reason", required=True)
@click.option("--expected-version", type=NOT_NEGATIVE)
@as_json
@click.pass_obj
async def release(
    session: Session,
    /,
    instance: int,
    *,
    reason: str,
    expected_version: int | None,
    as_json: bool,
) -> None:
    """Let a quarantined instance be challenged again."""
    path = f"{REGISTRY}/{instance}"
    version = await versions.version(session.client, path, expected_version)
    body = {"reason": reason, "expected_version": version}
    after = await session.client.send("POST", f"{path}/release", body)
    render.show_outcome(after, _OUTCOME, as_json=as_json)


for _command in (why, list_holds, hold, release_hold, watch_holds):
    trust.add_command(_command)


@trust.command()
@_filters
@click.option("--snapshot", is_flag=True, default=None, help="Begin with what is.")
@click.option("--include-provenance", is_flag=True)
@watch_options
@click.pass_obj
async def watch(session: Session, /, *, include_provenance: bool, **flags: Any) -> None:
    """Follow changes of trust as they are committed."""
    until, params = Until.taken_from(flags)
    if include_provenance:
        params["include"] = "provenance"
    await watch_stream(session, f"{REGISTRY}/stream", params, describe, until)


def describe(event: Mapping[str, Any]) -> list[str]:
    """One change of trust on one line."""
    was = event.get("previous_lifecycle_state")
    now = cell(event.get("lifecycle_state"))
    move = (
        now if was in (None, event.get("lifecycle_state")) else f"{cell(was)} → {now}"
    )
    parts = [
        cell(event.get("triggered_at") or event.get("updated_at")),
        f"instance {cell(event.get('vm_instance_id'))}",
        cell(event.get("server_name")),
        f"v{cell(event.get('version'))}",
        move,
        cell(event.get("attestation_status")),
        cell(event.get("remediation_state")),
    ]
    if event.get("transition_reason"):
        parts.append(f"({cell(event['transition_reason'])})")
    return ["  ".join(parts)]
