"""The shell runs the commands of the table, and Ctrl-C ends only what runs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.cli.conftest import Spawn
from tests.cli.host import TOKEN, Hold, Host, frame, registry_row, trust_event
from trustfabric.cli import render
from trustfabric.cli.client import Client
from trustfabric.cli.main import command_table
from trustfabric.cli.session import Connection
from trustfabric.cli.shell import Operator, split
from trustfabric.main import serve

CTRL_C, CTRL_D = "\x03", "\x04"


@dataclass
class Typing:
    keys: PipeInput
    capsys: pytest.CaptureFixture[str]
    out: str = ""

    def type(self, text: str) -> None:
        self.keys.send_text(text)

    async def sees(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.out:
                captured = self.capsys.readouterr()
                self.out += captured.out + captured.err
                await asyncio.sleep(0.01)


Open: TypeAlias = Callable[[], AbstractAsyncContextManager[Typing]]


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as keys, create_app_session(keys, DummyOutput()):
        yield keys


@pytest.fixture
def open_shell(host: Host, keys: PipeInput, capsys: pytest.CaptureFixture[str]) -> Open:
    @asynccontextmanager
    async def shell() -> AsyncIterator[Typing]:
        connection = Connection(host.url, 5.0, TOKEN)
        client = Client(connection)
        operator = Operator(command_table(), connection, client)
        running = asyncio.create_task(operator.converse(InMemoryHistory()))
        try:
            yield Typing(keys, capsys)
            async with asyncio.timeout(20):
                await running
        finally:
            running.cancel()
            await asyncio.wait([running])
            await client.close()

    host.lists("/api/trust/registry", [registry_row()])
    host.lists("/api/trust/remediation/runs", [])
    host.answers("GET", "/api/trust/registry/7", registry_row())
    return shell


async def test_a_line_runs_as_mcpctl_would_run_it(open_shell: Open, host: Host) -> None:
    async with open_shell() as shell:
        shell.type("trust get 7 --json\r")
        await shell.sees('"provenance_ref"')
        shell.type("mcpctl servers get 9\r")
        await shell.sees("exit code 1")
        shell.type("quit\r")

    sent = host.last("GET", "/api/trust/registry/7").headers["Authorization"]
    assert sent == f"Bearer {TOKEN}"


async def test_help_and_usage_do_not_end_it(open_shell: Open) -> None:
    async with open_shell() as shell:
        shell.type("help trust history\r")
        await shell.sees("List what happened to one instance")
        shell.type("trust nonsense\r")
        await shell.sees("exit code 2")
        shell.type("it's\r")
        await shell.sees("close the quotes")
        shell.type("shell\r")
        await shell.sees("the shell already")
        shell.type(CTRL_D)


async def test_ctrl_c_cancels_what_runs_and_nothing_else(
    open_shell: Open, host: Host
) -> None:
    path = "/api/trust/registry/stream"
    event = frame("a", "trust", trust_event())
    async with open_shell() as shell:
        await _asked(host, path)
        host.streams(path, [event, Hold()])
        shell.type("trust watch\r")
        await shell.sees("restored → quarantined")
        await asyncio.sleep(0.2)
        shell.type(CTRL_C)
        await shell.sees("cancelled")
        shell.type(CTRL_C)
        shell.type("trust get 7\r")
        await shell.sees("provenance_ref")
        shell.type("quit\r")


async def test_what_is_typed_while_a_command_runs_is_kept(
    open_shell: Open, host: Host
) -> None:
    path = "/api/trust/registry/stream"
    async with open_shell() as shell:
        await _asked(host, path)
        event, typed = frame("a", "trust", trust_event()), asyncio.Event()
        host.streams(path, [event, typed, event, Hold()])
        shell.type("trust watch --max-events 2\r")
        await shell.sees("restored → quarantined")
        await asyncio.sleep(0.2)
        shell.type("trust get 7\r")
        typed.set()
        await shell.sees("provenance_ref")
        shell.type("quit\r")


async def _asked(host: Host, path: str) -> None:
    """Wait for the status line's own connection."""
    async with asyncio.timeout(20):
        while not host.connections(path):
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_script_on_standard_input_runs_line_by_line(
    host: Host, spawn: Spawn
) -> None:
    host.answers("GET", "/api/trust/registry/7", registry_row())
    script = b"# a comment\ntrust get 7 --json\n\nservers get 9\nquit\ntrust get 7\n"

    process = await spawn("shell")
    out, err = await process.communicate(script)

    assert process.returncode == 1
    assert out.count(b"provenance_ref") == 1
    assert b"404" in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  # nothing", []),
        ("trust get 7", ["trust", "get", "7"]),
        ("mcpctl trust get 7", ["trust", "get", "7"]),
        ("help", ["--help"]),
        ("help trust get", ["trust", "get", "--help"]),
        ("""x --notes 'two words'""", ["x", "--notes", "two words"]),
    ],
)
def test_split(line: str, words: list[str]) -> None:
    assert split(line) == words


async def test_a_fault_of_a_command_does_not_end_the_shell(
    open_shell: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(render, "show_record", broken)
    async with open_shell() as shell:
        shell.type("trust get 7\r")
        await shell.sees("a fault of ours")
        shell.type("help quit\r")
        await shell.sees("No such command")
        shell.type("quit\r")


async def test_what_needs_a_terminal_of_its_own_is_refused(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    root = command_table()
    root.add_command(serve)
    connection = Connection(host.url, 5.0, TOKEN)
    client = Client(connection)

    code = await Operator(root, connection, client).execute(["serve"])
    await client.close()

    assert code == 2
    assert "terminal of its own" in capsys.readouterr().err


async def test_a_line_may_name_another_host(host: Host) -> None:
    connection = Connection("http://127.0.0.1:1", 5.0, TOKEN)
    client = Client(connection)
    host.lists("/api/servers", [])
    operator = Operator(command_table(), connection, client)

    here = await operator.execute(["servers", "list"])
    there = await operator.execute(["--host", host.url, "servers", "list"])
    await client.close()

    assert (here, there) == (3, 0)
