"""The bottom line counts what is true, and never shows old figures as fresh."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.cli.host import (
    Cut,
    Hold,
    Host,
    frame,
    registry_row,
    run_row,
    status_event,
    trust_event,
)
from trustfabric.cli import status
from trustfabric.cli.client import Client
from trustfabric.cli.follow import Reconnect
from trustfabric.cli.session import Connection
from trustfabric.cli.status import Fleet

TRUST = "/api/trust/registry/stream"
RUNS = "/api/trust/remediation/stream"
SOON = "retry: 10\n\n"
BEAT = ": beat\n\n"


def shown(fleet: Fleet, now: float) -> str:
    return "".join(text for _, text in status.line(fleet, now))


def a_live_fleet() -> Fleet:
    fleet = Fleet()
    for feed in (fleet.trust, fleet.remediation):
        feed.heard_at, feed.trouble = 100.0, None
    fleet.saw_instance(registry_row(1))
    fleet.saw_instance(registry_row(2, lifecycle_state="quarantined"))
    fleet.saw_run(42, "pending", "pending")
    return fleet


def test_a_live_line_counts_and_says_when_it_heard() -> None:
    line = shown(a_live_fleet(), 103.0)

    for text in ("live, heard 3 s ago", "2 instances", "1 restored", "1 quarantined"):
        assert text in line
    assert "1 active runs  1 waiting for approval" in line


def test_without_a_baseline_nothing_is_counted() -> None:
    line = shown(Fleet(), 100.0)

    assert "no data yet" in line
    assert "instances" not in line


@pytest.mark.parametrize("feed", ["trust", "remediation"])
def test_one_lost_stream_makes_the_whole_line_old(feed: str) -> None:
    fleet = a_live_fleet()
    getattr(fleet, feed).trouble = "connection refused"

    line = shown(fleet, 142.0)

    assert "not live, 42 s old" in line
    assert "connection refused" in line
    assert "● live" not in line


def test_silence_past_the_heartbeat_is_not_live() -> None:
    fleet = a_live_fleet()

    assert "● live" in shown(fleet, 119.0)
    assert "not live" in shown(fleet, 121.0)


def test_age_is_that_of_the_older_stream() -> None:
    fleet = a_live_fleet()
    fleet.trust.heard_at = 110.0

    assert "heard 12 s ago" in shown(fleet, 112.0)


def test_s16_trouble_is_escaped() -> None:
    fleet = a_live_fleet()
    fleet.trust.trouble = "\x1b[2J"

    assert "\x1b" not in shown(fleet, 101.0)


def test_an_older_version_never_replaces_a_newer() -> None:
    fleet = Fleet()
    fleet.saw_instance(registry_row(1, version=5, lifecycle_state="quarantined"))

    fleet.saw_instance(registry_row(1, version=4, lifecycle_state="restored"))

    assert fleet.instances == {1: (5, "quarantined")}


def test_an_ended_run_is_no_longer_counted() -> None:
    fleet = Fleet()
    fleet.saw_run(42, "running", "approved")

    fleet.saw_run(42, "completed", "approved")

    assert fleet.runs == {}


@asynccontextmanager
async def following(host: Host, clock: Callable[[], float]) -> AsyncIterator[Fleet]:
    fleet = Fleet()
    client = Client(Connection(host.url, 5.0))
    reconnect = Reconnect(jitter=lambda: 0.0, patient=True)
    tasks = [
        asyncio.create_task(follow(client, fleet, clock, reconnect))
        for follow in (status.follow_trust, status.follow_runs)
    ]
    try:
        yield fleet
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await client.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


async def test_the_streams_carry_the_figures_on_from_the_lists(host: Host) -> None:
    host.lists("/api/trust/registry", [registry_row(7, version=4), registry_row(8)])
    host.lists("/api/trust/remediation/runs", [run_row(41), run_row(42)])
    go = asyncio.Event()
    host.streams(TRUST, [BEAT, go, frame("a", "trust", trust_event(7, 5)), Hold()])
    ended = frame("a", "remediation", status_event("completed", "approved", run=42))
    host.streams(RUNS, [BEAT, go, ended, Hold()])

    async with following(host, lambda: 50.0) as fleet:
        await until(lambda: "2 active runs" in shown(fleet, 50.0))
        assert "2 restored" in shown(fleet, 50.0)
        go.set()
        await until(lambda: "1 quarantined" in shown(fleet, 50.0))
        await until(lambda: "1 active runs" in shown(fleet, 50.0))


async def test_after_a_cut_the_lists_are_read_again(host: Host) -> None:
    host.lists("/api/trust/registry", [registry_row(7)])
    host.lists("/api/trust/remediation/runs", [])
    host.streams(RUNS, [BEAT, Hold()])
    host.streams(TRUST, [SOON, BEAT, Cut()], [SOON, BEAT, Hold()])

    async with following(host, lambda: 50.0) as fleet:
        await until(lambda: len(host.connections(TRUST)) == 2)
        host.lists("/api/trust/registry", [])
        await until(lambda: "● live" in shown(fleet, 50.0))

    assert len(host.connections("/api/trust/registry")) >= 2


async def test_a_refusal_is_shown(host: Host) -> None:
    host.refuses("GET", TRUST, 401, "unauthenticated")
    host.refuses("GET", RUNS, 401, "unauthenticated")

    async with following(host, lambda: 50.0) as fleet:
        await until(lambda: "refused: unauthenticated" in shown(fleet, 50.0))


async def test_an_instance_that_is_gone_leaves_the_line_in_time(host: Host) -> None:
    host.lists("/api/trust/registry", [registry_row(7), registry_row(8)])
    host.lists("/api/trust/remediation/runs", [])
    go = asyncio.Event()
    host.streams(TRUST, [BEAT, go, BEAT, Hold()])
    host.streams(RUNS, [BEAT, Hold()])
    now = 50.0

    async with following(host, lambda: now) as fleet:
        await until(lambda: "2 instances" in shown(fleet, now))
        host.lists("/api/trust/registry", [registry_row(7)])
        now += status.BASELINE_S + 1
        go.set()
        await until(lambda: "1 instances" in shown(fleet, now))
