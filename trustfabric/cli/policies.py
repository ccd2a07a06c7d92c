"""`mcpctl attest policies|references`: versioned documents, and rehearsals of them."""

from typing import Any

import click

from trustfabric.cli import render, versions
from trustfabric.cli.options import OBJECT, POSITIVE, as_json, given, limit
from trustfabric.cli.session import Session

_PAGE = 50
_TIERS = click.Choice(["standard", "sev", "sev-es", "sev-snp", "tdx"])
_VERSIONS = (
    ("id", "ID"),
    ("name", "NAME"),
    ("document_version", "VERSION"),
    ("state", "STATE"),
    ("deprecated_until", "UNTIL"),
    ("owner_id", "OWNER"),
    ("image", "IMAGE"),
    ("tier", "TIER"),
    ("version", "ROW"),
    ("updated_at", "UPDATED"),
)
_REHEARSED = (
    ("vm_instance_id", "INSTANCE"),
    ("instance_id", "NAME"),
    ("accelerator_id", "ACCELERATOR"),
    ("now", "NOW"),
    ("would_be", "WOULD BE"),
    ("failed", "FAILED CHECKS"),
)
_expected_version = click.option(
    "--expected-version",
    "--version",
    "expected_version",
    type=POSITIVE,
    help="Refuse if its row is at another version. Absent: it is read first.",
)


def _documents(noun: str, what: str) -> click.Group:
    """Make the group of one sort of versioned documents."""

    @click.group(noun, help=what)
    def group() -> None:
        pass

    path = f"/api/attestation/{noun}"
    for add in (_reading, _writing, _rehearsing, _moving):
        add(group, path)
    return group


def _reading(group: click.Group, path: str) -> None:
    @group.command("list")
    @click.option("--name")
    @click.option(
        "--state", type=click.Choice(["staged", "active", "deprecated", "revoked"])
    )
    @limit
    @as_json
    @click.pass_obj
    async def list_versions(
        session: Session, /, *, limit: int, as_json: bool, **only: Any
    ) -> None:
        """List versions."""
        found = await session.client.rows(path, given(only), limit)
        render.show_rows(found.rows, _VERSIONS, as_json=as_json, more=found.more)

    @group.command("get")
    @click.argument("version", type=POSITIVE)
    @as_json
    @click.pass_obj
    async def get_version(session: Session, /, version: int, *, as_json: bool) -> None:
        """Show one version with its document."""
        row = await session.client.get(f"{path}/{version}")
        render.show_record(row, as_json=as_json)


def _writing(group: click.Group, path: str) -> None:
    @group.command("create")
    @click.argument("name")
    @click.argument("document", type=OBJECT, metavar="JSON|@FILE")
    @click.option("--owner", "owner_id", type=POSITIVE)
    @click.option("--image")
    @click.option("--tier", type=_TIERS)
    @click.option("--note")
    @click.option(
        "--dry-run", is_flag=True, help="Only say what it would do to the fleet."
    )
    @as_json
    @click.pass_obj
    async def create(
        session: Session,
        /,
        name: str,
        document: Any,
        *,
        dry_run: bool,
        as_json: bool,
        **more: Any,
    ) -> None:
        """Add the next version under a name; it is staged, and not in force yet."""
        body = {"name": name, "document": document, **given(more)}
        if dry_run:
            body.pop("note", None)
            await _rehearse(session, path, body, as_json=as_json)
            return
        row = await session.client.send("POST", path, body)
        render.show_record(row, as_json=as_json)


def _rehearsing(group: click.Group, path: str) -> None:
    @group.command("dry-run")
    @click.argument("version", type=POSITIVE)
    @click.option("--revoked", is_flag=True, help="As if it were revoked.")
    @as_json
    @click.pass_obj
    async def dry_run_version(
        session: Session, /, version: int, *, revoked: bool, as_json: bool
    ) -> None:
        """Say what a version would make of the fleet's last evidence."""
        body = {"version_id": version} | ({"state": "revoked"} if revoked else {})
        await _rehearse(session, path, body, as_json=as_json)


def _moving(group: click.Group, path: str) -> None:
    @group.command("activate")
    @click.argument("version", type=POSITIVE)
    @click.option(
        "--previous-until",
        metavar="TIME",
        help="Until when earlier versions are believed, with a warning.",
    )
    @_expected_version
    @as_json
    @click.pass_obj
    async def activate(
        session: Session, /, version: int, *, as_json: bool, **more: Any
    ) -> None:
        """Put a version in force."""
        await _move(session, f"{path}/{version}", "activate", more, as_json=as_json)

    @group.command("deprecate")
    @click.argument("version", type=POSITIVE)
    @click.option("--until", metavar="TIME", required=True)
    @_expected_version
    @as_json
    @click.pass_obj
    async def deprecate(
        session: Session, /, version: int, *, as_json: bool, **more: Any
    ) -> None:
        """Believe a version until a time only, with a warning."""
        await _move(session, f"{path}/{version}", "deprecate", more, as_json=as_json)

    @group.command("revoke")
    @click.argument("version", type=POSITIVE)
    @_expected_version
    @as_json
    @click.pass_obj
    async def revoke(
        session: Session, /, version: int, *, as_json: bool, **more: Any
    ) -> None:
        """Never believe a version again."""
        await _move(session, f"{path}/{version}", "revoke", more, as_json=as_json)


policies = _documents("policies", "What evidence must show, in versions.")
references = _documents("references", "What evidence may measure, in versions.")


async def _move(
    session: Session, path: str, verb: str, more: dict[str, Any], *, as_json: bool
) -> None:
    expected = more.pop("expected_version")
    version = await versions.version(session.client, path, expected)
    body = given(more) | {"expected_version": version}
    row = await session.client.send("POST", f"{path}/{verb}", body)
    render.show_record(row, as_json=as_json)


async def _rehearse(
    session: Session, path: str, body: dict[str, Any], *, as_json: bool
) -> None:
    """Go through the fleet page by page; print what changes, and how much does."""
    rows: list[dict[str, Any]] = []
    after = 0
    while True:
        page = await session.client.send(
            "POST", f"{path}/dry-run", body, params={"limit": _PAGE, "cursor": after}
        )
        rows += page
        if len(page) < _PAGE:
            break
        after = int(page[-1]["vm_instance_id"])
    if as_json:
        render.whole(rows)
        return
    changed = [_line(row) for row in rows if row["changes"]]
    render.show_rows(changed, _REHEARSED, as_json=False)
    some, all_ = ({row["vm_instance_id"] for row in part} for part in (changed, rows))
    render.note(f"{len(some)} of {len(all_)} instances would be judged otherwise")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    judged = {
        key: f"{row[key]['status']} ({row[key]['code']})" for key in ("now", "would_be")
    }
    failed = [
        f"{check['name']}: expected {check['expected']}, actual {check['actual']}"
        for check in row["failed_checks"]
    ]
    return {**row, **judged, "failed": failed}
