"""An event stream that comes back: reconnect, resume, report how it stands."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

import aiohttp

from trustfabric.cli.client import Client, Params
from trustfabric.cli.errors import RefusedError, UnreachableError
from trustfabric.cli.sse import Comment, Event, EventTooLongError, Parser

RETRY_S = 1.0
LONGEST_RETRY_S = 15.0
_NO_CONTENT = 204
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that say "not now"; any other refusal ends the stream."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The host answered; what follows is live."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A heartbeat: nothing happened, and the host is there."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended; the next attempt is `retry_s` away."""

    reason: str
    retry_s: float


Item: TypeAlias = Opened | Heard | Lost | Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    jitter: Callable[[], float]
    """A number from 0 to 1, so that a thousand clients don't come back at once."""
    patient: bool = False
    """Keep trying although the host was never reached."""


async def follow(
    client: Client,
    path: str,
    params: Params,
    last_event_id: str | None,
    reconnect: Reconnect,
) -> AsyncGenerator[Item, None]:
    """Yield what happens, across disconnects, until the host ends it for good.

    Raise RefusedError when the host says no, and UnreachableError when it was
    never reached and the caller isn't patient.
    """
    parser = Parser(last_event_id or "")
    reached = reconnect.patient
    fails = 0
    while True:
        reason = "the host ended the stream"
        try:
            async with client.stream(path, params, parser.last_event_id) as response:
                if response.status == _NO_CONTENT:
                    return
                reached = True
                yield Opened()
                async for item in _items(response, parser):
                    fails = 0
                    yield item
        except (UnreachableError, EventTooLongError) as error:
            if not reached:
                raise
            reason = str(error) or "an event of more than 16 MiB"
        except RefusedError as error:
            if not reached or error.status not in _PASSING:
                raise
            reason = str(error)
        base = parser.retry_s if parser.retry_s is not None else RETRY_S
        longest = max(base, LONGEST_RETRY_S)
        wait_s = min(longest, base * 2 ** min(fails, 10)) * (
            0.5 + reconnect.jitter() / 2
        )
        fails += 1
        parser = _resumed(parser)
        yield Lost(reason, wait_s)
        await asyncio.sleep(wait_s)


async def _items(
    response: aiohttp.ClientResponse, parser: Parser
) -> AsyncIterator[Event | Heard]:
    async for chunk in response.content.iter_any():
        for frame in parser.feed(chunk):
            yield Heard() if isinstance(frame, Comment) else frame


def _resumed(parser: Parser) -> Parser:
    """Start a new parse for a new connection, from the last complete event."""
    fresh = Parser(parser.last_event_id)
    fresh.retry_s = parser.retry_s
    return fresh
