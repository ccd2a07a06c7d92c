"""Completion of commands, flags, choices and the ids of what is there."""

from collections.abc import AsyncIterator

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from tests.cli.host import Host, registry_row, run_row
from trustfabric.cli.client import Client
from trustfabric.cli.completion import LiveIds, ShellCompleter
from trustfabric.cli.main import command_table
from trustfabric.cli.session import Connection
from trustfabric.cli.shell import OWN


class Now:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def completer(host: Host, now: Now) -> AsyncIterator[ShellCompleter]:
    host.lists("/api/servers", [{"id": 3, "name": "web", "status": "running"}])
    host.lists("/api/trust/registry", [registry_row(7), registry_row(8)])
    host.lists("/api/trust/remediation/runs", [run_row(42)])
    host.lists(
        "/api/trust/remediation/playbooks",
        [
            {
                "id": 2,
                "playbook_key": "default-vm-remediation",
                "display_name": "Restart",
            }
        ],
    )
    host.lists("/api/system/actors", [{"path": "fabric/trust", "state": "running"}])
    client = Client(Connection(host.url, 5.0))
    yield ShellCompleter(command_table(), OWN, LiveIds(client, now))
    await client.close()


async def offered(completer: ShellCompleter, text: str) -> list[str]:
    found = completer.get_completions_async(Document(text), CompleteEvent())
    return [completion.text async for completion in found]


@pytest.mark.parametrize(
    ("typed", "offers"),
    [
        ("tr", ["trust"]),
        ("qu", ["quit"]),
        ("mcpctl tr", ["trust"]),
        ("help rem", ["remediation"]),
        ("trust h", ["history", "hold", "holds"]),
        (
            "trust transition 7 --remediation-",
            ["--remediation-state", "--remediation-attempts"],
        ),
        ("trust registry --lifecycle q", ["quarantined"]),
        ("trust registry --st", ["--status", "--stale"]),
        ("trust registry --stale --sta", ["--status"]),
        ("trust get ", ["7", "8"]),
        ("trust get 7 ", ["--json", "--help"]),
        ("trust registry --server-id ", ["3"]),
        ("servers start ", ["3"]),
        ("remediation runs approve ", ["42"]),
        ("remediation runs approve --notes 'x y' ", ["42"]),
        ("remediation runs enqueue 7 ", ["default-vm-remediation"]),
        ("remediation playbooks get ", ["2"]),
        ("remediation watch --run-id ", ["42"]),
        ("system kill ", ["fabric/trust"]),
        ("nonsense ", []),
        ("trust get 'unclosed ", []),
    ],
)
async def test_offers(completer: ShellCompleter, typed: str, offers: list[str]) -> None:
    assert sorted(await offered(completer, typed)) == sorted(offers)


async def test_an_id_is_offered_with_what_it_is(completer: ShellCompleter) -> None:
    found = completer.get_completions_async(Document("trust get 7"), CompleteEvent())

    [completion] = [completion async for completion in found]

    assert completion.display_meta_text == "web, restored, trusted"
    assert completion.start_position == -1


async def test_ids_are_read_once_in_a_few_seconds(
    host: Host, completer: ShellCompleter, now: Now
) -> None:
    await offered(completer, "trust get ")
    await offered(completer, "trust get 7")
    assert len(host.asked) == 1

    now.s += 6
    await offered(completer, "trust get ")

    assert len(host.asked) == 2


async def test_what_was_known_is_offered_while_the_host_refuses(
    host: Host, completer: ShellCompleter, now: Now
) -> None:
    await offered(completer, "trust get ")
    host.refuses("GET", "/api/trust/registry", 503, "unavailable")
    now.s += 6

    assert await offered(completer, "trust get ") == ["7", "8"]


async def test_s16_a_name_is_escaped(host: Host, completer: ShellCompleter) -> None:
    host.lists("/api/servers", [{"id": 3, "name": "\x1b[2Jx", "status": "running"}])

    found = completer.get_completions_async(Document("servers get "), CompleteEvent())

    [completion] = [completion async for completion in found]
    assert "\x1b" not in completion.display_meta_text
