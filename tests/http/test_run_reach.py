"""How far a run's token reaches, and what consent to a run is consent to."""

import importlib
import pkgutil
import re

import pytest

import trustfabric.http
from tests.fix_runtime import Served
from tests.http.client import Caller
from tests.http.conftest import CLOUD, Meet, Still, a_playbook, a_run
from tests.http.guests import CHALLENGES
from tests.http.routes import ALL
from tests.http.working import Working

OTHERS = {
    ("GET", CHALLENGES),
    ("POST", CHALLENGES),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/.well-known/jwks.json"),
    ("POST", "/api/session"),
    ("DELETE", "/api/session"),
}
"""Everybody's, or an agent's: below, what of these a run has."""


PART = re.compile(r"\{\w+(?::([^}]*))?\}")


def test_no_route_is_left_out_of_those_that_are_tried() -> None:
    parts = [
        importlib.import_module(f"trustfabric.http.{module.name}")
        for module in pkgutil.iter_modules(trustfabric.http.__path__)
    ]
    routes = {
        (route.method, PART.sub(_as_pattern, route.path))
        for part in parts
        for route in getattr(part, "routes", ())
    }

    tried = {*ALL, *OTHERS}
    left_out = {
        (method, path)
        for method, path in routes
        if not any(
            method == other and re.fullmatch(path, at) is not None
            for other, at in tried
        )
    }
    assert len(routes) > 70
    assert left_out == set()


def _as_pattern(part: re.Match[str]) -> str:
    return f"(?:{part[1] or '[^/]+'})"


async def test_a_run_is_no_agent_and_has_no_session_of_more(working: Working) -> None:
    program = working.program

    for method in ("GET", "POST"):
        answer = await program.call(method, CHALLENGES)
        answer.problem(403, "forbidden")
    signed_in = await Caller(program.runtime, program.http).post(
        "/api/session", {"token": program.token}
    )
    cookie = f"tf_session={program.token}"
    browser = Caller(program.runtime, program.http, headers={"Cookie": cookie})

    assert signed_in.status in {200, 403}
    for path in ("/api/servers", "/api/trust/registry", "/api/session"):
        (await browser.get(path)).problem(403, "forbidden")
    assert (await browser.get(working.server)).status == 200


@pytest.mark.parametrize(("lease", "status"), [("1 h", 200), ("-1 s", 401)])
async def test_a_token_ends_with_its_lease_though_the_run_seems_to_run(
    runtime: Served, meet: Meet, alice: Caller, vm: Still, lease: str, status: int
) -> None:
    ((run, epoch),) = runtime.rows(
        """
        INSERT INTO runtime_vm_remediation_runs
               (runtime_vm_instance_id, playbook, requested_by, playbook_snapshot,
                content_sha256, status, lease_owner, lease_epoch, lease_expires_at)
        VALUES (%s, 'none', 'test', '{}', repeat('0', 64), 'running', 'elsewhere', 7,
                now() + %s::interval)
        RETURNING id, lease_epoch
        """,
        vm.id,
        lease,
    )
    scope = {"run": run, "instance": vm.id, "server": vm.server_id, "epoch": epoch}
    program = meet("run", alice.user, **scope)

    assert (await program.get(f"/api/servers/{vm.server_id}")).status == status


async def test_s8_consent_to_other_content_is_stale_and_changes_nothing(
    alice: Caller, boss: Caller, vm: Still
) -> None:
    await a_playbook(alice, "repair", metadata=CLOUD)
    run = await a_run(alice, vm, "repair")
    path = f"/api/trust/remediation/runs/{run['id']}"
    consent = {"new_state": "approved", "expected_version": run["version"]}

    stale = await boss.post(f"{path}/approval", consent | {"content_sha256": "0" * 64})
    after = (await alice.get(path)).json()
    good = await boss.post(
        f"{path}/approval", consent | {"content_sha256": run["content_sha256"]}
    )

    told = stale.problem(409, "approval-stale")
    assert told["content_sha256"] == run["content_sha256"]
    assert after == run
    assert good.status == 200
