"""`mcpctl shell`: the same commands at a prompt, over a line that shows the fleet."""

import asyncio
import inspect
import random
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception
from typing import Any

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.layout import FormattedTextControl, Layout, Window
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from trustfabric.cli import status
from trustfabric.cli.client import Client
from trustfabric.cli.completion import LiveIds, ShellCompleter
from trustfabric.cli.follow import Reconnect
from trustfabric.cli.history import PrivateHistory
from trustfabric.cli.main import DONE, INTERRUPTED, REFUSED, call, finish, report
from trustfabric.cli.render import note
from trustfabric.cli.session import Connection, Session
from trustfabric.cli.status import Fleet
from trustfabric.errors import FabricError

OWN: Mapping[str, str] = {
    "help": "what a command does: help [GROUP [COMMAND]]",
    "quit": "leave the shell",
}
AT_ONCE_S = 0.15
"""A command that takes longer keeps the status line under its output."""

_STYLE = Style.from_dict(
    {
        "bottom-toolbar": "noreverse bg:#262626 #d0d0d0",
        "status": "bg:#262626 #d0d0d0",
        "restored": "#87d787",
        "suspect": "#ffd75f",
        "quarantined": "#ff5f5f bold",
        "remediating": "#d787ff",
        "waiting": "#ffd75f bold",
        "live": "#87d787",
        "lost": "#ff5f5f bold",
        "old": "#808080 italic",
    }
)


@click.command()
@click.option(
    "--state-dir",
    envvar="XDG_STATE_HOME",
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    default="~/.local/state",
    show_default=True,
    help="Where trustfabric/shell_history is kept.",
)
@click.pass_context
async def shell(ctx: click.Context, /, state_dir: Path) -> int:
    """Run commands at a prompt; a script on standard input works too."""
    session = ctx.find_object(Session)
    root = ctx.find_root().command
    assert session is not None
    assert isinstance(root, click.Group)
    assert session.connection is not None
    if session.in_shell:
        raise click.UsageError("this is the shell already")
    operator = Operator(root, session.connection, session.client)
    if not sys.stdin.isatty():
        return await operator.script()
    await operator.converse(_history(state_dir))
    return DONE


def _history(state_dir: Path) -> History:
    try:
        return PrivateHistory(state_dir.expanduser() / "trustfabric" / "shell_history")
    except OSError as error:
        note(f"the history is not kept: {error}")
        return InMemoryHistory()


@dataclass(frozen=True, slots=True)
class Operator:
    """Runs lines as command lines of `root`, all over one client."""

    root: click.Group
    connection: Connection
    client: Client

    async def script(self) -> int:
        """Run the lines of standard input; the last command's exit code."""
        code = DONE
        while line := await asyncio.to_thread(sys.stdin.readline):
            words = split(line)
            if words == ["quit"]:
                break
            if words:
                code = await self.execute(words)
        return code

    async def converse(self, history: History) -> None:
        """Prompt until `quit` or end of input."""
        fleet = Fleet()
        reconnect = Reconnect(jitter=random.random, patient=True)
        feeds = (status.follow_trust, status.follow_runs)
        async with asyncio.TaskGroup() as tasks:
            followers = [
                tasks.create_task(feed(self.client, fleet, time.monotonic, reconnect))
                for feed in feeds
            ]
            await self._prompt(fleet, history)
            for follower in followers:
                follower.cancel()

    async def _prompt(self, fleet: Fleet, history: History) -> None:
        def line() -> StyleAndTextTuples:
            return [*status.line(fleet, time.monotonic())]

        ids = LiveIds(self.client, time.monotonic)
        prompt: PromptSession[str] = PromptSession(
            "mcpctl> ",
            history=history,
            completer=ShellCompleter(self.root, OWN, ids),
            auto_suggest=AutoSuggestFromHistory(),
            bottom_toolbar=line,
            refresh_interval=1.0,
            style=_STYLE,
        )
        note("help lists the commands, Tab completes, Ctrl-C cancels, quit leaves")
        while True:
            try:
                typed = await prompt.prompt_async()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            words = split(typed)
            if words in (["quit"], ["exit"]):
                return
            if words:
                code = await self._under_the_line(words, line)
                if code not in (DONE, INTERRUPTED):
                    note(f"exit code {code}")

    async def _under_the_line(self, words: Sequence[str], line: Any) -> int:
        """Run a command; while it runs the status line stays and Ctrl-C cancels it."""
        running = asyncio.create_task(self.execute(words))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, running.cancel)
        try:
            await asyncio.wait([running], timeout=AT_ONCE_S)
            if not running.done():
                await _show_while(running, line)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        await asyncio.wait([running])
        if running.cancelled():
            note("cancelled")
            return INTERRUPTED
        fault = running.exception()
        if fault is not None:
            note(
                "".join(format_exception(fault))
            )  # a bug ends a command, not the shell
            return REFUSED
        return running.result()

    async def execute(self, words: Sequence[str]) -> int:
        """Run one command line as `mcpctl` would, with this shell's connection."""
        session = Session(self.client, in_shell=True)
        args = [*self._options(), *words]
        try:
            outcome = await asyncio.to_thread(call, self.root, args, session)
            if inspect.iscoroutine(outcome):
                outcome = await finish(outcome, session)
        except (click.ClickException, click.Abort, FabricError) as error:
            return report(error)
        except OSError as error:
            note(str(error))
            return REFUSED
        return outcome if isinstance(outcome, int) else DONE

    def _options(self) -> list[str]:
        """Give the connection as options; what the line itself says comes later."""
        host, timeout = self.connection.host, str(self.connection.timeout_s)
        token = self.connection.token
        options = ["--host", host, "--timeout", timeout]
        return [*options, "--token", token] if token else options


def split(line: str) -> list[str]:
    """Turn a typed line into the words of a command; `help X` into `X --help`."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        note(f"{error}: close the quotes")
        return []
    if words[:1] == ["mcpctl"]:
        words = words[1:]
    if words[:1] == ["help"]:
        return [*words[1:], "--help"]
    return words


async def _show_while(running: asyncio.Task[int], line: Any) -> None:
    """Keep the status line at the bottom until the command has ended.

    Keys typed meanwhile are kept for the prompt.
    """
    keys = KeyBindings()
    typed: list[KeyPress] = []

    @keys.add("c-c")
    def _(_event: KeyPressEvent) -> None:
        running.cancel()

    @keys.add("<any>")
    def _(event: KeyPressEvent) -> None:
        typed.extend(event.key_sequence)

    bar = Window(FormattedTextControl(line), height=1, style="class:status")
    app: Application[None] = Application(
        layout=Layout(bar),
        key_bindings=keys,
        style=_STYLE,
        refresh_interval=1.0,
        erase_when_done=True,
    )

    def leave(_task: asyncio.Task[int]) -> None:
        if app.is_running:
            app.exit()

    running.add_done_callback(leave)
    with patch_stdout(raw=True):
        await app.run_async(pre_run=lambda: leave(running) if running.done() else None)
    store_typeahead(app.input, typed)
