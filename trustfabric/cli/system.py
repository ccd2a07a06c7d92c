"""`mcpctl system`: the runtime's own processes."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from trustfabric.cli import render
from trustfabric.cli.options import ACTOR, as_json
from trustfabric.cli.session import Session

ACTORS = "/api/system/actors"

_COLUMNS = (
    ("path", "ACTOR"),
    ("kind", "KIND"),
    ("state", "STATE"),
    ("epoch", "EPOCH"),
    ("restart_count", "RESTARTS"),
    ("mailbox_depth", "MAILBOX"),
    ("current", "HANDLES"),
    ("age_seconds", "FOR S"),
    ("waiting_on", "WAITS ON"),
)


@click.group(help="The runtime's own actors.")
def system() -> None:
    pass


@system.command()
@as_json
@click.pass_obj
async def actors(session: Session, /, *, as_json: bool) -> None:
    """List the supervision tree as it is now."""
    document = await session.client.get(ACTORS)
    if as_json:
        render.whole(document)
    else:
        render.table(flat(document), _COLUMNS)


@system.command()
@click.argument("path", type=ACTOR)
@as_json
@click.pass_obj
async def kill(session: Session, /, path: str, *, as_json: bool) -> None:
    """Kill an actor to see it come back (role admin, CHAOS_ENABLED=true)."""
    at = f"{ACTORS}/{quote(path, safe='/:')}/kill"
    answer = await session.client.send("POST", at)
    render.show_record(answer, as_json=as_json)


def flat(document: object) -> list[Mapping[str, Any]]:
    """List the actors, whether they came as a list or as a tree."""
    if isinstance(document, Mapping):
        below = document.get("actors") or document.get("children") or []
        own = [document] if "path" in document else []
        return [*own, *flat(below)]
    if isinstance(document, list):
        return [actor for item in document for actor in flat(item)]
    return []
