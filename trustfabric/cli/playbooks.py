"""`mcpctl remediation playbooks`: what may run."""

from typing import Any

import click

from trustfabric.cli import render, versions
from trustfabric.cli.options import (
    NOT_NEGATIVE,
    OBJECT,
    PLAYBOOK,
    POSITIVE,
    as_json,
    given,
    limit,
)
from trustfabric.cli.session import Session

PLAYBOOKS = "/api/trust/remediation/playbooks"

_COLUMNS = (
    ("id", "ID"),
    ("playbook_key", "KEY"),
    ("display_name", "NAME"),
    ("executor_type", "EXECUTOR"),
    ("owner_id", "OWNER"),
    ("approval_required", "APPROVAL"),
    ("sla_duration_seconds", "SLA S"),
    ("version", "VERSION"),
    ("updated_at", "UPDATED"),
)


@click.group(help="What may run.")
def playbooks() -> None:
    pass


def _fields(command: Any) -> Any:
    """Declare the flags that create and update have in common."""
    for option in (
        click.option("--metadata", type=OBJECT, metavar="JSON|@FILE"),
        click.option(
            "--approval-required/--no-approval", "approval_required", default=None
        ),
        click.option("--description"),
    ):
        command = option(command)
    return command


_EXECUTOR = click.Choice(["shell", "ansible", "cloud_api"])
_expected_version = click.option(
    "--expected-version",
    "--version",
    "expected_version",
    type=NOT_NEGATIVE,
    help="Refuse if it is at another version. Absent: it is read first.",
)


@playbooks.command("list")
@limit
@as_json
@click.pass_obj
async def list_(session: Session, /, *, limit: int, as_json: bool) -> None:
    """List the playbooks you may use."""
    found = await session.client.rows(PLAYBOOKS, None, limit)
    render.show_rows(found.rows, _COLUMNS, as_json=as_json, more=found.more)


@playbooks.command()
@click.argument("playbook", type=PLAYBOOK)
@as_json
@click.pass_obj
async def get(session: Session, /, playbook: int, *, as_json: bool) -> None:
    """Show one playbook."""
    row = await session.client.get(f"{PLAYBOOKS}/{playbook}")
    render.show_record(row, as_json=as_json)


@playbooks.command()
@click.argument("playbook_key", metavar="KEY")
@click.option("--name", "display_name", help="What people read. Absent: the key.")
@click.option("--executor", "executor_type", type=_EXECUTOR, required=True)
@click.option("--sla-seconds", "sla_duration_seconds", type=POSITIVE)
@click.option("--owner", "owner_id", type=POSITIVE, help="Role admin only.")
@click.option("--shared", is_flag=True, default=None, help="Role admin only.")
@_fields
@as_json
@click.pass_obj
async def create(
    session: Session, /, playbook_key: str, *, as_json: bool, **fields: Any
) -> None:
    """Add a playbook."""
    named = {"playbook_key": playbook_key, "display_name": playbook_key}
    body = named | given(fields)
    row = await session.client.send("POST", PLAYBOOKS, body)
    render.show_record(row, as_json=as_json)


@playbooks.command()
@click.argument("playbook", type=PLAYBOOK)
@click.option("--name", "display_name")
@click.option("--executor", "executor_type", type=_EXECUTOR)
@click.option("--sla-seconds", "sla_duration_seconds", type=POSITIVE)
@click.option("--unset-sla", is_flag=True, help="No deadline any more.")
@click.option("--unset-description", is_flag=True)
@_fields
@_expected_version
@as_json
@click.pass_obj
async def update(
    session: Session,
    /,
    playbook: int,
    *,
    unset_sla: bool,
    unset_description: bool,
    expected_version: int | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Change what is given of a playbook; the rest stays."""
    body = given(fields)
    body |= {"sla_duration_seconds": None} if unset_sla else {}
    body |= {"description": None} if unset_description else {}
    if not body:
        raise click.UsageError("nothing to change: give at least one flag")
    path = f"{PLAYBOOKS}/{playbook}"
    version = await versions.version(session.client, path, expected_version)
    body["expected_version"] = version
    row = await session.client.send("PATCH", path, body)
    render.show_record(row, as_json=as_json)


@playbooks.command()
@click.argument("playbook", type=PLAYBOOK)
@_expected_version
@as_json
@click.pass_obj
async def delete(
    session: Session,
    /,
    playbook: int,
    *,
    expected_version: int | None,
    as_json: bool,
) -> None:
    """Remove a playbook that no active run uses."""
    path = f"{PLAYBOOKS}/{playbook}"
    version = await versions.version(session.client, path, expected_version)
    params = {"expected_version": version}
    await session.client.send("DELETE", path, params=params)
    render.show_record({"id": playbook, "deleted": True}, as_json=as_json)
