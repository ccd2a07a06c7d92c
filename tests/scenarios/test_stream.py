import asyncio
import json

import pytest
from aiohttp import web

from tests.scenarios.host import serving, streamed
from trustfabric.scenarios.client import Person
from trustfabric.scenarios.stream import NotSeenError, Recorder


def frame(number: int, name: str = "trust", **data: object) -> bytes:
    text = json.dumps({"history_id": number, **data} if name == "trust" else data)
    return f"id: {number}\nevent: {name}\ndata: {text}\n\n".encode()


async def test_a_cut_stream_is_resumed_behind_the_last_whole_event() -> None:
    asked: list[tuple[str | None, str | None]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen = request.headers.get("Last-Event-ID")
        asked.append((seen, request.query.get("snapshot")))
        match len(asked):
            case 1:
                return await streamed(
                    request, b"retry: 1\n\n: hello\n\n" + frame(1) + frame(2)[:-1]
                )
            case 2:
                return web.Response(status=503)
            case 3:
                return await streamed(request, frame(2) + frame(3))
            case _:
                await asyncio.sleep(10)
                return web.Response()

    async with (
        serving(answer) as url,
        Person(url, "t", patience_s=1) as person,
        Recorder(person, "/stream", snapshot="true").running() as recorder,
    ):
        await recorder.wait_for(
            lambda data: data["history_id"] == 3, within_s=5, what="the third"
        )
        assert [event.id for event in recorder.events] == ["1", "2", "3"]
    assert asked[:3] == [(None, "true"), ("1", None), ("1", None)]


async def test_only_events_are_kept_but_their_position_counts() -> None:
    asked: list[str | None] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Last-Event-ID"))
        if len(asked) > 1:
            await asyncio.sleep(10)
        parts = (frame(5, "bookmark", snapshot=0), frame(6, "reset", reason="pruned"))
        return await streamed(request, b"".join(parts) + frame(7))

    async with (
        serving(answer) as url,
        Person(url, "t", patience_s=1) as person,
        Recorder(person, "/stream").running() as recorder,
    ):
        await recorder.wait_for(lambda _: True, within_s=5, what="anything")
        assert [event.id for event in recorder.events] == ["7"]
        assert recorder.resets == 1
        while len(asked) < 2:
            await asyncio.sleep(0.01)
    assert asked == [None, "7"]


async def test_what_never_comes_is_named() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = await streamed(request, frame(1))
        await asyncio.sleep(10)
        return response

    async with (
        serving(answer) as url,
        Person(url, "t", patience_s=1) as person,
        Recorder(person, "/stream").running() as recorder,
    ):
        with pytest.raises(NotSeenError, match=r"within 0\.1 s: the restoration"):
            await recorder.wait_for(
                lambda data: data["history_id"] == 2,
                within_s=0.1,
                what="the restoration",
            )
