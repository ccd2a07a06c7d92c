"""Following a stream from the command line: a line an event, until told to stop."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Any, assert_never

import click

from trustfabric.cli import render
from trustfabric.cli.client import Params
from trustfabric.cli.follow import Heard, Item, Lost, Opened, Reconnect, follow
from trustfabric.cli.session import Session
from trustfabric.cli.sse import Event
from trustfabric.cli.terminal import escape

Describe = Callable[[Mapping[str, Any]], list[str]]
"""An event's data as lines for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """Where a watch begins and when it ends; the flags that every watch has."""

    last_event_id: str | None
    max_events: int | None
    for_s: float | None
    as_json: bool
    ids: bool

    @classmethod
    def taken_from(cls, flags: dict[str, Any]) -> tuple["Until", dict[str, Any]]:
        """Split a watch's flags: those of Until, and the stream's own filters."""
        names = {field.name for field in fields(cls)}
        own = {name: value for name, value in flags.items() if name in names}
        return cls(**own), {k: v for k, v in flags.items() if k not in names}

    @classmethod
    def for_ever(cls, *, as_json: bool) -> "Until":
        return cls(
            last_event_id=None, max_events=None, for_s=None, as_json=as_json, ids=False
        )


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare the flags of Until on a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option(
        "--last-event-id",
        "--since",
        "last_event_id",
        help="Resume after this event (ids: see --ids).",
    ),
    click.option(
        "--max-events", type=click.IntRange(min=1), help="End after this many events."
    ),
    click.option(
        "--for",
        "for_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="End after this time.",
    ),
    click.option(
        "--ids", is_flag=True, help="Add each event's id (JSON: `last_event_id`)."
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON object a line."),
)


async def watch(
    session: Session, path: str, params: Params, describe: Describe, until: Until
) -> None:
    """Print events until `until` says so, the host ends the stream, or Ctrl-C."""
    session.endless = True
    reconnect = Reconnect(jitter=random.random)
    items = follow(session.client, path, params, until.last_event_id, reconnect)
    deadline = asyncio.timeout(until.for_s)
    try:
        async with deadline, aclosing(items):
            await _print_all(items, describe, until)
    except TimeoutError:
        if not deadline.expired():
            raise


async def _print_all(
    items: AsyncIterator[Item], describe: Describe, until: Until
) -> None:
    left = until.max_events
    was_lost = False
    async for item in items:
        match item:
            case Event():
                left = _print(item, describe, until, left)
                if left == 0:
                    return
            case Lost():
                was_lost = True
                wait = f"again in {item.retry_s:.1f} s"
                render.note(f"-- not live: {escape(item.reason)}; {wait}")
            case Opened():
                if was_lost:
                    render.note("-- connected again")
            case Heard():
                pass
            case _:
                assert_never(item)


def _print(
    event: Event, describe: Describe, until: Until, left: int | None
) -> int | None:
    """Print one event; give back how many more are wanted."""
    data = _parsed(event.data)
    about_stream = event.event in ("reset", "lagged", "bookmark")
    if event.event == "bookmark" and not until.ids:
        return left
    if until.as_json:
        extra = {"last_event_id": event.id} if until.ids else {}
        told = {"stream": event.event} if about_stream else {}
        render.jsonl({**told, **data, **extra})
    else:
        lines = [f"-- {_STREAM_NOTES[event.event]}"] if about_stream else describe(data)
        mark = f"  [{escape(event.id)}]" if until.ids else ""
        for text in lines:
            render.line(f"{text}{mark}")
    return left if about_stream or left is None else left - 1


_STREAM_NOTES = {
    "reset": "reset: events before this point are gone; read the lists again",
    "lagged": "lagged: this client was too slow; what it missed is replayed",
    "bookmark": "bookmark",
}


def _parsed(data: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {"data": data}
    return document if isinstance(document, dict) else {"data": document}
