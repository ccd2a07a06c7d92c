"""What the shell offers at the cursor: commands, flags, choices and live ids."""

import asyncio
import shlex
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from trustfabric.cli.client import Client
from trustfabric.cli.options import LiveId
from trustfabric.cli.system import ACTORS, flat
from trustfabric.cli.terminal import escape
from trustfabric.errors import FabricError

FRESH_S = 5.0
"""How long what was read for completion is good enough to offer again."""
READ_S = 1.0
"""How long typing may wait for ids; later, what is known is offered."""
MOST = 200


@dataclass(frozen=True, slots=True)
class Offer:
    text: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class _Source:
    path: str
    id: str
    about: tuple[str, ...]


_SOURCES: Mapping[str, _Source] = {
    "server": _Source("/api/servers", "id", ("name", "status")),
    "instance": _Source(
        "/api/trust/registry",
        "vm_instance_id",
        ("server_name", "lifecycle_state", "attestation_status"),
    ),
    "run": _Source(
        "/api/trust/remediation/runs", "id", ("playbook", "status", "approval_state")
    ),
    "playbook": _Source(
        "/api/trust/remediation/playbooks", "id", ("playbook_key", "display_name")
    ),
    "playbook-key": _Source(
        "/api/trust/remediation/playbooks", "playbook_key", ("display_name",)
    ),
    "evaluation": _Source("/api/evaluations", "id", ("tier", "status")),
    "actor": _Source(ACTORS, "path", ("state",)),
}


@dataclass(slots=True)
class LiveIds:
    """Ids of what is there, read over REST and kept for a few seconds."""

    client: Client
    clock: Callable[[], float]
    _known: dict[str, tuple[float, list[Offer]]] = field(default_factory=dict)

    def known(self, kind: str) -> list[Offer]:
        return self._known.get(kind, (0.0, []))[1]

    async def refresh(self, kind: str) -> None:
        """Read again what is no longer fresh; on trouble the last known stays."""
        source = _SOURCES.get(kind)
        at, _ = self._known.get(kind, (-FRESH_S, []))
        if source is None or self.clock() - at < FRESH_S:
            return
        try:
            async with asyncio.timeout(READ_S):
                rows = await self._rows(source)
        except (FabricError, TimeoutError):
            return
        self._known[kind] = self.clock(), [_offer(row, source) for row in rows]

    async def _rows(self, source: _Source) -> list[Any]:
        if source.path == ACTORS:
            return list(flat(await self.client.get(ACTORS)))
        return (await self.client.rows(source.path, None, MOST)).rows


def _offer(row: Mapping[str, Any], source: _Source) -> Offer:
    about = (str(row[name]) for name in source.about if row.get(name) is not None)
    return Offer(escape(str(row.get(source.id))), escape(", ".join(about)))


@dataclass(frozen=True, slots=True)
class Position:
    """Where the cursor is on the line: in which command, before which word."""

    command: click.Command
    ctx: click.Context
    words: list[str]
    """What was typed after the command's name, up to the word at the cursor."""
    word: str


class ShellCompleter(Completer):
    def __init__(self, root: click.Group, own: Mapping[str, str], ids: LiveIds) -> None:
        self._root = root
        self._own = own
        """The shell's own words (`help`, `quit`) with what they do."""
        self._ids = ids

    def get_completions(
        self,
        document: Document,
        complete_event: CompleteEvent,  # noqa: ARG002 (the base's signature)
    ) -> Iterable[Completion]:
        at = self._position(document.text_before_cursor)
        if at is None:
            return
        for offer in self._offers(at):
            if offer.text.startswith(at.word):
                start = -len(at.word)
                yield Completion(offer.text, start, display_meta=offer.about)

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        at = self._position(document.text_before_cursor)
        kind = _live_kind(at) if at is not None else None
        if kind is not None:
            await self._ids.refresh(kind)
        for completion in self.get_completions(document, complete_event):
            yield completion

    def _position(self, text: str) -> Position | None:
        typed = _words(text)
        if typed is None:
            return None
        words, word = typed
        if words and words[0] == "mcpctl":
            words = words[1:]
        if words and words[0] == "help":
            words = words[1:]
        command: click.Command = self._root
        ctx = click.Context(command, info_name="mcpctl")
        while isinstance(command, click.Group) and words:
            below = command.get_command(ctx, words[0])
            if below is None:
                return None
            command, words = below, words[1:]
            ctx = click.Context(command, parent=ctx)
        return Position(command, ctx, words, word)

    def _offers(self, at: Position) -> Iterable[Offer]:
        value_of = _option_waiting(at)
        if value_of is not None:
            return self._values(value_of)
        if at.word.startswith("-"):
            return _flags(at)
        if isinstance(at.command, click.Group):
            return self._commands(at, at.command)
        argument = _argument_at(at)
        return self._values(argument) if argument is not None else _flags(at)

    def _commands(self, at: Position, group: click.Group) -> Iterable[Offer]:
        for name in group.list_commands(at.ctx):
            command = group.get_command(at.ctx, name)
            if command is not None and not command.hidden:
                yield Offer(name, command.get_short_help_str(60))
        if group is self._root:
            yield from (Offer(word, about) for word, about in self._own.items())

    def _values(self, param: click.Parameter) -> Iterable[Offer]:
        match param.type:
            case LiveId(kind=kind):
                return self._ids.known(kind)
            case click.Choice(choices=choices):
                return [Offer(str(choice)) for choice in choices]
            case _:
                return []


def _words(text: str) -> tuple[list[str], str] | None:
    """Split into the finished words and the one at the cursor; None inside quotes."""
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    if not text or text[-1].isspace():
        return words, ""
    return words[:-1], words[-1] if words else ""


def _flags(at: Position) -> Iterable[Offer]:
    for param in at.command.get_params(at.ctx):
        if isinstance(param, click.Option) and not param.hidden:
            for name in (*param.opts, *param.secondary_opts):
                if name.startswith("--") and name not in at.words:
                    yield Offer(name, param.help or "")


def _option_waiting(at: Position) -> click.Option | None:
    """Find the option whose value stands at the cursor."""
    if not at.words:
        return None
    for param in at.command.get_params(at.ctx):
        takes_value = isinstance(param, click.Option) and not param.is_flag
        if takes_value and at.words[-1] in param.opts:
            assert isinstance(param, click.Option)
            return param
    return None


def _argument_at(at: Position) -> click.Argument | None:
    """Find the argument at the cursor by counting the words that are no options."""
    params = at.command.get_params(at.ctx)
    valued = {
        name
        for param in params
        if isinstance(param, click.Option) and not param.is_flag
        for name in param.opts
    }
    count = 0
    skip = False
    for word in at.words:
        if not skip and not word.startswith("-"):
            count += 1
        skip = word in valued
    arguments = [param for param in params if isinstance(param, click.Argument)]
    return arguments[count] if count < len(arguments) else None


def _live_kind(at: Position) -> str | None:
    param = _option_waiting(at)
    if param is None and not at.word.startswith("-"):
        argument = _argument_at(at)
        kind = argument.type if argument is not None else None
    else:
        kind = param.type if param is not None else None
    return kind.kind if isinstance(kind, LiveId) else None
