"""A run's token: its own server's routes while its lease lasts, and nothing else."""

import pytest

from tests.fix_runtime import Served
from tests.http.client import Caller
from tests.http.conftest import run_becomes, still_instance
from tests.http.routes import ALL, NONE, RUN
from tests.http.working import Working

RUNS = "/api/trust/remediation/runs"


async def test_a_program_sees_and_moves_its_own_server(working: Working) -> None:
    program, server = working.program, working.server

    assert (await program.get(server)).json()["id"] == working.vm.server_id
    (instance,) = (await program.get(f"{server}/vm")).json()["instances"]
    assert instance["id"] == working.vm.id
    assert (await program.post(f"{server}/vm/attest")).status == 202
    assert (await program.post(f"{server}/start")).status == 409  # it runs
    assert (await program.post(f"{server}/stop")).status == 202


async def test_its_own_run_does_not_block_its_redeployment(working: Working) -> None:
    answer = await working.program.post(f"{working.server}/redeploy")

    assert answer.status == 202


@pytest.mark.parametrize(("method", "path"), ALL)
async def test_a_program_reaches_no_other_route(
    working: Working, runtime: Served, method: str, path: str
) -> None:
    other = still_instance(runtime, working.program.user)  # of the same owner
    own = working.run["id"]
    ids = {working.vm.id, working.run["id"], other.id, other.server_id}

    for number in (NONE, *ids):
        if number == working.vm.server_id and "/servers/" in path:
            continue
        if (method, path) == ("POST", f"{RUN}/artifacts") and number == own:
            continue
        answer = await working.program.call(
            method, path.replace(str(NONE), str(number))
        )
        answer.problem(403, "forbidden")


@pytest.mark.parametrize("tail", ["/placement", "/vm/logs", "/release"])
async def test_a_program_may_not_do_everything_to_its_server(
    working: Working, tail: str
) -> None:
    method = "POST" if tail == "/release" else "GET"

    (await working.program.call(method, working.server + tail)).problem(
        403, "forbidden"
    )
    (await working.program.call("DELETE", working.server)).problem(403, "forbidden")


async def test_a_program_does_not_approve(working: Working, alice: Caller) -> None:
    body = {"new_state": "approved", "expected_version": working.run["version"]}

    answer = await working.program.post(f"{RUNS}/{working.run['id']}/approval", body)

    answer.problem(403, "forbidden")


async def test_a_token_of_another_lease_is_over(
    working: Working, runtime: Served
) -> None:
    other = still_instance(runtime, working.program.user)
    epoch = working.claims["epoch"]
    for claims in (
        {"epoch": epoch + 1},
        {"epoch": epoch - 1},
        {"run": working.run["id"] + 1000},
        {"instance": other.id},
    ):
        stranger = working.with_claims(**claims)
        (await stranger.get(working.server)).problem(401, "unauthenticated")


async def test_a_token_ends_with_its_run(working: Working, alice: Caller) -> None:
    path = f"{RUNS}/{working.run['id']}"
    assert (await working.program.get(working.server)).status == 200

    await alice.made(f"{path}/cancel")
    await run_becomes(alice, working.run["id"], "cancelled")

    (await working.program.get(working.server)).problem(401, "unauthenticated")
