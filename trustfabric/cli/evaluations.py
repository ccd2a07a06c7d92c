"""`mcpctl evaluations`: certifications of servers and when they are refreshed."""

from typing import Any

import click

from trustfabric.cli import render
from trustfabric.cli.options import (
    EVALUATION,
    POSITIVE,
    JsonValue,
    as_json,
    given,
    limit,
)
from trustfabric.cli.session import Session

EVALUATIONS = "/api/evaluations"

_COLUMNS = (
    ("id", "ID"),
    ("artifact_id", "ARTIFACT"),
    ("server_id", "SERVER"),
    ("tier", "TIER"),
    ("status", "STATUS"),
    ("next_refresh_at", "NEXT REFRESH"),
    ("last_attestation_status", "ATTESTATION"),
    ("lifecycle_state", "LIFECYCLE"),
    ("remediation_attempts", "ATTEMPTS"),
    ("freshness_deadline", "FRESH UNTIL"),
    ("fallback_launched_at", "FALLBACK"),
    ("provenance_ref", "PROVENANCE"),
)
_JSON = JsonValue(None)


@click.group(help="Certifications of servers.")
def evaluations() -> None:
    pass


@evaluations.command("list")
@limit
@as_json
@click.pass_obj
async def list_(session: Session, /, *, limit: int, as_json: bool) -> None:
    """List certifications."""
    found = await session.client.rows(EVALUATIONS, None, limit)
    render.show_rows(found.rows, _COLUMNS, as_json=as_json, more=found.more)


@evaluations.command()
@click.argument("evaluation", type=EVALUATION)
@as_json
@click.pass_obj
async def status(session: Session, /, evaluation: int, *, as_json: bool) -> None:
    """Show where one certification stands."""
    row = await session.client.get(f"{EVALUATIONS}/{evaluation}/status")
    render.show_record(row, as_json=as_json)


@evaluations.command()
@click.argument("evaluation", type=EVALUATION)
@as_json
@click.pass_obj
async def lineage(session: Session, /, evaluation: int, *, as_json: bool) -> None:
    """Show where its evidence comes from."""
    row = await session.client.get(f"{EVALUATIONS}/{evaluation}/lineage")
    render.show_record(row, as_json=as_json)


@evaluations.command()
@click.argument("evaluation", type=EVALUATION)
@as_json
@click.pass_obj
async def retry(session: Session, /, evaluation: int, *, as_json: bool) -> None:
    """Refresh one certification now."""
    row = await session.client.send("POST", f"{EVALUATIONS}/{evaluation}/retry")
    render.show_record(row, as_json=as_json)


@evaluations.command()
@click.argument("evaluation", type=EVALUATION)
@click.option("--cadence-seconds", "refresh_cadence_seconds", type=POSITIVE)
@click.option("--unset-cadence", "unset_refresh_cadence_seconds", is_flag=True)
@click.option("--next-refresh", "next_refresh_at", metavar="RFC3339")
@click.option("--unset-next-refresh", "unset_next_refresh_at", is_flag=True)
@click.option("--note", "governance_notes")
@click.option("--unset-note", "unset_governance_notes", is_flag=True)
@click.option("--source", "evidence_source", type=_JSON, metavar="JSON|@FILE")
@click.option("--unset-source", "unset_evidence_source", is_flag=True)
@click.option("--lineage", "evidence_lineage", type=_JSON, metavar="JSON|@FILE")
@click.option("--unset-lineage", "unset_evidence_lineage", is_flag=True)
@click.option("--expected-version", type=click.IntRange(min=0))
@as_json
@click.pass_obj
async def plan(
    session: Session,
    /,
    evaluation: int,
    *,
    expected_version: int | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Change when and from what a certification is refreshed."""
    body = planned(flags)
    body |= given({"expected_version": expected_version})
    row = await session.client.send("PATCH", f"{EVALUATIONS}/{evaluation}/status", body)
    render.show_record(row, as_json=as_json)


def planned(flags: dict[str, Any]) -> dict[str, Any]:
    """Give the fields to set, and null for each that its `--unset-…` flag clears."""
    cleared = {
        name[6:]: None for name, on in flags.items() if name[:6] == "unset_" and on
    }
    set_ = given({k: v for k, v in flags.items() if not k.startswith("unset_")})
    both = sorted(cleared.keys() & set_.keys())
    if both:
        raise click.UsageError(f"set and unset at once: {', '.join(both)}")
    if not cleared and not set_:
        raise click.UsageError("nothing to change: give at least one flag")
    return set_ | cleared
