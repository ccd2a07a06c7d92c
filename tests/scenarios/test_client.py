import asyncio

import pytest
from aiohttp import web

from tests.scenarios.host import serving
from trustfabric.errors import UnavailableError
from trustfabric.scenarios.client import Person, RefusedError
from trustfabric.scenarios.runtime import free_port


async def test_a_refusal_carries_status_kind_and_problem() -> None:
    async def refuse(_: web.Request) -> web.Response:
        problem = {"type": "/problems/version-conflict", "detail": "at 3, not 2"}
        return web.json_response(problem, status=409)

    async with serving(refuse) as url, Person(url, "t", patience_s=1) as person:
        with pytest.raises(RefusedError, match="at 3, not 2") as refused:
            await person.post("/x")
    assert (refused.value.status, refused.value.slug) == (409, "version-conflict")


async def test_what_passes_is_waited_out_and_asked_again() -> None:
    calls = 0

    async def recover(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        assert request.headers["Authorization"] == "Bearer t"
        return web.json_response({"calls": calls}, status=503 if calls < 3 else 200)

    async with serving(recover) as url, Person(url, "t", patience_s=5) as person:
        assert await person.get("/x") == {"calls": 3}


async def test_a_host_that_is_away_is_waited_for() -> None:
    port = free_port()

    async def here(_: web.Request) -> web.Response:
        return web.json_response("here")

    async with Person(f"http://127.0.0.1:{port}", "t", patience_s=5) as person:
        asking = asyncio.create_task(person.get("/x"))
        await asyncio.sleep(0.15)
        async with serving(here, port):
            assert await asking == "here"


async def test_patience_ends() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with Person(url, "t", patience_s=0) as person:
        with pytest.raises(UnavailableError):
            await person.get("/x")


async def test_what_is_asked_once_is_asked_once() -> None:
    calls = 0

    async def fail(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.json_response({}, status=503)

    async with serving(fail) as url, Person(url, "t", patience_s=5) as person:
        with pytest.raises(UnavailableError):
            await person.once("/x")
    assert calls == 1


async def test_a_list_is_read_over_all_of_its_pages() -> None:
    async def page(request: web.Request) -> web.Response:
        if request.query.get("cursor"):
            return web.json_response([3])
        link = f'<{request.url.with_query({"cursor": "2"})}>; rel="next"'
        return web.json_response([1, 2], headers={"Link": link})

    async with serving(page) as url, Person(url, "t", patience_s=1) as person:
        assert await person.get("/x") == [1, 2, 3]
