"""The command table of `mcpctl`, its global options, and what its exit codes mean."""

import inspect
import os
import sys
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from trustfabric.cli.errors import RefusedError, UnreachableError
from trustfabric.cli.lazy import Lazy, LazyGroup
from trustfabric.cli.render import note
from trustfabric.cli.session import Connection, Session, fault_in_host
from trustfabric.cli.terminal import escape
from trustfabric.errors import FabricError, InvalidError

DONE, REFUSED, USAGE, UNREACHABLE, NOT_ALLOWED, VERSION_CONFLICT = range(6)
INTERRUPTED = 130

GROUPS: Mapping[str, Lazy] = {
    "trust": Lazy("trustfabric.cli.trust", "trust", "The registry of trust."),
    "remediation": Lazy(
        "trustfabric.cli.remediation", "remediation", "Playbooks and their runs."
    ),
    "evaluations": Lazy(
        "trustfabric.cli.evaluations", "evaluations", "Certifications of servers."
    ),
    "servers": Lazy("trustfabric.cli.servers", "servers", "Servers and their VMs."),
    "system": Lazy("trustfabric.cli.system", "system", "The runtime's own actors."),
    "why": Lazy(
        "trustfabric.cli.why",
        "why",
        "Say why an instance is not trusted, not remediated or not placed.",
    ),
    "shell": Lazy(
        "trustfabric.cli.shell", "shell", "All of this interactively, with a live line."
    ),
}


def command_table() -> click.Group:
    """Make the root command over the groups that speak HTTP."""
    return LazyGroup(
        "mcpctl",
        table=GROUPS,
        callback=_root,
        params=_root_options(),
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Operate a trustfabric runtime.\n\nExit codes: 0 done, 1 refused or"
        " failed, 2 usage, 3 cannot reach the host, 4 not allowed, 5 version conflict.",
    )


def _root_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--host"],
            envvar="MCP_HOST_URL",
            show_envvar=True,
            default="http://localhost:3000",
            show_default=True,
            metavar="URL",
            help="Base URL of the runtime.",
        ),
        click.Option(
            ["--token"],
            envvar="MCP_HOST_TOKEN",
            show_envvar=True,
            metavar="T",
            help="Bearer token; others on this machine can see it in a command line.",
        ),
        click.Option(
            ["--token-file"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Read the bearer token from this file instead.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_print_version,
            help="Print the version and exit.",
        ),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(min=0, min_open=True),
            default=30.0,
            show_default=True,
            metavar="S",
            help="Seconds to wait for an answer.",
        ),
    ]


def _print_version(ctx: click.Context, _param: click.Parameter, on: bool) -> None:  # noqa: FBT001 (click's signature)
    if not on or ctx.resilient_parsing:
        return
    from importlib.metadata import version  # noqa: PLC0415 (--help does without)

    click.echo(f"mcpctl {version('trustfabric')}")
    ctx.exit()


@click.pass_context
def _root(
    ctx: click.Context,
    host: str,
    token: str | None,
    token_file: Path | None,
    timeout: float,
) -> None:
    fault = fault_in_host(host)
    if fault is not None:
        raise click.BadParameter(fault, param_hint="--host")
    if token_file is not None:
        token = token_file.read_text(encoding="utf-8")
    token = (token or "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise click.BadParameter("not a bearer token", param_hint="--token")
    session = ctx.ensure_object(Session)
    session.connection = Connection(host, timeout, token or None)


def run(root: click.Group, args: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    session = Session()
    try:
        outcome = call(root, args, session)
        if inspect.iscoroutine(outcome):
            import asyncio  # noqa: PLC0415 (--help does without)

            outcome = asyncio.run(finish(outcome, session))
    except KeyboardInterrupt:
        return DONE if session.endless else INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except (click.ClickException, click.Abort, FabricError) as error:
        return report(error)
    return outcome if isinstance(outcome, int) else DONE


def call(root: click.Group, args: Sequence[str], session: Session) -> Any:
    """Parse and start: an exit code, or a coroutine that still has to be awaited."""
    return root.main(list(args), prog_name="mcpctl", standalone_mode=False, obj=session)


async def finish(command: Awaitable[Any], session: Session) -> Any:
    """Await what `call` gave back, and close what it opened."""
    try:
        return await command
    finally:
        await session.close()


def report(error: Exception) -> int:
    """Say on stderr what went wrong; the exit code that stands for it."""
    match error:
        case click.Abort():
            return INTERRUPTED
        case click.ClickException():
            error.show()
            return error.exit_code
        case InvalidError():
            for fault in str(error).splitlines():
                note(escape(fault))
            return USAGE
        case UnreachableError():
            note(f"mcpctl: {escape(str(error))}")
            return UNREACHABLE
        case RefusedError():
            return _refused(error)
        case _:
            note(f"mcpctl: {escape(str(error))}")
            return REFUSED


def _refused(error: RefusedError) -> int:
    note(f"mcpctl: {escape(str(error))} ({_what(error)})")
    if error.without_token:
        note("  no token was sent: set MCP_HOST_TOKEN, or give --token-file")
    for text in _listed(error.facts.get("notes")):
        note(f"  {escape(text)}")
    if error.slug in ("version-conflict", "version-required"):
        expected = error.facts.get("expected_version")
        current = error.facts.get("current_version")
        found = f"  expected version {expected}, current version {current}"
        note(escape(found))
        return VERSION_CONFLICT
    return NOT_ALLOWED if error.status in (401, 403) else REFUSED


def _what(error: RefusedError) -> str:
    """Name the status, with the problem's name where it has one."""
    named = error.slug not in ("about:blank", "blank", "")
    return f"{error.status} {escape(error.slug)}" if named else f"HTTP {error.status}"


def _listed(notes: object) -> list[str]:
    return [str(note) for note in notes] if isinstance(notes, list) else []
