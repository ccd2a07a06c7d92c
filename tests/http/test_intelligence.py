"""Scores over HTTP."""

from tests.fix_fabric import until
from tests.http.client import Caller, Json
from tests.http.conftest import Still


def path(server: int) -> str:
    return f"/api/intelligence/servers/{server}/scores"


async def scored(caller: Caller, server: int, *lines: str) -> list[Json]:
    async def look() -> list[Json] | None:
        found: list[Json] = (await caller.get(path(server))).json()
        wanted = ["base +85", *lines]
        return found if found and found[0]["notes"] == wanted else None

    return await until(look, f"scores with {lines}")


async def test_each_capability_has_its_score(alice: Caller) -> None:
    server = await alice.made(
        "/api/servers", {"name": "web", "config": {"capabilities": ["gpu"]}}
    )

    rows = await scored(alice, server["id"])

    assert [row["capability"] for row in rows] == ["gpu", "runtime"]
    assert (rows[0]["score"], rows[0]["status"]) == (85, "healthy")
    assert rows[0].keys() >= {"backend", "tier", "confidence", "evidence"}


async def test_the_lines_of_a_distrusted_one_add_up(alice: Caller, vm: Still) -> None:
    vm.move("quarantined", "untrusted")

    (row,) = await scored(
        alice, vm.server_id, "attestation:untrusted -40", "lifecycle:quarantined -25"
    )

    points = [int(note.rsplit(" ", 1)[1]) for note in row["notes"]]
    assert sum(points) == row["score"] == 20
    assert row["status"] == "critical"
    assert row["evidence"]["lifecycle_state"] == "quarantined"


async def test_others_scores_are_not_there(alice: Caller, bravo: Caller) -> None:
    server = await alice.made("/api/servers", {"name": "web"})

    (await bravo.get(path(server["id"]))).problem(404, "not-found")
    (await alice.get(path(2**40))).problem(404, "not-found")
    (await alice.get(path(server["id"]), limit=1)).problem(400, "malformed")
