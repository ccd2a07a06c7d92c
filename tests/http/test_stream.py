"""The event streams of one runtime: frames, positions, filters, owners, laggards."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fix_runtime import Served
from tests.http.client import Caller, Frame, Stream
from tests.http.conftest import Meet, Still, a_playbook, a_run, still_instance
from trustfabric.http.sse import BATCH

TRUST = "/api/trust/registry/stream"
RUNS = "/api/trust/remediation/stream"
LASTS_S = 4
"""A token that shall end: long enough to open a stream with on a busy machine."""


def _versions(frames: list[Frame]) -> list[int]:
    return [frame.data["version"] for frame in frames]


async def test_a_stream_begins_with_retry_and_has_the_contracts_fields(
    alice: Caller, vm: Still
) -> None:
    async with alice.stream(TRUST) as stream:
        first = await stream.frame()
        vm.move("restored", "trusted")
        frame = await stream.event()

    assert stream.response.headers["Content-Type"].startswith("text/event-stream")
    assert stream.response.headers["Cache-Control"] == "no-store"
    assert stream.response.headers["X-Content-Type-Options"] == "nosniff"
    assert first is not None
    assert first.fields[0][0] == "retry"
    assert [name for name, _ in frame.fields] == ["id", "event", "data"]
    assert frame.event == "trust"
    row = (await alice.get(vm.path)).json()
    shared = row.keys() - {"provenance", "updated_at"}
    assert {name: frame.data[name] for name in shared} == {n: row[n] for n in shared}
    assert "provenance" not in frame.data
    assert frame.data["previous_attestation_status"] == "pending"
    assert frame.data["previous_lifecycle_state"] == "suspect"
    assert frame.data["transition_reason"] == "moved"
    assert frame.data.keys() >= {"history_id", "triggered_at"}


async def test_provenance_comes_when_it_is_asked_for(alice: Caller, vm: Still) -> None:
    async with alice.stream(TRUST, include="provenance") as stream:
        vm.move("restored", "trusted")

        assert "provenance" in (await stream.event()).data


async def test_silence_is_broken_by_heartbeats(alice: Caller) -> None:
    async with alice.stream(TRUST) as stream:
        await stream.frame()

        beats = [await stream.frame() for _ in range(2)]

    assert all(beat is not None and beat.fields[0][0] == "" for beat in beats)


@pytest.mark.parametrize("how", ["header", "query"])
async def test_a_client_resumes_behind_what_it_saw(
    alice: Caller, vm: Still, how: str
) -> None:
    async with alice.stream(TRUST) as stream:
        for status in ("unknown", "pending", "unknown", "pending"):
            vm.move("suspect", status)
        frames = await stream.events(4)

    for at, seen in enumerate(frames):
        header = seen["id"] if how == "header" else None
        query = "" if how == "header" else f"?last_event_id={seen['id']}"
        async with alice.stream(TRUST + query, header) as stream:
            vm.move("suspect", "unknown" if at % 2 == 0 else "pending")
            rest = await stream.events(4)
        assert rest[: 3 - at] == frames[at + 1 :]
        assert _versions(rest) == list(range(at + 3, at + 7))
    assert len({frame["id"] for frame in frames}) == 4


async def test_the_header_wins_over_the_query(alice: Caller, vm: Still) -> None:
    async with alice.stream(TRUST) as stream:
        for status in ("unknown", "pending"):
            vm.move("suspect", status)
        first, second = await stream.events(2)

    path = f"{TRUST}?last_event_id=0-0"
    async with alice.stream(path, first["id"]) as stream:
        assert (await stream.event())["id"] == second["id"]


async def test_from_the_very_beginning_comes_the_whole_story(
    alice: Caller, vm: Still
) -> None:
    vm.move("suspect", "unknown")

    async with alice.stream(TRUST, "0-0") as stream:
        assert _versions(await stream.events(2)) == [1, 2]


@pytest.mark.parametrize("stream", [TRUST, RUNS])
@pytest.mark.parametrize(
    "position", ["x", "1", "1-", "-1", "1-2-3", "1.5-2", "٣-٣", "9" * 70, f"{2**63}-0"]
)
async def test_a_garbled_position_is_refused(
    alice: Caller, stream: str, position: str
) -> None:
    answer = await alice.get(stream, last_event_id=position)

    assert "last_event_id" in answer.problem(400, "malformed")["detail"]


async def test_a_position_that_was_never_given_out_resets(
    alice: Caller, vm: Still
) -> None:
    async with alice.stream(TRUST, f"{2**62}-7") as stream:
        reset = await stream.event()
        vm.move("suspect", "unknown")
        after = await stream.event()

    assert reset.event == "reset"
    assert after.event == "trust"
    async with alice.stream(TRUST, reset["id"]) as stream:
        assert (await stream.event())["id"] == after["id"]


async def test_a_snapshot_comes_first_and_ends_with_a_bookmark(
    alice: Caller, runtime: Served, vm: Still
) -> None:
    other = still_instance(runtime, alice.user)
    other.move("restored", "trusted")

    async with alice.stream(TRUST, snapshot="true") as stream:
        rows = await stream.events(2)
        bookmark = await stream.event()
        vm.move("suspect", "unknown")
        live = await stream.event()

    assert [frame.event for frame in rows] == ["trust", "trust"]
    assert [frame.data["vm_instance_id"] for frame in rows] == [vm.id, other.id]
    assert bookmark.event == "bookmark"
    assert bookmark.data["snapshot"] == 2
    assert live.data["version"] == 2
    async with alice.stream(TRUST, bookmark["id"]) as stream:
        assert (await stream.event())["id"] == live["id"]


async def test_a_snapshot_is_of_all_there_are_and_comes_page_by_page(
    alice: Caller, runtime: Served, vm: Still
) -> None:
    runtime.rows(
        """
        WITH made AS (
            INSERT INTO runtime_vm_instances
                   (server_id, instance_id, driver, desired_state, power_state)
            SELECT %s, 'many-' || n, 'libvirt', 'running', 'running'
              FROM generate_series(1, %s) n
         RETURNING id
        )
        INSERT INTO runtime_vm_trust_registry (runtime_vm_instance_id, provenance)
        SELECT id, '{"kind": "made"}' FROM made
        """,
        vm.server_id,
        2 * BATCH,
    )

    async with alice.stream(TRUST, snapshot="true") as stream:
        *rows, bookmark = await stream.events(2 * BATCH + 2)

    ids = [frame.data["vm_instance_id"] for frame in rows]
    assert ids == sorted(set(ids))
    assert bookmark.data == {"snapshot": 2 * BATCH + 1}
    assert not any("provenance" in frame.data for frame in rows)


async def test_a_snapshot_does_not_lose_what_came_before_it(
    alice: Caller, vm: Still
) -> None:
    async with alice.stream(TRUST) as stream:
        for status in ("unknown", "pending", "unknown"):
            vm.move("suspect", status)
        first, *rest = await stream.events(3)

    async with alice.stream(TRUST, first["id"], snapshot="true") as stream:
        row = await stream.event()
    async with alice.stream(TRUST, row["id"], snapshot="true") as stream:
        again, bookmark, *events = await stream.events(4)

    assert again.data["version"] == 4
    assert bookmark.event == "bookmark"
    assert events == rest


async def test_a_filter_matches_the_previous_or_the_current_value(
    alice: Caller, vm: Still
) -> None:
    async with alice.stream(TRUST, lifecycle_state="restored") as stream:
        vm.move("suspect", "unknown")
        vm.move("restored", "trusted")
        vm.move("suspect", "unknown")
        vm.move("suspect", "pending")
        vm.move("restored", "trusted")

        assert _versions(await stream.events(3)) == [3, 4, 6]
    async with alice.stream(TRUST, "0-0", attestation_status="trusted") as stream:
        assert _versions(await stream.events(3)) == [3, 4, 6]


async def test_filters_of_server_and_staleness(
    alice: Caller, runtime: Served, vm: Still
) -> None:
    other = still_instance(runtime, alice.user)
    soon = datetime.now(UTC) + timedelta(hours=1)
    async with (
        alice.stream(TRUST, server_id=other.server_id) as one,
        alice.stream(TRUST, stale="true") as stale,
    ):
        vm.move("suspect", "unknown")
        other.move("restored", "trusted", freshness_deadline=soon)
        other.move("restored", "trusted", freshness_deadline=soon - timedelta(hours=2))

        assert _versions(await one.events(2)) == [2, 3]
        assert _versions(await stale.events(1)) == [3]


async def test_what_was_fresh_when_it_happened_is_fresh_when_it_is_told_again(
    alice: Caller, vm: Still
) -> None:
    now = datetime.now(UTC)
    async with alice.stream(TRUST, stale="false") as live:
        vm.move(
            "restored",
            "trusted",
            triggered_at=now - timedelta(hours=2),
            freshness_deadline=now - timedelta(hours=1),
        )
        vm.move("suspect", "unknown", freshness_deadline=now - timedelta(hours=1))
        vm.move("suspect", "pending")

        assert _versions(await live.events(2)) == [2, 4]
    async with alice.stream(TRUST, "0-0", stale="false") as again:
        assert _versions(await again.events(3)) == [1, 2, 4]
    async with alice.stream(TRUST, "0-0", stale="true") as stale:
        assert _versions(await stale.events(1)) == [3]


async def test_s6_a_tenant_hears_nothing_of_another(
    alice: Caller, bravo: Caller, boss: Caller, vm: Still
) -> None:
    async with (
        bravo.stream(TRUST) as theirs,
        bravo.stream(TRUST, "0-0", server_id=vm.server_id, snapshot="true") as nested,
        boss.stream(TRUST, server_id=vm.server_id) as everybodys,
        alice.stream(TRUST) as own,
    ):
        await theirs.frame()
        await nested.frame()
        vm.move("suspect", "unknown")
        seen = await own.event()

        assert (await everybodys.event())["id"] == seen["id"]
        bookmark = await nested.event()
        assert bookmark.data == {"snapshot": 0}
        await theirs.silence()
        await nested.silence()
    async with bravo.stream(TRUST, seen["id"]) as resumed:
        await resumed.frame()
        await resumed.silence()


async def test_the_remediation_stream_has_the_contracts_fields(
    alice: Caller, vm: Still
) -> None:
    await a_playbook(alice, "repair", metadata={**_CLOUD, "tags": ["z", "a"]})
    async with alice.stream(RUNS, instance_id=vm.id) as stream:
        metadata = {"scenario": "s", "tag": "t::a", "policy_feedback": ["hook"]}
        run = await a_run(alice, vm, "repair", metadata=metadata)
        await alice.made(f"/api/trust/remediation/runs/{run['id']}/cancel")
        queued, ended = await stream.events(2)

    assert [name for name, _ in queued.fields] == ["id", "event", "data"]
    assert queued.event == "remediation"
    data = queued.data
    assert data["run_id"] == run["id"]
    assert data["instance_id"] == vm.id
    assert data["playbook"] == "repair"
    assert data["manifest_tags"] == ["a", "s", "t::a", "z"]
    assert data["policy_feedback"] == ["hook"]
    assert data["policy_gate"].keys() >= {"remediation_hooks", "accelerator_gates"}
    assert data["accelerators"] == []
    assert "manifest_metadata" in data
    event = data["event"]
    assert (event["event"], event["status"]) == ("status", "pending")
    assert event.keys() >= {"approval_state", "failure_reason", "message"}
    assert ended.data["event"]["status"] == "cancelled"


_CLOUD = {"method": "POST", "url": "https://cloud.example/repair"}


async def test_filters_of_the_remediation_stream(
    alice: Caller, bravo: Caller, runtime: Served, vm: Still
) -> None:
    await a_playbook(alice, "repair")
    other = still_instance(runtime, alice.user)
    first = await a_run(alice, vm, "repair")
    second = await a_run(alice, other, "repair")
    await alice.made(f"/api/trust/remediation/runs/{first['id']}/cancel")

    async def tells(*expected: tuple[int, str], **query: object) -> None:
        """Check that a stream tells of these, however late, and then of nothing."""
        async with alice.stream(RUNS, "0-0", **query) as stream:
            told = [frame.data for frame in await stream.events(len(expected))]
            assert [(one["run_id"], one["event"]["status"]) for one in told] == [
                *expected
            ]
            while (frame := await stream.frame()) is not None and frame.event:
                assert frame.event == "retry"

    one, two = first["id"], second["id"]
    all_three = (one, "pending"), (two, "pending"), (one, "cancelled")
    await tells(*all_three)
    await tells(all_three[0], all_three[2], run_id=one)
    await tells(all_three[1], instance_id=other.id)
    await tells(all_three[2], status="cancelled")
    await tells(*all_three, status="pending")  # leaving is seen
    await tells(status="running")
    async with bravo.stream(RUNS, "0-0", run_id=one) as theirs:
        await theirs.frame()
        await theirs.silence()


async def test_a_stream_ends_with_its_token(meet: Meet) -> None:
    caller = meet("viewer", exp=int(time.time()) + LASTS_S)

    async with caller.stream(TRUST) as stream:
        await stream.until_end(within_s=20)


async def test_s36_a_busy_stream_ends_with_its_token_too(
    alice: Caller, meet: Meet, vm: Still
) -> None:
    caller = meet("viewer", user=alice.user, exp=int(time.time()) + LASTS_S)
    async with caller.stream(TRUST) as stream:

        async def keep_busy() -> None:
            while True:
                vm.move("suspect", "unknown")
                await asyncio.sleep(0.1)

        busy = asyncio.create_task(keep_busy())
        try:
            frames = await stream.until_end(within_s=20)
        finally:
            busy.cancel()
    assert any(frame.event == "trust" for frame in frames)


async def test_head_of_a_stream_does_not_open_one(alice: Caller) -> None:
    for path in (TRUST, RUNS):
        assert (await alice.call("HEAD", path)).status == 405


@asynccontextmanager
async def _opened(
    caller: Caller, path: str
) -> AsyncIterator[tuple[asyncio.StreamReader, int]]:
    """Open a stream by hand; what is not read stays with the kernel.

    Yields its port too, for the runtime still closes those of other tests.
    """
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", caller.runtime.port, limit=1024
    )
    try:
        head = f"GET {path} HTTP/1.1\r\nAuthorization: Bearer {caller.token}"
        writer.write(f"{head}\r\nHost: x\r\n\r\n".encode())
        await writer.drain()
        yield reader, writer.get_extra_info("sockname")[1]
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def _connected(runtime: Served, ports: set[int]) -> set[int]:
    """Return to which of the ports the runtime's side is held open by the kernel."""
    here = f":{runtime.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split(maxsplit=4) for line in lines]
    return ports & {
        int(there.rpartition(":")[2], 16)
        for _, own, there, state, *_ in fields
        if own.endswith(here) and state in ("01", "08")
    }


async def _until(condition: Callable[[], bool], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.05)


async def test_a_client_that_disconnects_is_forgotten(
    runtime: Served, alice: Caller, vm: Still
) -> None:
    ports: set[int] = set()
    async with AsyncExitStack() as stack:
        for _ in range(20):
            reader, port = await stack.enter_async_context(_opened(alice, TRUST))
            await reader.readuntil(b"retry: ")
            ports.add(port)
        assert len(_connected(runtime, ports)) == 20

    vm.move("suspect", "unknown")
    await _until(lambda: not _connected(runtime, ports), 20)


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_s23_a_never_reading_client_is_let_go_and_hurts_nobody(
    runtime: Served, alice: Caller, vm: Still
) -> None:
    path = f"{TRUST}?include=provenance&last_event_id=0-0"
    async with _opened(alice, path) as (_, port), alice.stream(TRUST) as stream:
        await stream.frame()
        assert _connected(runtime, {port})
        # Far more than the kernel holds for a client that takes nothing.
        await asyncio.to_thread(_flood, vm)
        heard = await _until_version(stream, 602)

        assert _versions(heard) == list(range(2, 603))
        await _until(lambda: not _connected(runtime, {port}), 40)
        await stream.silence()


async def _until_version(stream: Stream, version: int) -> list[Frame]:
    """Return the trust events up to this version of the one instance."""
    heard: list[Frame] = []
    while not heard or heard[-1].data["version"] < version:
        frame = await stream.event()
        if frame.event == "trust":
            heard.append(frame)
    return heard


def _flood(vm: Still) -> None:
    """Write 600 versions with a provenance of 20 kB each."""
    vm.move("suspect", "unknown")
    vm.runtime.rows(
        """
        INSERT INTO runtime_vm_trust_history (
               runtime_vm_instance_id, current_status, current_lifecycle_state,
               transition_reason, remediation_state, remediation_attempts,
               registry_version, actor, provenance)
        SELECT %s, 'unknown', 'suspect', 'flood', 'remediation:none', 0, n, 'test',
               jsonb_build_object('x', repeat(md5(n::text), 625))
          FROM generate_series(3, 602) n
        """,
        vm.id,
    )


async def test_a_slow_client_is_told_that_it_lagged_and_misses_nothing(
    alice: Caller, vm: Still
) -> None:
    async with alice.stream(TRUST) as stream:
        await stream.frame()
        # One commit of many rows comes at once: more than the buffer holds.
        await asyncio.to_thread(_flood, vm)
        frames: list[Frame] = []
        while not frames or frames[-1].data.get("version", 0) < 602:
            frames.append(await stream.event())

    names = {frame.event for frame in frames}
    assert names == {"trust", "lagged"}
    told = [frame for frame in frames if frame.event == "trust"]
    assert _versions(told) == list(range(2, 603))


async def test_a_dead_broadcaster_costs_no_event(
    alice: Caller, boss: Caller, vm: Still
) -> None:
    async with alice.stream(TRUST) as stream:
        await stream.frame()
        vm.move("suspect", "unknown")
        killed = await boss.post("/api/system/actors/fabric/streams/broadcaster/kill")
        assert killed.status == 202
        for status in ("pending", "unknown"):
            vm.move("suspect", status)

        assert _versions(await stream.events(3)) == [2, 3, 4]


async def _collect(stream: Stream, count: int) -> list[int]:
    return _versions(await stream.events(count))


async def test_many_clients_hear_the_same_in_the_same_order(
    alice: Caller, vm: Still
) -> None:
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(alice.stream(TRUST)) for _ in range(30)
        ]
        for at in range(10):
            vm.move("suspect", "unknown" if at % 2 else "pending")
        heard = await asyncio.gather(*(_collect(one, 10) for one in streams))

    assert heard == [list(range(2, 12))] * 30
