"""A server's console over HTTP, where it has none and where its database is all."""

import asyncio

import pytest

from tests.fix_runtime import Served
from tests.http.client import Caller, Json
from tests.http.conftest import Meet

PATH = "/api/servers"


@pytest.fixture
async def launched(alice: Caller) -> Json:
    """A server whose VM runs, on libvirt's test driver."""
    config = {"vm": {"memory_mib": 64, "vcpu_count": 1}}
    server = await alice.made(PATH, {"name": "web", "config": config})
    await alice.made(f"{PATH}/{server['id']}/start")
    async with asyncio.timeout(20):
        while True:
            now: Json = (await alice.get(f"{PATH}/{server['id']}")).json()
            if now["status"] == "running":
                return now
            await asyncio.sleep(0.05)


def logs(server: Json) -> str:
    return f"{PATH}/{server['id']}/vm/logs"


async def test_a_simulated_console_ends_with_the_reason(
    alice: Caller, launched: Json
) -> None:
    async with alice.stream(f"{logs(launched)}/stream") as stream:
        frames = await stream.until_end(within_s=20)

    retry, end = frames
    assert retry.event == "retry"
    assert end.event == "end"
    assert "no console" in end.data["message"]


async def test_who_was_told_the_end_need_not_come_back(
    alice: Caller, launched: Json
) -> None:
    async with alice.stream(f"{logs(launched)}/stream") as stream:
        end = await stream.event()

    again = await alice.call(
        "GET", f"{logs(launched)}/stream", headers={"Last-Event-ID": end["id"]}
    )
    assert (again.status, again.body) == (204, b"")


async def test_the_tail_says_where_live_lines_go_on(
    alice: Caller, launched: Json
) -> None:
    tail = (await alice.get(logs(launched))).json()

    instance, _, seq = tail["last_event_id"].partition(".")
    assert int(instance) > 0
    assert seq == "0"
    assert tail["why_empty"]


async def test_what_is_no_id_of_this_stream_is_refused(
    alice: Caller, launched: Json
) -> None:
    for bad in ("x", "1", "1.", "1.2.3", "1.begin", "-1.2", "1." + "9" * 40):
        answer = await alice.get(f"{logs(launched)}/stream", last_event_id=bad)
        answer.problem(400, "malformed")


async def test_another_tenants_console_is_not_there(
    bravo: Caller, launched: Json
) -> None:
    answer = await bravo.get(f"{logs(launched)}/stream")

    answer.problem(404, "not-found")


async def test_a_server_without_a_vm_has_no_console(alice: Caller) -> None:
    server = await alice.made(PATH, {"name": "web"})

    answer = await alice.get(f"{logs(server)}/stream")

    answer.problem(404, "not-found")


async def test_a_viewer_may_read_it(
    runtime: Served, meet: Meet, alice: Caller, launched: Json
) -> None:
    viewer = meet("viewer", alice.user)

    assert (await viewer.get(logs(launched))).status == 200


@pytest.mark.parametrize("restart", ["sometimes", "", 1, True])
async def test_a_restart_policy_that_nobody_knows_is_refused(
    alice: Caller, restart: object
) -> None:
    body = {"name": "web", "config": {"vm": {"restart": restart}}}

    answer = await alice.post(PATH, body)

    assert "config.vm.restart" in answer.problem(422, "invalid")["detail"]


SEED = {"user_data": "#cloud-config\npassword: hunter2\n"}


async def test_what_cloud_init_is_given_is_never_shown(alice: Caller) -> None:
    body = {"name": "seeded", "config": {"vm": {"cloud_init": SEED}}}

    made = await alice.made("/api/servers", body)

    path = f"/api/servers/{made['id']}"
    assert made["config"]["vm"]["cloud_init"] == {"user_data": "***"}
    for place in (path, "/api/servers", f"{path}/vm"):
        assert b"hunter2" not in (await alice.get(place)).body


async def test_a_seed_that_cloud_init_would_ignore_is_refused(alice: Caller) -> None:
    body = {"name": "x", "config": {"vm": {"cloud_init": {"user_data": "hello"}}}}

    answer = await alice.post(PATH, body)

    detail = answer.problem(422, "invalid")["detail"]
    assert "config.vm.cloud_init.user_data" in detail
