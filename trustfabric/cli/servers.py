"""`mcpctl servers`: tenants' workloads and the VMs that they run in."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from trustfabric.cli import render
from trustfabric.cli.options import OBJECT, POSITIVE, SERVER, as_json, given, limit
from trustfabric.cli.render import cell
from trustfabric.cli.session import Session
from trustfabric.cli.watch import Until
from trustfabric.cli.watch import watch as watch_stream
from trustfabric.cli.why import why_server

SERVERS = "/api/servers"

_COLUMNS = (
    ("id", "SERVER"),
    ("name", "NAME"),
    ("status", "STATUS"),
    ("owner_id", "OWNER"),
    ("server_type", "TYPE"),
    ("created_at", "CREATED"),
    ("updated_at", "UPDATED"),
)
_INSTANCE_COLUMNS = (
    ("id", "INSTANCE"),
    ("instance_id", "DOMAIN"),
    ("power_state", "POWER"),
    ("trust_lifecycle_state", "LIFECYCLE"),
    ("attestation_status", "STATUS"),
    ("stale", "STALE"),
    ("remediation_state", "REMEDIATION"),
    ("trust_remediation_attempts", "ATTEMPTS"),
    ("trust_freshness_deadline", "FRESH UNTIL"),
    ("trust_provenance_ref", "PROVENANCE"),
    ("version", "VERSION"),
)
_ACCELERATOR_COLUMNS = (
    ("accelerator_id", "ACCELERATOR"),
    ("instance_id", "DOMAIN"),
    ("accelerator_type", "KIND"),
    ("posture", "POSTURE"),
    ("fresh_until", "FRESH UNTIL"),
    ("attestation_id", "ATTESTATION"),
    ("policy_feedback", "FEEDBACK"),
)
_OUTCOME = (
    ("id", "server"),
    ("server_id", "server"),
    ("name", ""),
    ("status", ""),
    ("vm_instance_id", "instance"),
    ("challenged", "challenged"),
)
_TIERS = click.Choice(["standard", "sev", "sev-es", "sev-snp", "tdx"])


@click.group(help="Servers and their VMs.")
def servers() -> None:
    pass


servers.add_command(why_server)


@servers.command("list")
@limit
@as_json
@click.pass_obj
async def list_(session: Session, /, *, limit: int, as_json: bool) -> None:
    """List servers."""
    found = await session.client.rows(SERVERS, None, limit)
    render.show_rows(found.rows, _COLUMNS, as_json=as_json, more=found.more)


@servers.command()
@click.argument("server", type=SERVER)
@as_json
@click.pass_obj
async def get(session: Session, /, server: int, *, as_json: bool) -> None:
    """Show one server."""
    row = await session.client.get(f"{SERVERS}/{server}")
    render.show_record(row, as_json=as_json)


@servers.command()
@click.argument("name")
@click.option("--type", "server_type")
@click.option("--image")
@click.option("--memory-mib", type=POSITIVE)
@click.option("--vcpus", "vcpu_count", type=POSITIVE)
@click.option("--isolation-tier", type=_TIERS)
@click.option("--attestation", "kind", metavar="KIND", help="Kind of its evidence.")
@click.option(
    "--config",
    type=OBJECT,
    metavar="JSON|@FILE",
    help="The whole configuration; the other flags go on top of it.",
)
@click.option("--idempotency-key", help="The same key again: the same answer.")
@as_json
@click.pass_obj
async def create(  # noqa: PLR0913 (a flag each)
    session: Session,
    /,
    name: str,
    *,
    server_type: str | None,
    kind: str | None,
    config: dict[str, Any] | None,
    idempotency_key: str | None,
    as_json: bool,
    **vm: Any,
) -> None:
    """Add a server; it is not started yet."""
    settings = dict(config or {})
    _merge(settings, "vm", given(vm))
    _merge(settings, "attestation", given({"kind": kind}))
    body = given({"name": name, "server_type": server_type})
    if settings:
        body["config"] = settings
    headers = given({"Idempotency-Key": idempotency_key})
    row = await session.client.send("POST", SERVERS, body, headers=headers)
    render.show_record(row, as_json=as_json)


def _merge(settings: dict[str, Any], section: str, values: dict[str, Any]) -> None:
    found = settings.get(section, {})
    if not isinstance(found, dict):
        raise click.BadParameter(
            f"{section}: expected an object", param_hint="--config"
        )
    if values:
        settings[section] = found | values


async def _ask(
    session: Session, server: int, verb: str, body: object, *, as_json: bool
) -> None:
    path = f"{SERVERS}/{server}/{verb}"
    answer = await session.client.send("POST", path, body)
    render.show_outcome(answer, _OUTCOME, as_json=as_json)


@servers.command()
@click.argument("server", type=SERVER)
@as_json
@click.pass_obj
async def start(session: Session, /, server: int, *, as_json: bool) -> None:
    """Launch the server's VM, if the gate lets it pass."""
    await _ask(session, server, "start", None, as_json=as_json)


@servers.command()
@click.argument("server", type=SERVER)
@as_json
@click.pass_obj
async def stop(session: Session, /, server: int, *, as_json: bool) -> None:
    """Stop the server's VM."""
    await _ask(session, server, "stop", None, as_json=as_json)


@servers.command()
@click.argument("server", type=SERVER)
@as_json
@click.pass_obj
async def redeploy(session: Session, /, server: int, *, as_json: bool) -> None:
    """Replace the server's VM by a new instance."""
    await _ask(session, server, "redeploy", None, as_json=as_json)


@servers.command()
@click.argument("server", type=SERVER)
@click.option("--reason", required=True)
@as_json
@click.pass_obj
async def release(
    session: Session, /, server: int, *, reason: str, as_json: bool
) -> None:
    """Let a server launch whose last instance ended in quarantine."""
    await _ask(session, server, "release", {"reason": reason}, as_json=as_json)


@servers.command()
@click.argument("server", type=SERVER)
@as_json
@click.pass_obj
async def attest(session: Session, /, server: int, *, as_json: bool) -> None:
    """Challenge the server's VM now."""
    await _ask(session, server, "vm/attest", None, as_json=as_json)


@servers.command()
@click.argument("server", type=SERVER)
@as_json
@click.pass_obj
async def delete(session: Session, /, server: int, *, as_json: bool) -> None:
    """Remove a server and its VM."""
    await session.client.send("DELETE", f"{SERVERS}/{server}")
    render.show_record({"id": server, "deleted": True}, as_json=as_json)


@servers.command()
@click.argument("server", type=SERVER)
@as_json
@click.pass_obj
async def vm(session: Session, /, server: int, *, as_json: bool) -> None:
    """Show the server's instances with their trust."""
    view = await session.client.row(f"{SERVERS}/{server}/vm")
    if as_json:
        render.whole(view)
        return
    render.record({key: value for key, value in view.items() if key != "instances"})
    if view.get("instances"):
        render.table(view["instances"], _INSTANCE_COLUMNS)
    accelerators = [
        {"instance_id": instance["instance_id"], **one}
        for instance in view.get("instances") or ()
        for one in instance.get("accelerators") or ()
    ]
    if accelerators:
        render.table(accelerators, _ACCELERATOR_COLUMNS)


@servers.command()
@click.argument("server", type=SERVER)
@click.option("--tail", type=POSITIVE, help="Lines; absent: the runtime's default.")
@click.option("--follow", "-f", is_flag=True, help="Go on with live lines.")
@as_json
@click.pass_obj
async def logs(
    session: Session, /, server: int, *, tail: int | None, follow: bool, as_json: bool
) -> None:
    """Print the console of the server's VM."""
    path = f"{SERVERS}/{server}/vm/logs"
    content = await session.client.raw(path, {"tail": tail})
    position = _print_console(content, as_json=as_json)
    if follow:
        until = replace(Until.for_ever(as_json=as_json), last_event_id=position)
        await watch_stream(session, f"{path}/stream", {}, _console_event, until)


def _print_console(content: bytes, *, as_json: bool) -> str | None:
    """Print a tail that is JSON with lines in it, or text as it is.

    Return where live lines go on from.
    """
    try:
        document = json.loads(content) if content else None
    except ValueError:
        document = content.decode(errors="replace").splitlines()
    answer: Mapping[str, Any] = (
        document if isinstance(document, dict) else {"lines": document}
    )
    if as_json:
        render.whole(document)
    else:
        _print_tail(answer)
    position = answer.get("last_event_id")
    return position if isinstance(position, str) else None


def _print_tail(answer: Mapping[str, Any]) -> None:
    lines = answer.get("lines")
    for line in lines if isinstance(lines, list) else []:
        render.line(_console_event(line)[0])
    if not lines:
        why = answer.get("why_empty") or "nothing was written"
        render.note(f"the console is empty: {cell(why)}")


def _console_event(entry: object) -> list[str]:
    if isinstance(entry, Mapping):
        if "line" not in entry and "message" in entry:
            return [f"-- {cell(str(entry['message']))}"]
        entry = entry.get("line") or entry.get("data") or ""
    return [cell(str(entry))]
