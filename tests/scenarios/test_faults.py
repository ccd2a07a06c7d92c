import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.scenarios.host import serving
from trustfabric.scenarios import faults
from trustfabric.scenarios.client import Person
from trustfabric.scenarios.faults import ExecutorOutage, came_back, kill_actor
from trustfabric.scenarios.steps import FailedError

VM = {"path": "fabric/vms/7", "epoch": 1, "state": "running"}


class Tree:
    """Answers like the runtime's tree, with an actor that a kill renews or not."""

    def __init__(self, *, mortal: bool = False) -> None:
        self.actors: list[dict[str, Any]] = [dict(VM)]
        self.killed: list[str] = []
        self._mortal = mortal

    async def answer(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(self.actors)
        path = request.path.removeprefix("/api/system/actors/").removesuffix("/kill")
        self.killed.append(path)
        if self._mortal:
            self.actors.clear()
        else:
            self.actors[0]["epoch"] += 1
        return web.json_response({}, status=202)


@pytest.mark.parametrize("pattern", ["fabric/vms/7", "fabric/vms/*", "*7"])
async def test_the_one_actor_that_a_pattern_names_is_killed(pattern: str) -> None:
    tree = Tree()
    async with serving(tree.answer) as url, Person(url, "t", patience_s=1) as admin:
        killed = await kill_actor(admin, pattern)
        await came_back(admin, killed, 5)
    assert tree.killed == ["fabric/vms/7"]


async def test_a_kill_of_nobody_is_no_scenario(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_FIND_S", 0)
    async with (
        serving(Tree().answer) as url,
        Person(url, "t", patience_s=1) as admin,
    ):
        with pytest.raises(FailedError, match="no actor fabric/nobody"):
            await kill_actor(admin, "fabric/nobody")


async def test_an_actor_that_stays_away_is_found_out() -> None:
    tree = Tree(mortal=True)
    async with serving(tree.answer) as url, Person(url, "t", patience_s=1) as admin:
        killed = await kill_actor(admin, "fabric/vms/7")
        with pytest.raises(FailedError, match=r"gone 0\.2 s after it was killed"):
            await came_back(admin, killed, 0.2)


async def test_a_runs_actor_need_not_come_back() -> None:
    tree = Tree(mortal=True)
    tree.actors[0]["path"] = "fabric/remediation/runs/run:3"
    async with serving(tree.answer) as url, Person(url, "t", patience_s=1) as admin:
        killed = await kill_actor(admin, "fabric/remediation/runs/run:3")
        await came_back(admin, killed, 1)


async def test_an_outage_lasts_until_the_last_who_holds_it(tmp_path: Path) -> None:
    place = tmp_path / "runs"
    place.mkdir()
    (place / "1-1").touch()
    outage = ExecutorOutage(tmp_path)
    let_go = asyncio.Event()

    async def second() -> None:
        async with outage.lasting():
            await let_go.wait()

    async with outage.lasting():
        holder = asyncio.create_task(second())
        await asyncio.sleep(0)
        with pytest.raises(FileExistsError):
            place.mkdir()
        first = asyncio.create_task(_leave(outage))
        await asyncio.sleep(0.01)
        let_go.set()
        await holder_held(place)
    await asyncio.gather(holder, first)
    assert [one.name for one in place.iterdir()] == ["1-1"]


async def _leave(outage: ExecutorOutage) -> None:
    async with outage.lasting():
        pass


async def holder_held(place: Path) -> None:
    assert place.is_file()
