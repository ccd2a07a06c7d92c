"""`mcpctl why`: what stands in an instance's way, and what would clear it."""

from collections.abc import Mapping
from typing import Any

import click

from trustfabric.cli import render
from trustfabric.cli.options import INSTANCE, SERVER, as_json
from trustfabric.cli.render import cell
from trustfabric.cli.session import Session

_COLUMNS = (
    ("about", "ABOUT"),
    ("code", "REASON"),
    ("blocks", "BLOCKS"),
    ("age", "FOR"),
    ("text", "WHAT"),
    ("source", "SOURCE"),
)
_STEPS = ((86_400, "d"), (3600, "h"), (60, "min"))


@click.command()
@click.argument("instance", type=INSTANCE)
@as_json
@click.pass_obj
async def why(session: Session, /, instance: int, *, as_json: bool) -> None:
    """Say why an instance is not trusted, not remediated or not placed."""
    told = await session.client.get(f"/api/trust/registry/{instance}/why")
    show(told, as_json=as_json)


@click.command("why")
@click.argument("server", type=SERVER)
@as_json
@click.pass_obj
async def why_server(session: Session, /, server: int, *, as_json: bool) -> None:
    """Say why a server's newest VM is not trusted, not remediated or not placed."""
    told = await session.client.get(f"/api/servers/{server}/why")
    show(told, as_json=as_json)


def show(told: Any, *, as_json: bool) -> None:
    """Print the reasons as a table, and below it what would clear them."""
    if as_json or not isinstance(told, Mapping):
        render.show_record(told, as_json=as_json)
        return
    where = f"instance {cell(told.get('vm_instance_id'))}"
    name = f"{cell(told.get('server_name'))} ({cell(told.get('server_id'))})"
    state = (
        f"{cell(told.get('lifecycle_state'))}, {cell(told.get('attestation_status'))}, "
        f"{cell(told.get('remediation_state'))}"
    )
    render.line(f"{where} of server {name}: {state}")
    trusted, placeable = bool(told.get("trusted")), bool(told.get("placeable"))
    render.line(
        f"{'trusted' if trusted else 'not trusted'}, "
        f"{'may be launched' if placeable else 'may not be launched'}"
    )
    reasons = [one for one in told.get("reasons") or [] if isinstance(one, Mapping)]
    if not reasons:
        return
    render.table(
        [{**one, "age": age(one.get("age_seconds"))} for one in reasons], _COLUMNS
    )
    steps = {
        cell(step.get("command")): None
        for one in reasons
        for step in one.get("next") or ()
    }
    if steps:
        render.line("what would clear it:")
        for step in steps:
            render.line(f"  {step}")


def age(seconds: object) -> str | None:
    """Tell an age roughly, as people do."""
    if not isinstance(seconds, int):
        return None
    for step, unit in _STEPS:
        if seconds >= step:
            return f"{seconds // step} {unit}"
    return f"{seconds} s"
