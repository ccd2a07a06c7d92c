"""The shell's bottom line: the fleet now, and how sure we are that it is now.

Two feeds (trust, runs) follow the streams over a baseline read from the lists.
What the line shows is dated by the last byte heard, heartbeats included: without
a live stream it says how old the figures are instead of showing them as fresh.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from trustfabric.cli.client import Client, Params
from trustfabric.cli.errors import BrokenAnswerError, RefusedError, UnreachableError
from trustfabric.cli.follow import Item, Lost, Opened, Reconnect, follow
from trustfabric.cli.sse import Event
from trustfabric.cli.terminal import escape

QUIET_S = 20.0
"""A live stream beats every 15 s: one that is quiet for longer is in doubt."""
REFUSED_RETRY_S = 30.0
BASELINE_S = 120.0
"""The lists are read again this often: no stream tells that an instance is gone."""
ACTIVE = frozenset({"pending", "running"})
_LIFECYCLES = ("restored", "suspect", "quarantined", "remediating")

Clock = Callable[[], float]
"""Monotonic seconds."""
Text = list[tuple[str, str]]
"""(style, text) pieces, as prompt-toolkit takes them."""


@dataclass(slots=True)
class Feed:
    """How one stream stands."""

    heard_at: float | None = None
    """When the last byte came, once the baseline was there; None: nothing yet."""
    trouble: str | None = "connecting"
    """Why it isn't live; None while it is."""
    read_at: float = 0.0
    """When the lists were read."""


@dataclass(slots=True)
class Fleet:
    """What the line counts; filled by the feeds, read when the line is drawn."""

    instances: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Instance → (version, lifecycle): an older version never replaces a newer."""
    runs: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Active run → (status, approval state)."""
    trust: Feed = field(default_factory=Feed)
    remediation: Feed = field(default_factory=Feed)

    def saw_instance(self, row: Mapping[str, Any]) -> None:
        instance, version = row.get("vm_instance_id"), row.get("version")
        if not isinstance(instance, int) or not isinstance(version, int):
            return
        known, _ = self.instances.get(instance, (0, ""))
        if version >= known:
            self.instances[instance] = version, str(row.get("lifecycle_state"))

    def saw_run(self, run: object, status: object, approval: object) -> None:
        if not isinstance(run, int) or status is None:
            return
        if status in ACTIVE:
            self.runs[run] = str(status), str(approval)
        else:
            self.runs.pop(run, None)


def line(fleet: Fleet, now: float) -> Text:
    """Draw the line as of `now`."""
    feeds = (fleet.trust, fleet.remediation)
    heard = [feed.heard_at for feed in feeds if feed.heard_at is not None]
    trouble = next((feed.trouble for feed in feeds if feed.trouble), None)
    if len(heard) < len(feeds):
        return [("class:lost", f" ○ no data yet: {escape(trouble or 'connecting')} ")]
    age = max(0.0, now - min(heard))
    if trouble is None and age > QUIET_S:
        trouble = "the stream is quiet"
    if trouble is None:
        return [("class:live", f" ● live, heard {age:.0f} s ago "), *_figures(fleet)]
    old = [("class:old", text) for _, text in _figures(fleet)]
    dated = ("class:lost", f" ○ not live, {_age(age)} old ")
    return [dated, *old, ("class:lost", f"│ {escape(trouble)} ")]


def _figures(fleet: Fleet) -> Text:
    counted = Counter(lifecycle for _, lifecycle in fleet.instances.values())
    parts: Text = [("", f"│ {len(fleet.instances)} instances")]
    for lifecycle in _LIFECYCLES:
        if counted[lifecycle]:
            text = f"{counted[lifecycle]} {lifecycle}"
            parts += [("", "  "), (f"class:{lifecycle}", text)]
    waiting = sum(approval == "pending" for _, approval in fleet.runs.values())
    parts += [("", f" │ {len(fleet.runs)} active runs")]
    if waiting:
        parts += [("", "  "), ("class:waiting", f"{waiting} waiting for approval")]
    return [*parts, ("", " ")]


def _age(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


async def follow_trust(
    client: Client, fleet: Fleet, clock: Clock, reconnect: Reconnect
) -> None:
    """Keep the instances of `fleet` up to date until cancelled."""

    async def baseline() -> None:
        found = await client.rows("/api/trust/registry", None, 0)
        fleet.instances.clear()
        for row in found.rows:
            fleet.saw_instance(row)

    await _keep(
        fleet.trust,
        lambda: follow(client, "/api/trust/registry/stream", {}, None, reconnect),
        baseline,
        fleet.saw_instance,
        clock,
    )


async def follow_runs(
    client: Client, fleet: Fleet, clock: Clock, reconnect: Reconnect
) -> None:
    """Keep the active runs of `fleet` up to date until cancelled."""

    async def baseline() -> None:
        found = [
            row
            for status in sorted(ACTIVE)
            for row in (await _active_runs(client, status)).rows
        ]
        fleet.runs.clear()
        for row in found:
            fleet.saw_run(row.get("id"), row.get("status"), row.get("approval_state"))

    def apply(data: Mapping[str, Any]) -> None:
        event = data.get("event")
        if isinstance(event, Mapping) and event.get("event") == "status":
            run, approval = data.get("run_id"), event.get("approval_state")
            fleet.saw_run(run, event.get("status"), approval)

    await _keep(
        fleet.remediation,
        lambda: follow(client, "/api/trust/remediation/stream", {}, None, reconnect),
        baseline,
        apply,
        clock,
    )


async def _active_runs(client: Client, status: str) -> Any:
    params: Params = {"status": status}
    return await client.rows("/api/trust/remediation/runs", params, 0)


async def _keep(
    feed: Feed,
    stream: Callable[[], AsyncGenerator[Item, None]],
    baseline: Callable[[], Awaitable[None]],
    apply: Callable[[Mapping[str, Any]], None],
    clock: Clock,
) -> None:
    """Follow for ever; the baseline is read after the stream is open, so none is lost.

    A refusal (an expired token, say) is shown and tried again after a while.
    """
    while True:
        try:
            async with aclosing(stream()) as items:
                async for item in items:
                    await _take(item, feed, baseline, apply, clock)
            feed.trouble = "the host ended the stream"
        except (RefusedError, UnreachableError, BrokenAnswerError) as error:
            feed.trouble = str(error)
        await asyncio.sleep(REFUSED_RETRY_S)


async def _take(
    item: Item,
    feed: Feed,
    baseline: Callable[[], Awaitable[None]],
    apply: Callable[[Mapping[str, Any]], None],
    clock: Clock,
) -> None:
    if isinstance(item, Lost):
        feed.trouble = item.reason
        return
    reset = isinstance(item, Event) and item.event == "reset"
    old = clock() - feed.read_at > BASELINE_S
    if isinstance(item, Opened) or reset or old:
        await baseline()
        feed.read_at, feed.trouble = clock(), None
    if isinstance(item, Event):
        _apply(item, apply)
    feed.heard_at = clock()


def _apply(event: Event, apply: Callable[[Mapping[str, Any]], None]) -> None:
    try:
        data = json.loads(event.data)
    except ValueError:
        return
    if isinstance(data, Mapping):
        apply(data)
