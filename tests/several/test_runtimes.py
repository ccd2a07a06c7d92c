"""Two and three runtimes on one database: one winner a version, one sequence of events.

Each has a data directory, a port and a VM of its own; all answer for every instance.
"""

import asyncio
import random
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import aiohttp
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
from tests.several.linear import Outcome, violations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OPS = 25


async def _a_vm_of_its_own(runtime: Served, owner: int) -> None:
    token = {"Authorization": f"Bearer {runtime.token(owner)}"}
    async with aiohttp.ClientSession(runtime.url, headers=token) as http:
        async with http.post("/api/servers", json={"name": "own"}) as response:
            server = await response.json()
            assert response.status == 201, server
        async with http.post(f"/api/servers/{server['id']}/start") as response:
            assert response.status == 202, await response.text()


async def _race(
    runtimes: Sequence[Served], instances: Sequence[int], seed: int
) -> list[Writer]:
    writers = [
        Writer(f"w{seed}-{at}", runtimes, instances, random.Random(f"{seed}/{at}"))
        for at in range(6)
    ]
    await asyncio.gather(*(one.run(OPS) for one in writers))
    return writers


@pytest.mark.parametrize(("number", "seed"), [(2, 1), (3, 2)])
async def test_racing_transitions_have_one_winner_and_all_hear_the_same(
    number: int, seed: int, database_url: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        runtimes = [
            stack.enter_context(serving(tmp_path / str(at), database_url))
            for at in range(number)
        ]
        instances = [still_instance(runtimes[0], 1000 + at).id for at in range(3)]
        followers = [Follower([one]) for one in runtimes for _ in range(2)]
        async with following(*followers):
            await asyncio.gather(
                *(_a_vm_of_its_own(one, 2000 + at) for at, one in enumerate(runtimes))
            )
            writers = await _race(runtimes, instances, seed)
            await have_all(runtimes[0], *followers)

        ops = [op for one in writers for op in one.ops]
        rows = history(runtimes[0], instances)
        assert violations(ops, rows) == []
        conserved(ops, rows)
        assert Outcome.UNKNOWN not in {op.outcome for op in ops}
        assert Outcome.CONFLICT in {op.outcome for op in ops}, "nobody raced"
        assert [one.connections for one in followers] == [1] * len(followers)
        owners = runtimes[0].rows(
            """
            SELECT DISTINCT runtime_owner FROM runtime_vm_instances
             WHERE runtime_owner IS NOT NULL
            """
        )
        assert len(owners) == number


async def test_one_is_killed_in_the_race_and_its_clients_go_on_elsewhere(
    database_url: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        first, second, third = runtimes = [
            stack.enter_context(serving(tmp_path / str(at), database_url))
            for at in range(3)
        ]
        instances = [still_instance(first, 1000 + at).id for at in range(3)]
        stays = Follower([first])
        moves = [Follower([second, third, first]), Follower([second, first])]
        async with following(stays, *moves):
            await until(lambda: all(len(one.events) > 2 for one in moves))
            await _a_vm_of_its_own(second, 2000)
            race = asyncio.create_task(_race(runtimes, instances, 3))
            await asyncio.sleep(0.4)
            await asyncio.to_thread(second.stop, signal.SIGKILL)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(second.start)
            ops = [op for one in await race for op in one.ops]
            back = Follower([second])
            async with following(back):
                await have_all(first, stays, back, *moves)

        rows = history(first, instances)
        assert violations(ops, rows) == []
        conserved(ops, rows)
        assert all(len(one.visited) > 1 for one in moves)
        assert stays.connections == 1
        assert not any(one.others for one in (stays, back, *moves))


async def test_a_loser_is_told_the_row_that_won(
    database_url: str, tmp_path: Path
) -> None:
    with (
        serving(tmp_path / "0", database_url) as one,
        serving(tmp_path / "1", database_url) as other,
    ):
        instance = still_instance(one, 1000).id
        told = "SELECT attestation_status, version FROM runtime_vm_trust_registry"
        ((status_now, version),) = one.rows(told)
        body = {
            "attestation_status": status_now,
            "lifecycle_state": "suspect",
            "expected_version": version,
        }
        path = f"/api/trust/registry/{instance}/transition"

        async def write(runtime: Served, reason: str) -> tuple[int, dict[str, object]]:
            async with (
                aiohttp.ClientSession(runtime.url, headers=admin(runtime)) as http,
                http.post(path, json={**body, "transition_reason": reason}) as answer,
            ):
                return answer.status, await answer.json()

        answers = await asyncio.gather(
            *(write(at, f"{n}") for n in range(10) for at in (one, other))
        )

        statuses = [status for status, _ in answers]
        assert sorted(statuses) == [200] + [409] * 19
        winner = next(body for status, body in answers if status == 200)
        for status, refused in answers:
            if status == 409:
                # The runtime's own verdict may have come after the winner.
                current = refused["current"]
                assert isinstance(current, dict)
                assert current["version"] >= winner["version"] == version + 1
                if current["version"] == winner["version"]:
                    assert current == winner
