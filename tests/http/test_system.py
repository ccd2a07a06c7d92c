"""Health, the supervision tree, and killing actors on purpose."""

import asyncio

import pytest

from tests.http.client import Caller
from tests.http.conftest import Meet

PATH = "/api/system/actors"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_needs_no_token(nobody: Caller, path: str) -> None:
    answer = await nobody.get(path)
    head = await nobody.call("HEAD", path)

    assert answer.status == 200
    assert answer.json()["status"] in ("ok", "ready")
    assert (head.status, head.body) == (200, b"")


async def test_the_tree_is_told_with_every_actor(alice: Caller) -> None:
    answer = await alice.get(PATH)

    lines = {line["path"]: line for line in answer.json()}
    assert {"fabric/trust", "fabric/api", "fabric/streams/listener"} <= lines.keys()
    assert lines["fabric/trust"].keys() >= {
        "path",
        "state",
        "restarts",
        "restart_count",
        "mailbox_depth",
        "age_seconds",
    }


async def test_only_an_admin_kills(alice: Caller, meet: Meet) -> None:
    path = f"{PATH}/fabric/trust/kill"

    (await alice.post(path)).problem(403, "forbidden")
    (await meet("viewer").post(path)).problem(403, "forbidden")
    (await meet("viewer").get(PATH)).problem(403, "forbidden")


async def test_a_killed_actor_comes_back(boss: Caller) -> None:
    async def restarts() -> int:
        lines = (await boss.get(PATH)).json()
        (line,) = [line for line in lines if line["path"] == "fabric/trust"]
        count: int = line["restart_count"]
        return count

    before = await restarts()

    answer = await boss.post(f"{PATH}/fabric/trust/kill")

    assert answer.status == 202
    assert answer.json()["path"] == "fabric/trust"
    async with asyncio.timeout(10):
        while await restarts() != before + 1:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", ["fabric/none", "none", "..", "fabric/%0A", "%FF"])
async def test_an_actor_that_is_not_there_is_not_killed(
    boss: Caller, path: str
) -> None:
    (await boss.post(f"{PATH}/{path}/kill")).problem(404, "not-found")
