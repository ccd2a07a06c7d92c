"""A stream cut anywhere and resumed is the stream that was never cut."""

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fix_runtime import Served, serving
from tests.http.conftest import Still, still_instance
from tests.several.clients import STREAM, Follower, following, have_all, until
from trustfabric.actors.room import Room
from trustfabric.actors.streams import Stream, Subscription, everything

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def _frames(text: bytes) -> list[dict[str, str]]:
    """Return the events that are whole; what was not finished counts for nothing."""
    *blocks, _ = text.split(b"\n\n")
    frames = [
        dict(line.split(": ", 1) for line in block.decode().split("\n"))
        for block in blocks
    ]
    return [frame for frame in frames if "data" in frame]


class Client:
    """Reads so and so many bytes of a stream, and hangs up."""

    def __init__(
        self, runtime: Served, owner: int, http: aiohttp.ClientSession
    ) -> None:
        self._url = runtime.url + STREAM
        self._token = f"Bearer {runtime.token(owner)}"
        self._http = http

    async def read(self, position: str, size: int, **query: str) -> bytes:
        headers = {"Authorization": self._token, "Last-Event-ID": position}
        text = b""
        async with self._http.get(self._url, headers=headers, params=query) as answer:
            assert answer.status == 200
            with suppress(TimeoutError):  # there is no more for now
                async with asyncio.timeout(0.3):
                    while len(text) < size:
                        text += await answer.content.read(size - len(text))
        return text

    async def until(self, position: str, last: str) -> bytes:
        """Read on until this event has come whole."""
        headers = {"Authorization": self._token, "Last-Event-ID": position}
        text = b""
        async with self._http.get(self._url, headers=headers) as answer:
            while not any(frame["id"] == last for frame in _frames(text)):
                text += await answer.content.read(65_536)
        return text


def _moves(vm: Still, count: int) -> Iterator[None]:
    for status in itertools.islice(itertools.cycle(("unknown", "pending")), count):
        vm.move("suspect", status)
        yield


def _newest(runtime: Served, vm: Still) -> str:
    ((position,),) = runtime.rows(
        """
        SELECT h.xid || '-' || h.id FROM runtime_vm_trust_history h
         WHERE runtime_vm_instance_id = %s ORDER BY h.xid DESC, h.id DESC LIMIT 1
        """,
        vm.id,
    )
    return str(position)


async def test_cut_at_every_frame_and_inside_each(runtime: Served) -> None:
    owner = runtime.newcomer()
    vm = still_instance(runtime, owner)
    for _ in _moves(vm, 12):
        pass
    choice = random.Random(4)
    async with aiohttp.ClientSession() as http:
        client = Client(runtime, owner, http)
        last = _newest(runtime, vm)
        whole = await client.until("0-0", last)
        ends = [at + 2 for at in range(len(whole)) if whole[at : at + 2] == b"\n\n"]
        inside = [choice.randrange(1, ends[-1]) for _ in range(40)]
        around = [end + by for end in ends[:-1] for by in (-1, 0, 1)]
        for cut in sorted({*around, *inside}):
            before = _frames(await client.read("0-0", cut))
            position = before[-1]["id"] if before else "0-0"
            after = (
                [] if position == last else _frames(await client.until(position, last))
            )
            assert [f["id"] for f in before + after] == [
                f["id"] for f in _frames(whole)
            ]
            assert [json.loads(f["data"]) for f in before + after] == [
                json.loads(f["data"]) for f in _frames(whole)
            ]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("snapshot", ["false", "true"])
async def test_cut_again_and_again_while_it_goes_on(
    runtime: Served, seed: int, snapshot: str
) -> None:
    """Wherever the seam of store and memory is at that moment, nothing falls in."""
    choice = random.Random(f"{seed}/{snapshot}")
    owner = runtime.newcomer()
    vm = still_instance(runtime, owner)
    start = _newest(runtime, vm)
    seen: list[dict[str, Any]] = []
    rows = 0
    async with aiohttp.ClientSession() as http:
        client = Client(runtime, owner, http)

        async def write() -> None:
            for _ in _moves(vm, 60):
                await asyncio.sleep(choice.uniform(0, 0.02))

        writing = asyncio.create_task(write())
        position = start
        while not writing.done():
            text = await client.read(
                position, choice.randint(1, 3000), snapshot=snapshot
            )
            snapshot_ended = snapshot == "false"
            for frame in _frames(text):
                if frame["event"] == "bookmark":
                    snapshot_ended = True
                elif not snapshot_ended:
                    rows += 1
                    assert frame["id"] == position
                else:
                    seen.append(json.loads(frame["data"]))
                    position = frame["id"]
        await writing
        last = _newest(runtime, vm)
        if position != last:
            tail = _frames(await client.until(position, last))
            seen += [json.loads(frame["data"]) for frame in tail]

    ids = [one["history_id"] for one in seen]
    assert ids == sorted(set(ids))
    versions = [one["version"] for one in seen]
    assert versions == list(range(2, 2 + len(versions)))
    assert len(versions) >= 60
    assert bool(rows) == (snapshot == "true")


def _held(subscription: Subscription) -> int:
    return len(subscription._buffer)


def test_past_the_common_bound_the_slowest_lag_first() -> None:
    room = Room(10)
    slow, quick = (Subscription(Stream.TRUST, everything, 100, room) for _ in range(2))
    events: list[Any] = [object()]
    for _ in range(8):
        slow.offer(events)
    quick.offer(events)
    assert (slow.lagged, quick.lagged, room.total) == (False, False, 9)

    quick.offer(events * 2)

    assert (slow.lagged, quick.lagged) == (True, False)
    assert (_held(slow), _held(quick), room.total) == (0, 3, 3)
    assert slow.take() == []
    assert quick.take() == events * 3
    assert room.total == 0
    slow.offer(events)
    slow.close()
    assert room.total == 0


def test_what_all_hold_is_never_more_than_the_bound() -> None:
    choice = random.Random(5)
    room = Room(50)
    many = [Subscription(Stream.TRUST, everything, 20, room) for _ in range(30)]
    for _ in range(3000):
        one = choice.choice(many)
        if choice.random() < 0.2:
            one.take()
        else:
            one.offer([object()] * choice.randint(1, 30))  # type: ignore[list-item]
        assert room.total == sum(map(_held, many)) <= 50
        assert max(map(_held, many)) <= 20


async def test_without_room_for_all_they_are_told_and_miss_nothing(
    database_url: str, tmp_path: Path
) -> None:
    with serving(
        tmp_path / "data",
        database_url,
        SSE_BUFFER_EVENTS="1000",
        SSE_BUFFER_EVENTS_TOTAL="60",
    ) as small:
        vm = still_instance(small, 1000)
        followers = [Follower([small]) for _ in range(6)]
        async with following(*followers):
            await until(lambda: all(one.events for one in followers))
            small.rows(
                """
                INSERT INTO runtime_vm_trust_history (
                       runtime_vm_instance_id, current_status,
                       current_lifecycle_state, transition_reason, remediation_state,
                       remediation_attempts, registry_version, actor)
                SELECT %s, 'unknown', 'suspect', 'flood', 'remediation:none', 0, n,
                       'test' FROM generate_series(100, 149) n
                """,
                vm.id,
            )
            await have_all(small, *followers)

        assert any("lagged" in one.others for one in followers)
        assert {name for one in followers for name in one.others} == {"lagged"}
        assert [one.connections for one in followers] == [1] * 6
