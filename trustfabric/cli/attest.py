"""`mcpctl attest`: verdicts, their evidence, and the agents that push it."""

import asyncio
from pathlib import Path
from typing import Any

import click

from trustfabric.cli import render
from trustfabric.cli.options import (
    INSTANCE,
    OBJECT,
    POSITIVE,
    as_json,
    given,
    limit,
)
from trustfabric.cli.session import Session

ATTESTATION = "/api/attestation"

_VERDICTS = (
    ("id", "ID"),
    ("runtime_vm_instance_id", "INSTANCE"),
    ("attestation_kind", "KIND"),
    ("verification_status", "STATUS"),
    ("code", "CODE"),
    ("policy_id", "POLICY"),
    ("policy_version", "VERSION"),
    ("freshness_expires_at", "FRESH UNTIL"),
    ("verified_at", "VERIFIED"),
)
_TOKENS = (
    ("id", "ID"),
    ("runtime_vm_instance_id", "INSTANCE"),
    ("boot_id", "BOOT"),
    ("issued_by", "BY"),
    ("expires_at", "EXPIRES"),
    ("revoked_at", "REVOKED"),
)

# --- verdicts -----------------------------------------------------------------------


@click.command("list")
@click.option("--instance-id", "runtime_vm_instance_id", type=INSTANCE)
@click.option(
    "--status", type=click.Choice(["pending", "trusted", "untrusted", "unknown"])
)
@limit
@as_json
@click.pass_obj
async def list_(session: Session, /, *, limit: int, as_json: bool, **only: Any) -> None:
    """List recorded verdicts, newest first."""
    found = await session.client.rows(ATTESTATION, given(only), limit)
    render.show_rows(found.rows, _VERDICTS, as_json=as_json, more=found.more)


@click.command()
@click.argument("attestation", type=POSITIVE)
@as_json
@click.pass_obj
async def get(session: Session, /, attestation: int, *, as_json: bool) -> None:
    """Show one verdict with its claims."""
    row = await session.client.get(f"{ATTESTATION}/{attestation}")
    render.show_record(row, as_json=as_json)


@click.command()
@click.argument("attestation", type=POSITIVE)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, writable=True))
@click.option("--raw", is_flag=True, help="The evidence alone, as it came.")
@click.pass_obj
async def download(
    session: Session, /, attestation: int, file: Path, *, raw: bool
) -> None:
    """Keep a verdict with all that it rests on, for `attest verify` at any time."""
    part = "evidence" if raw else "case"
    data = await session.client.raw(f"{ATTESTATION}/{attestation}/{part}")
    await asyncio.to_thread(file.write_bytes, data)
    render.note(f"{len(data)} bytes in {file}")


# --- agents -------------------------------------------------------------------------


@click.group()
def tokens() -> None:
    """Tokens of guests' agents, for `trustfabric-agent push`."""


@tokens.command("issue")
@click.argument("instance", type=INSTANCE)
@click.option("--ttl", "ttl_seconds", type=POSITIVE, metavar="S")
@click.option(
    "--any-boot", is_flag=True, help="Good for later boots of the instance too."
)
@as_json
@click.pass_obj
async def issue_token(
    session: Session, /, instance: int, *, any_boot: bool, as_json: bool, **more: Any
) -> None:
    """Issue a token for an instance; it is shown this once."""
    body = {"runtime_vm_instance_id": instance, **given(more)}
    if any_boot:
        body["boot"] = "any"
    row = await session.client.send("POST", f"{ATTESTATION}/tokens", body)
    if as_json:
        render.whole(row)
    else:
        render.line(str(row["token"]))


@tokens.command("list")
@click.option("--instance-id", "runtime_vm_instance_id", type=INSTANCE)
@limit
@as_json
@click.pass_obj
async def list_tokens(
    session: Session, /, *, limit: int, as_json: bool, **only: Any
) -> None:
    """List the tokens that were issued, without their secrets."""
    found = await session.client.rows(f"{ATTESTATION}/tokens", given(only), limit)
    render.show_rows(found.rows, _TOKENS, as_json=as_json, more=found.more)


@tokens.command("revoke")
@click.argument("token", type=POSITIVE)
@as_json
@click.pass_obj
async def revoke_token(session: Session, /, token: int, *, as_json: bool) -> None:
    """Revoke a token, by its id."""
    await session.client.send("DELETE", f"{ATTESTATION}/tokens/{token}")
    render.show_record({"id": token, "revoked": True}, as_json=as_json)


@click.command()
@click.argument("instance", type=INSTANCE)
@click.argument("key", type=OBJECT, metavar="JSON|@FILE")
@click.option("--endorser", help="Who vouches for the key's TPM; role admin only.")
@as_json
@click.pass_obj
async def enroll(
    session: Session, /, instance: int, key: Any, *, as_json: bool, **more: Any
) -> None:
    """Pin a TPM's key to an instance, as `trustfabric-agent enroll` prints it."""
    if not isinstance(key.get("tpmt_public"), str):
        raise click.BadParameter("no tpmt_public in it", param_hint="KEY")
    body = {
        "runtime_vm_instance_id": instance,
        "tpmt_public": key["tpmt_public"],
        **given(more),
    }
    row = await session.client.send("POST", f"{ATTESTATION}/keys", body)
    render.show_record(row, as_json=as_json)


# --- verification -------------------------------------------------------------------


async def stored_case(session: Session, attestation: int) -> bytes:
    """Read all that a recorded verdict rests on."""
    return await session.client.raw(f"{ATTESTATION}/{attestation}/case")
