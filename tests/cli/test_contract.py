"""The commands and flags that scripts of the earlier client rely on are all there."""

import click
import pytest

from trustfabric.cli.main import GROUPS, command_table
from trustfabric.main import attest, demo, scenarios, serve, token

GLOBAL = ["--host", "--token", "--token-file", "--timeout"]
WATCH = ["--json", "--last-event-id", "--since", "--max-events", "--for"]
FILTERS = ["--server-id", "--lifecycle", "--status", "--stale", "--fresh"]
COMMANDS: dict[str, list[str]] = {
    "trust registry": [*FILTERS, "--limit", "--json"],
    "trust get": ["--json"],
    "trust history": ["--limit", "--json"],
    "trust transition": [
        *("--status", "--lifecycle", "--remediation-state", "--remediation-attempts"),
        *("--freshness-deadline", "--provenance-ref", "--provenance", "--metadata"),
        *("--reason", "--expected-version", "--override", "--json"),
    ],
    "trust watch": [*FILTERS, *WATCH],
    "trust why": ["--json"],
    "trust holds": ["--state", "--scope", "--instance-id", "--limit", "--json"],
    "trust hold": ["--owner", "--mine", "--all", "--reason", "--until", "--for"],
    "trust release-hold": ["--reason", "--json"],
    "trust watch-holds": [*WATCH],
    "why": ["--json"],
    "servers why": ["--json"],
    "remediation incidents": ["--open", "--limit", "--json"],
    "remediation breaker": ["--json"],
    "remediation release-breaker": ["--reason", "--incident", "--owner", "--json"],
    "remediation playbooks list": ["--json"],
    "remediation playbooks get": ["--json"],
    "remediation playbooks create": ["--json"],
    "remediation playbooks update": ["--json", "--expected-version"],
    "remediation playbooks delete": ["--json", "--expected-version"],
    "remediation runs list": ["--instance-id", "--status", "--json"],
    "remediation runs get": ["--json"],
    "remediation runs enqueue": ["--metadata", "--payload", "--owner", "--json"],
    "remediation runs approve": ["--state", "--version", "--notes", "--json"],
    "remediation runs reject": ["--version", "--notes", "--json"],
    "remediation runs cancel": ["--json"],
    "remediation runs retry": ["--json"],
    "remediation runs logs": ["--after", "--json"],
    "remediation runs artifacts": ["--json"],
    "remediation watch": ["--run-id", *WATCH],
    "evaluations list": ["--json"],
    "evaluations status": ["--json"],
    "evaluations plan": [
        *("--cadence-seconds", "--unset-cadence", "--next-refresh"),
        *("--unset-next-refresh", "--note", "--unset-note", "--source"),
        *("--unset-source", "--lineage", "--unset-lineage", "--json"),
    ],
    "evaluations lineage": ["--json"],
    "evaluations retry": ["--json"],
    "servers list": ["--json"],
    "servers get": ["--json"],
    "servers create": ["--json"],
    "servers start": ["--json"],
    "servers stop": ["--json"],
    "servers redeploy": ["--json"],
    "servers delete": ["--json"],
    "servers vm": ["--json"],
    "servers logs": ["--tail", "--json"],
    "servers attest": ["--json"],
    "system actors": ["--json"],
    "system kill": ["--json"],
    "shell": [],
}
LOCAL: dict[str, list[str]] = {
    "serve": ["--data-dir", "--demo"],
    "token": ["--sub", "--role", "--ttl"],
    "scenarios list": [],
    "scenarios run": [],
    "scenarios manifest": [],
    "attest verify": ["--anchors", "--only", "--stored"],
    "attest list": ["--instance-id", "--status", "--limit", "--json"],
    "attest get": ["--json"],
    "attest download": ["--raw"],
    "attest enroll": ["--endorser", "--json"],
    "attest tokens issue": ["--ttl", "--any-boot", "--json"],
    "attest tokens list": ["--instance-id", "--json"],
    "attest tokens revoke": ["--json"],
    "attest policies list": ["--name", "--state", "--limit", "--json"],
    "attest policies get": ["--json"],
    "attest policies create": [
        *("--owner", "--image", "--tier", "--note", "--dry-run", "--json"),
    ],
    "attest policies activate": ["--previous-until", "--expected-version", "--json"],
    "attest policies deprecate": ["--until", "--expected-version", "--json"],
    "attest policies revoke": ["--expected-version", "--json"],
    "attest policies dry-run": ["--revoked", "--json"],
    "attest references create": ["--image", "--dry-run", "--json"],
}


@pytest.fixture
def root() -> click.Group:
    root = command_table()
    for command in (serve, demo, token, scenarios, attest):
        root.add_command(command)
    return root


def flags_of(root: click.Group, path: str) -> set[str]:
    command: click.Command = root
    for name in path.split():
        assert isinstance(command, click.Group)
        below = command.get_command(click.Context(command), name)
        assert below is not None, path
        command = below
    assert not isinstance(command, click.Group)
    return {
        name
        for param in command.params
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }


@pytest.mark.parametrize(("path", "flags"), [*COMMANDS.items(), *LOCAL.items()])
def test_a_command_has_its_flags(
    root: click.Group, path: str, flags: list[str]
) -> None:
    assert flags_of(root, path) >= set(flags)


def test_the_global_options_are_there(root: click.Group) -> None:
    names = {name for param in root.params for name in param.opts}

    assert names >= set(GLOBAL)


@pytest.mark.parametrize("name", GROUPS)
def test_the_help_of_the_table_is_that_of_the_command(
    root: click.Group, name: str
) -> None:
    command = root.get_command(click.Context(root), name)

    assert command is not None
    assert command.help is not None
    if isinstance(command, click.Group):
        assert command.help == GROUPS[name].help
