"""`mcpctl`: the operator's groups, and the commands that work on this machine.

What a local command needs is imported when it runs: `--help` does without.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trustfabric.cli import render
from trustfabric.cli.ear import ear
from trustfabric.cli.lazy import Lazy, LazyGroup
from trustfabric.cli.main import command_table, run
from trustfabric.cli.options import as_json
from trustfabric.cli.session import Session
from trustfabric.cli.terminal import escape

if TYPE_CHECKING:
    from trustfabric.config import Settings

_DAY_S = 86_400

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where state is kept; wins over TRUSTFABRIC_DATA_DIR.",
)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit with its code."""
    root = command_table()
    for command in (serve, demo, token, scenarios, attest):
        root.add_command(command)
    sys.exit(run(root, sys.argv[1:] if args is None else args))


@click.command()
@data_dir_option
@click.option("--demo", "with_demo", is_flag=True, help="As `mcpctl demo`.")
@click.pass_obj
def serve(session: Session, /, data_dir: Path | None, *, with_demo: bool) -> int:
    """Run the runtime in the foreground; SIGTERM stops it."""
    _own_terminal(session)
    if with_demo:
        return _demo(data_dir)
    settings = _settings(data_dir)
    from trustfabric.app import serve as run_runtime  # noqa: PLC0415

    return run_runtime(settings)


@click.command()
@data_dir_option
@click.option("--qemu", is_flag=True, help="Its VMs are real guests, under QEMU.")
@click.pass_obj
def demo(session: Session, /, data_dir: Path | None, *, qemu: bool) -> int:
    """Run it with a small fleet that lives the story, again and again."""
    _own_terminal(session)
    return _demo(data_dir, qemu=qemu)


def _demo(data_dir: Path | None, *, qemu: bool = False) -> int:
    from trustfabric.scenarios import demo as story  # noqa: PLC0415

    return story.main(data_dir, qemu=qemu)


@click.command()
@click.option("--sub", type=click.IntRange(min=1), required=True, help="User id.")
@click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "user", "admin", "metrics"]),
    required=True,
)
@click.option(
    "--ttl",
    "ttl_s",
    type=click.IntRange(min=1),
    default=_DAY_S,
    show_default=True,
    metavar="S",
    help="Seconds until it expires.",
)
@data_dir_option
def token(sub: int, role: str, ttl_s: int, data_dir: Path | None) -> None:
    """Print a bearer token signed with the configured secret."""
    settings = _settings(data_dir)
    from trustfabric.keys import issue_token  # noqa: PLC0415

    click.echo(issue_token(settings, sub, role, ttl_s))


@click.group()
def scenarios() -> None:
    """Break it on purpose, and see it recover."""


directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Scenario documents; wins over REM_FABRIC_SCENARIO_DIR.",
)


@scenarios.command("list")
@directory_option
@as_json
def list_scenarios(directory: Path | None, *, as_json: bool) -> None:
    """List the scenarios, once all of their documents are valid."""
    from trustfabric.scenarios import manifest as documents  # noqa: PLC0415

    found = documents.load(_scenario_dir(directory))
    rows = [
        {
            "name": one.name,
            "kind": one.kind,
            "tag": one.tag,
            "tenants": list(one.tenants),
            "document": source.path.name,
        }
        for source in found.sources
        for one in source.document.scenarios
    ]
    columns = [(name, name.upper()) for name in rows[0]]
    render.show_rows(rows, columns, as_json=as_json)


@scenarios.command("manifest")
@directory_option
def print_manifest(directory: Path | None) -> None:
    """Print what the documents are, with their digests, as JSON."""
    from trustfabric.scenarios import manifest as documents  # noqa: PLC0415

    found = documents.load(_scenario_dir(directory))
    sources = [
        {
            "path": str(source.path.relative_to(found.root)),
            "sha256": source.sha256,
            "format": source.format,
            "description": source.document.description,
            "scenarios": [
                {
                    "name": one.name,
                    "tag": one.tag,
                    "kind": one.kind,
                    "tenants": list(one.tenants),
                }
                for one in source.document.scenarios
            ],
        }
        for source in found.sources
    ]
    render.whole({"scenario_root": str(found.root), "scenarios": sources})


@scenarios.command("run")
@directory_option
@click.argument("names", nargs=-1)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where manifest and transcript are written.",
)
@click.pass_obj
def run_scenarios(
    session: Session,
    /,
    directory: Path | None,
    names: tuple[str, ...],
    output: Path | None,
) -> int:
    """Run the matrix against a runtime of its own: all scenarios, or those named."""
    _own_terminal(session)
    from trustfabric.scenarios import harness  # noqa: PLC0415

    return harness.main(directory=_scenario_dir(directory), names=names, output=output)


_ATTEST, _POLICIES = "trustfabric.cli.attest", "trustfabric.cli.policies"


@click.command(
    cls=LazyGroup,
    table={
        "list": Lazy(_ATTEST, "list_", "Recorded verdicts, newest first."),
        "get": Lazy(_ATTEST, "get", "One verdict with its claims."),
        "download": Lazy(_ATTEST, "download", "Keep all that a verdict rests on."),
        "tokens": Lazy(_ATTEST, "tokens", "Tokens of guests' agents that push."),
        "enroll": Lazy(_ATTEST, "enroll", "Pin a TPM's key to an instance."),
        "policies": Lazy(
            _POLICIES, "policies", "What evidence must show, in versions."
        ),
        "references": Lazy(
            _POLICIES, "references", "What evidence may measure, in versions."
        ),
    },
)
def attest() -> None:
    """Verdicts and evidence, what they are judged by, and verifying them offline."""


@attest.command()
@click.argument(
    "cases",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    required=False,
)
@click.option(
    "--stored",
    type=click.IntRange(min=1),
    metavar="ATTESTATION",
    help="A verdict that the host recorded, instead of a document.",
)
@click.option(
    "--anchors",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of trust anchors; absent: those that come with the product.",
)
@click.option("--only", metavar="ID", help="Only the case with this id.")
@click.pass_obj
def verify(
    session: Session,
    /,
    cases: Path | None,
    stored: int | None,
    anchors: Path | None,
    only: str | None,
) -> Any:
    """Verify each case of a document; one JSON object a line, 1 if one failed.

    A document is a list of cases, or what `attest download` kept of a verdict; of
    that it also fails where another code comes out than was recorded.
    """
    if (cases is None) == (stored is None):
        raise click.UsageError("give a document, or --stored")
    from trustfabric.verify import verify_cases  # noqa: PLC0415

    if cases is None:
        return _verify_stored(session, stored or 0, anchors)
    return _shown(verify_cases(cases, anchors=anchors, only=only))


async def _verify_stored(
    session: Session, attestation: int, anchors: Path | None
) -> int:
    from trustfabric.cli.attest import stored_case  # noqa: PLC0415
    from trustfabric.verify import verify_stored  # noqa: PLC0415

    case = await stored_case(session, attestation)
    return _shown([verify_stored(case, anchors=anchors)])


def _shown(verdicts: Iterable[dict[str, Any]]) -> int:
    accepted = True
    for verdict in verdicts:
        accepted = accepted and bool(verdict["accept"] and verdict.get("agrees", True))
        render.jsonl(verdict)
        if "agrees" in verdict:
            _explain(verdict)
    return 0 if accepted else 1


def _explain(verdict: dict[str, Any]) -> None:
    """Tell people what failed, beside the line for programs."""
    for check in verdict["checks"]:
        if check["result"] == "fail":
            told = f"{check['name']}: expected {check['expected'] or 'nothing'}"
            render.note(escape(f"{told}, actual {check['actual'] or 'nothing'}"))


@attest.command("rotate-key")
@data_dir_option
def rotate_key(data_dir: Path | None) -> None:
    """Sign results with a new key from now on; prints its name."""
    settings = _settings(data_dir)
    from trustfabric.keys import rotate_ear_key  # noqa: PLC0415

    click.echo(rotate_ear_key(settings.data_dir))


attest.add_command(ear)


def _own_terminal(session: Session) -> None:
    if session.in_shell:
        raise click.UsageError("this one needs a terminal of its own")


def _scenario_dir(given: Path | None) -> Path | None:
    return given or _settings(None).scenarios.directory


def _settings(data_dir: Path | None) -> "Settings":
    from trustfabric.config import load_settings  # noqa: PLC0415

    given = {} if data_dir is None else {"TRUSTFABRIC_DATA_DIR": str(data_dir)}
    return load_settings(flags=given)


if __name__ == "__main__":
    main()
