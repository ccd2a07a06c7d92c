"""Who comes back to a position that was pruned is told so once, and goes on."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from tests.fix_runtime import Served, serving
from tests.http.client import Caller
from tests.http.conftest import Still, still_instance
from trustfabric.db import retention
from trustfabric.db.session import Database

pytestmark = [pytest.mark.slow]

TRUST = "/api/trust/registry/stream"


async def _prune(runtime: Served, before: datetime | None = None) -> None:
    """Prune as another runtime on the same database would."""
    database = await Database.open(runtime.database_url, pool_size=1)
    try:
        deleted = 1
        while deleted:
            async with database.writing() as conn:
                deleted = await retention.prune(conn, before or datetime.now(UTC))
    finally:
        await database.close()


@pytest.fixture
def own(own_runtime: Served, http: aiohttp.ClientSession) -> Caller:
    return Caller(own_runtime, http, 1000, own_runtime.token(1000))


@pytest.fixture
def moved(own_runtime: Served, own: Caller) -> Still:
    """An instance with five versions."""
    vm = still_instance(own_runtime, own.user)
    for at in range(4):
        vm.move("suspect", "unknown" if at % 2 else "pending")
    return vm


async def _positions(caller: Caller, count: int) -> list[str]:
    async with caller.stream(TRUST, "0-0") as stream:
        return [event["id"] for event in await stream.events(count)]


async def test_one_reset_then_the_head(
    own: Caller, own_runtime: Served, moved: Still
) -> None:
    ids = await _positions(own, 5)
    await _prune(own_runtime)

    async with own.stream(TRUST, ids[1]) as stream:
        reset = await stream.event()
        moved.move("suspect", "unknown")
        after = await stream.event()

    assert reset.event == "reset"
    assert reset.data["reason"] == "position pruned"
    assert "list" in reset.data["action"]
    assert reset["id"] == ids[-1]
    assert (after.event, after.data["version"]) == ("trust", 6)
    for position in (reset["id"], after["id"]):
        async with own.stream(TRUST, position) as stream:
            moved.move("suspect", "unknown")
            assert (await stream.event()).event == "trust"


async def test_positions_behind_the_horizon_resume_as_ever(
    own: Caller, own_runtime: Served, moved: Still
) -> None:
    ids = await _positions(own, 5)
    await _prune(own_runtime)
    left = [
        position
        for (position,) in own_runtime.rows(
            "SELECT h.xid || '-' || h.id FROM runtime_vm_trust_history h ORDER BY h.id"
        )
    ]

    assert left == ids[4:]
    # The newest that went is the horizon: who has seen it has missed nothing.
    for position, expected in ((ids[3], [5, 6]), (ids[4], [6])):
        async with own.stream(TRUST, position) as stream:
            if expected[-1] == 6 and position == ids[3]:
                moved.move("suspect", "unknown")
            events = await stream.events(len(expected))
            assert [one.event for one in events] == ["trust"] * len(expected)
            assert [one.data["version"] for one in events] == expected


async def test_with_a_snapshot_the_reset_comes_before_it(
    own: Caller, own_runtime: Served, moved: Still
) -> None:
    ids = await _positions(own, 5)
    await _prune(own_runtime)

    async with own.stream(TRUST, ids[0], snapshot="true") as stream:
        frames = await stream.events(3)

    assert [one.event for one in frames] == ["reset", "trust", "bookmark"]
    assert frames[1].data["version"] == 5
    assert {one["id"] for one in frames} == {ids[-1]}


async def test_what_is_pruned_in_the_middle_of_catching_up_resets_too(
    own: Caller, own_runtime: Served, moved: Still
) -> None:
    ids = await _positions(own, 5)
    pruning = asyncio.create_task(_prune(own_runtime))
    seen: list[str] = []
    for _ in range(20):
        async with own.stream(TRUST, ids[0]) as stream:
            first = await stream.event()
            events = [] if first.event == "reset" else await stream.events(3)
        if first.event == "reset":
            break
        seen = [first["id"], *(one["id"] for one in events)]
        assert seen == ids[1:]
    await pruning
    async with own.stream(TRUST, ids[0]) as stream:
        assert (await stream.event()).event == "reset"


async def test_time_travel_before_the_horizon_is_gone(
    own: Caller, own_runtime: Served, moved: Still
) -> None:
    early = datetime.now(UTC) - timedelta(hours=1)
    for path in ("/api/trust/registry", moved.path):
        answer = await own.get(path, at=early.isoformat())
        assert answer.status in (200, 404)
    await _prune(own_runtime)

    for path in ("/api/trust/registry", moved.path):
        problem = (await own.get(path, at=early.isoformat())).problem(410, "pruned")
        assert problem["horizon"] in problem["detail"]
        kept = await own.get(path, at=problem["horizon"])
        assert kept.status == 200
        row = kept.json()[0] if path.endswith("registry") else kept.json()
        assert row["version"] == 5


async def test_the_runtime_prunes_by_itself(database_url: str, tmp_path: Path) -> None:
    two_seconds = str(2 / 86_400)
    with serving(
        tmp_path / "short", database_url, HISTORY_RETENTION_DAYS=two_seconds
    ) as served:
        vm = still_instance(served, 77)
        for _ in range(3):
            vm.move("suspect", "pending")
        query = "SELECT count(*) FROM runtime_vm_trust_history"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while served.rows(query) != [(1,)]:
                    await asyncio.sleep(0.1)
        ((stream,),) = served.rows("SELECT stream FROM retention_horizons")

    assert stream == "trust"
