"""Holds, incidents and the breaker: who or what keeps automation away."""

from collections.abc import Mapping
from typing import Any

import click

from trustfabric.cli import render
from trustfabric.cli.options import INSTANCE, POSITIVE, as_json, given, limit
from trustfabric.cli.render import cell
from trustfabric.cli.session import Session
from trustfabric.cli.watch import Until
from trustfabric.cli.watch import options as watch_options
from trustfabric.cli.watch import watch as watch_stream
from trustfabric.domain.holds import HoldScope, HoldState

HOLDS = "/api/trust/holds"
INCIDENTS = "/api/trust/incidents"
BREAKER = "/api/trust/remediation/breaker"

_SCOPE = click.Choice([scope.value for scope in HoldScope], case_sensitive=False)
_STATE = click.Choice(
    [*(state.value for state in HoldState), "any"], case_sensitive=False
)
_HOLD_COLUMNS = (
    ("id", "HOLD"),
    ("scope", "SCOPE"),
    ("runtime_vm_instance_id", "INSTANCE"),
    ("owner_id", "OWNER"),
    ("kind", "BY WHAT"),
    ("by", "BY"),
    ("state", "STATE"),
    ("created_at", "SINCE"),
    ("until", "UNTIL"),
    ("reason", "REASON"),
    ("released_by", "RELEASED BY"),
)
_INCIDENT_COLUMNS = (
    ("id", "INCIDENT"),
    ("scope", "SCOPE"),
    ("owner_id", "OWNER"),
    ("state", "STATE"),
    ("opened_at", "OPENED"),
    ("quarantined", "FALLEN"),
    ("living", "LIVING"),
    ("summary", "WHAT"),
    ("released_by", "RELEASED BY"),
)
_COMMON_COLUMNS = (
    ("trait", "IN COMMON"),
    ("value", "VALUE"),
    ("affected", "AFFECTED"),
    ("affected_total", "OF"),
    ("rest", "OTHERS"),
    ("rest_total", "OF"),
)
_OUTCOME = (
    ("id", "hold"),
    ("scope", ""),
    ("state", ""),
    ("until", "until"),
)


@click.command("holds")
@click.option("--state", type=_STATE, default="in-force", show_default=True)
@click.option("--scope", type=_SCOPE)
@click.option("--instance-id", "runtime_vm_instance_id", type=INSTANCE)
@limit
@as_json
@click.pass_obj
async def list_holds(
    session: Session, /, *, state: str, limit: int, as_json: bool, **filters: Any
) -> None:
    """List holds, people's and the breaker's."""
    wanted = {**filters, "state": None if state == "any" else state}
    found = await session.client.rows(HOLDS, wanted, limit)
    render.show_rows(found.rows, _HOLD_COLUMNS, as_json=as_json, more=found.more)


@click.command()
@click.argument("instance", type=INSTANCE, required=False)
@click.option("--owner", "owner_id", type=POSITIVE, help="All that this user owns.")
@click.option("--mine", is_flag=True, help="All that you own.")
@click.option("--all", "everything", is_flag=True, help="The whole fleet (role admin).")
@click.option("--reason", required=True)
@click.option("--until", metavar="RFC3339", help="When it ends of itself.")
@click.option(
    "--for",
    "for_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="The same, from now on. Neither: 24 hours.",
)
@as_json
@click.pass_obj
async def hold(
    session: Session, /, *, reason: str, as_json: bool, **flags: Any
) -> None:
    """Keep launches and runs away from an instance, an owner's, or everything."""
    if flags["until"] is not None and flags["for_seconds"] is not None:
        raise click.UsageError("--until or --for, not both")
    body = given(
        {
            **_target(flags),
            "reason": reason,
            "until": flags["until"],
            "for_seconds": flags["for_seconds"],
        }
    )
    after = await session.client.send("POST", HOLDS, body)
    render.show_outcome(after, _OUTCOME, as_json=as_json)


def _target(flags: Mapping[str, Any]) -> dict[str, Any]:
    names = ("instance", "owner_id", "mine", "everything")
    match [name for name in names if flags[name]]:
        case ["instance"]:
            scope = HoldScope.INSTANCE
        case ["owner_id"] | ["mine"]:
            scope = HoldScope.OWNER
        case ["everything"]:
            scope = HoldScope.ALL
        case _:
            raise click.UsageError("hold what? an INSTANCE, --owner, --mine or --all")
    return {
        "scope": scope.value,
        "runtime_vm_instance_id": flags["instance"],
        "owner_id": flags["owner_id"],
    }


@click.command("release-hold")
@click.argument("hold", type=POSITIVE)
@click.option("--reason")
@as_json
@click.pass_obj
async def release_hold(
    session: Session, /, hold: int, *, reason: str | None, as_json: bool
) -> None:
    """End a hold before its time."""
    path = f"{HOLDS}/{hold}"
    await session.client.send("DELETE", path, params=given({"reason": reason}))
    after = await session.client.get(path)
    render.show_outcome(after, _OUTCOME, as_json=as_json)


@click.command("watch-holds")
@watch_options
@click.pass_obj
async def watch_holds(session: Session, /, **flags: Any) -> None:
    """Follow holds and breakers as they open and end."""
    until, params = Until.taken_from(flags)
    await watch_stream(session, f"{HOLDS}/stream", params, describe, until)


@click.command()
@click.option("--open/--released", "open", default=None, help="Only those.")
@limit
@as_json
@click.pass_obj
async def incidents(
    session: Session, /, *, limit: int, as_json: bool, **filters: Any
) -> None:
    """List the incidents that the breaker raised, newest first."""
    found = await session.client.rows(INCIDENTS, filters, limit)
    render.show_rows(found.rows, _INCIDENT_COLUMNS, as_json=as_json, more=found.more)


@click.command()
@as_json
@click.pass_obj
async def breaker(session: Session, /, *, as_json: bool) -> None:
    """Show whether automatic runs are held, and what the affected have in common."""
    told = await session.client.get(BREAKER)
    if as_json:
        render.whole(told)
        return
    limits = told.get("limits") or {}
    render.line(
        f"breaker {cell(told.get('state'))}: {cell(told.get('quarantined_in_window'))} "
        f"quarantined within {cell(limits.get('window_seconds'))} s; it opens from "
        f"{cell(limits.get('minimum'))} and above {cell(limits.get('percent'))} %"
    )
    for incident in told.get("incidents") or ():
        show_incident(incident)


@click.command("release-breaker")
@click.option("--reason", required=True)
@click.option("--incident", "incident_id", type=POSITIVE, help="Absent: all open ones.")
@click.option("--owner", "owner_id", type=POSITIVE, help="Only this owner's.")
@as_json
@click.pass_obj
async def release_breaker(session: Session, /, *, as_json: bool, **fields: Any) -> None:
    """Let automatic runs go on (role admin); all that is due is decided afresh."""
    after = await session.client.send("POST", f"{BREAKER}/release", given(fields))
    if as_json:
        render.whole(after)
        return
    released = after.get("released") or []
    ids = ", ".join(cell(one.get("id")) for one in released)
    render.line(f"released: {ids}" if released else "nothing was open")


def show_incident(incident: Mapping[str, Any]) -> None:
    """Print one incident and what its VMs have in common."""
    render.line(
        f"incident {cell(incident.get('id'))}, open since "
        f"{cell(incident.get('opened_at'))}: {cell(incident.get('summary'))}"
    )
    common = incident.get("common") or []
    if common:
        render.table(common, _COMMON_COLUMNS)


def describe(event: Mapping[str, Any]) -> list[str]:
    """One event of a hold on one line."""
    parts = [
        cell(event.get("at")),
        cell(event.get("event")),
        f"hold {cell(event.get('hold_id'))}",
        cell(event.get("scope")),
        f"by {cell(event.get('actor'))}",
        cell(event.get("message")),
    ]
    return ["  ".join(parts)]
