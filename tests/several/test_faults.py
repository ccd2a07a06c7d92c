"""Faults under a flood of transitions: nothing lost, nothing twice, for anybody."""

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import psycopg
import pytest

from tests.fix_runtime import Served, serving
from tests.http.conftest import still_instance
from tests.several.clients import (
    Follower,
    Writer,
    admin,
    conserved,
    following,
    have_all,
    history,
    until,
)
from tests.several.linear import Op, Outcome, violations
from trustfabric.db.embedded import start_embedded
from trustfabric.db.migrate import migrate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OPS = 40
Fault = Callable[[Served, random.Random], Awaitable[None]]

TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid()
       AND application_name LIKE %s
"""
KILLED = "fabric/streams/listener", "fabric/streams/broadcaster", "fabric/trust"


async def _listener_terminated(runtime: Served, _: random.Random) -> None:
    await asyncio.to_thread(runtime.rows, TERMINATE, "trustfabric listener")


async def _all_terminated(runtime: Served, _: random.Random) -> None:
    await asyncio.to_thread(runtime.rows, TERMINATE, "%")


async def _actor_killed(runtime: Served, choice: random.Random) -> None:
    path = f"/api/system/actors/{choice.choice(KILLED)}/kill"
    async with (
        aiohttp.ClientSession(runtime.url, headers=admin(runtime)) as http,
        http.post(path) as response,
    ):
        assert response.status in (202, 404, 503), await response.text()


async def _rubbish(runtime: Served, choice: random.Random) -> None:
    for channel in ("runtime_vm_trust_transition", "runtime_vm_remediation"):
        for text in ("", "{", '{"id": null}', "\x7f" * 7000, str(choice.random())):
            await asyncio.to_thread(
                runtime.rows, "SELECT pg_notify(%s, %s)", channel, text
            )


def said(writers: Sequence[Writer]) -> list[Op]:
    return [op for one in writers for op in one.ops]


async def _flood(
    runtime: Served, seed: str, fault: Fault, times: int
) -> tuple[list[Op], Follower, Follower]:
    """Write from several clients while faults come; return what was said and heard."""
    choice = random.Random(seed)
    instances = [still_instance(runtime, 1000 + at).id for at in range(4)]
    writers = [
        Writer(f"w{at}", [runtime], instances, random.Random(f"{seed}/{at}"))
        for at in range(4)
    ]
    stays = Follower([runtime])
    cuts = Follower([runtime], cuts=random.Random(f"{seed}/cuts"))
    async with following(stays, cuts):
        flood = asyncio.gather(*(one.run(OPS) for one in writers))
        await until(lambda: any(op.outcome is Outcome.DONE for op in said(writers)))
        for _ in range(times):
            await asyncio.sleep(choice.uniform(0.02, 0.25))
            await fault(runtime, choice)
        await flood
        await have_all(runtime, stays, cuts)
    ops = said(writers)
    rows = history(runtime, instances)
    assert violations(ops, rows) == []
    conserved(ops, rows)
    assert cuts.connections > 1
    assert not {*stays.others, *cuts.others} - {"lagged"}
    return ops, stays, cuts


@pytest.mark.parametrize(
    ("fault", "times", "stays_connected", "seed"),
    [
        pytest.param(_listener_terminated, 10, True, 1, id="listener-terminated"),
        pytest.param(_all_terminated, 8, False, 1, id="all-terminated"),
        *(
            pytest.param(_actor_killed, 8, False, seed, id=f"actors-killed-{seed}")
            for seed in (1, 2, 3, 4)
        ),
        pytest.param(_rubbish, 4, True, 1, id="rubbish-notified"),
    ],
)
async def test_nothing_is_lost_or_told_twice(
    own_runtime: Served,
    fault: Fault,
    times: int,
    stays_connected: bool,  # noqa: FBT001
    seed: int,
) -> None:
    _, stays, _ = await _flood(own_runtime, f"{fault.__name__}/{seed}", fault, times)

    if stays_connected:
        assert stays.connections == 1


@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_postgresql_restarted_under_a_running_runtime(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, how: str
) -> None:
    home = tmp_path_factory.mktemp("pg")
    server = await start_embedded(home)
    await migrate(server.url)

    async def restart(_: Served, __: random.Random) -> None:
        nonlocal server
        pid_file = home / "pg" / "postmaster.pid"
        if how == "immediate":
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
        await server.stop()
        await until(lambda: not pid_file.exists() or how == "immediate")
        server = await start_embedded(home)

    try:
        with serving(tmp_path / "data", server.url) as runtime:
            _, stays, _ = await _flood(runtime, how, restart, 2)
            assert runtime._process is not None
            assert runtime._process.poll() is None
            assert stays.events
    finally:
        await server.stop()


async def test_killed_in_the_flood_the_runtime_goes_on_where_it_was(
    own_runtime: Served,
) -> None:
    async def kill(runtime: Served, _: random.Random) -> None:
        await asyncio.to_thread(runtime.stop, signal.SIGKILL)
        await asyncio.to_thread(runtime.start)

    await _flood(own_runtime, "kill", kill, 1)


async def test_the_link_to_postgresql_is_gone_while_nobody_writes(
    own_runtime: Served,
) -> None:
    """What comes from elsewhere while every connection is cut is told afterwards."""
    vm = still_instance(own_runtime, 1000)
    follower = Follower([own_runtime])
    async with following(follower):
        await until(lambda: len(follower.events) == 1)
        for status in ("unknown", "pending") * 3:
            with suppress(psycopg.Error):
                own_runtime.rows(TERMINATE, "%")
            vm.move("suspect", status)
        await have_all(own_runtime, follower)
