"""Servers over HTTP, with VMs of libvirt's own test driver."""

import pytest

from tests.fix_fabric import until
from tests.fix_runtime import Served
from tests.http.client import Caller, Json
from tests.http.conftest import Meet, Still, a_playbook, a_run

PATH = "/api/servers"


async def _server(caller: Caller, **config: object) -> Json:
    return await caller.made(PATH, {"name": "web", "config": config})


async def _until(caller: Caller, server: Json, status: str) -> Json:
    async def look() -> Json | None:
        now: Json = (await caller.get(f"{PATH}/{server['id']}")).json()
        return now if now["status"] == status else None

    return await until(look, f"the server to be {status}")


async def test_a_server_is_made_with_201_and_not_started(alice: Caller) -> None:
    config = {
        "vm": {"image": "demo", "memory_mib": 512, "vcpu_count": 1},
        "attestation": {"kind": "tpm", "source": "agent", "endpoint": "x"},
        "colour": "blue",
    }

    answer = await alice.post(
        PATH, {"name": "wéb", "server_type": "demo", "config": config}
    )

    assert answer.status == 201
    made = answer.json()
    assert answer.headers["Location"] == f"{PATH}/{made['id']}"
    assert made.keys() >= {"id", "name", "status", "created_at", "updated_at"}
    assert (made["name"], made["status"]) == ("wéb", "stopped")
    assert made["owner_id"] == alice.user
    assert made["server_type"] == "demo"
    assert made["config"] == config
    assert (await alice.get(f"{PATH}/{made['id']}")).json() == made
    assert (await alice.get(PATH)).json() == [made]


async def test_a_name_is_enough(alice: Caller) -> None:
    made = await alice.made(PATH, {"name": "web"})

    assert made["config"]["vm"]["image"]
    assert made["config"]["attestation"]["kind"] == "tpm"


async def test_servers_are_filtered_and_paged(alice: Caller) -> None:
    ids = [(await _server(alice))["id"] for _ in range(3)]

    first = await alice.get(PATH, limit=2, status="Stopped")
    link = first.headers["Link"].partition(">")[0].removeprefix("<")
    rest = await alice.call("GET", link)

    assert [row["id"] for row in first.json() + rest.json()] == ids
    assert "status=Stopped" in link
    assert (await alice.get(PATH, status="running")).json() == []


@pytest.fixture
async def launched(alice: Caller) -> Json:
    """A server whose VM runs."""
    server = await _server(alice, vm={"memory_mib": 64, "vcpu_count": 1})
    answer = await alice.post(f"{PATH}/{server['id']}/start")
    assert (answer.status, answer.json()["id"]) == (202, server["id"])
    return await _until(alice, server, "running")


BADGES = {
    "trust_lifecycle_state",
    "trust_previous_lifecycle_state",
    "trust_freshness_deadline",
    "trust_remediation_attempts",
    "trust_provenance_ref",
    "remediation_state",
    "stale",
    "version",
    "active_run",
    "events",
}


@pytest.mark.libvirt
async def test_the_vm_of_a_running_server_is_shown_with_its_badges(
    alice: Caller, launched: Json
) -> None:
    path = f"{PATH}/{launched['id']}"

    vm = (await alice.get(f"{path}/vm")).json()
    challenged = await alice.post(f"{path}/vm/attest")
    logs = (await alice.get(f"{path}/vm/logs", tail=10)).json()

    assert vm["server_id"] == launched["id"]
    (instance,) = vm["instances"]
    assert vm["active_instance_id"] == instance["id"]
    assert vm["latest_status"] == instance["attestation_status"]
    assert vm["last_updated_at"]
    assert instance.keys() >= BADGES
    assert instance["trust_lifecycle_state"] == "suspect"
    assert (challenged.status, challenged.json()["challenged"]) == (202, True)
    assert logs["lines"] == []
    assert logs["why_empty"]


async def test_a_vm_s_accelerators_are_shown_with_what_they_count_for(
    alice: Caller, vm: Still
) -> None:
    vm.runtime.rows(
        """
        INSERT INTO runtime_vm_attestations
               (id, runtime_vm_instance_id, accelerator_id, attestation_kind,
                verification_status)
        VALUES (%s, %s, '0000:65:00.0', 'nvidia-gpu', 'trusted')
        """,
        *(10**9 + vm.id, vm.id),
    )
    vm.runtime.rows(
        """
        INSERT INTO runtime_vm_accelerator_posture
               (runtime_vm_instance_id, accelerator_id, accelerator_type, posture,
                asked_at, attestation_id, boot_id, fresh_until)
        SELECT i.id, '0000:65:00.0', 'nvidia-gpu', 'attested', '2020-01-01', %s,
               i.boot_id, '2020-01-01'
          FROM runtime_vm_instances i WHERE i.id = %s
        """,
        *(10**9 + vm.id, vm.id),
    )
    vm.runtime.rows(
        "UPDATE runtime_vm_instances SET power_state = 'running' WHERE id = %s", vm.id
    )

    shown = (await alice.get(f"{PATH}/{vm.server_id}/vm")).json()
    verdict = (await alice.get(f"/api/attestation/{10**9 + vm.id}")).json()

    (accelerator,) = shown["instances"][0]["accelerators"]
    assert accelerator == {
        "accelerator_id": "0000:65:00.0",
        "accelerator_type": "nvidia-gpu",
        "posture": "stale",
        "policy_feedback": [],
        "attestation_id": 10**9 + vm.id,
        "fresh_until": "2020-01-01T00:00:00Z",
    }
    assert verdict["accelerator_id"] == "0000:65:00.0"


@pytest.mark.libvirt
async def test_a_server_is_stopped_redeployed_and_deleted(
    alice: Caller, launched: Json
) -> None:
    path = f"{PATH}/{launched['id']}"
    (first,) = (await alice.get(f"{path}/vm")).json()["instances"]

    (await alice.post(f"{path}/start")).problem(409, "already-running")
    assert (await alice.post(f"{path}/stop")).status == 202
    await _until(alice, launched, "stopped")
    assert (await alice.post(f"{path}/redeploy")).status == 202
    await _until(alice, launched, "running")

    async def replaced() -> Json | None:
        # The new one may run before the end of the old one is written down.
        now: Json = (await alice.get(f"{path}/vm")).json()
        return now if now["instances"][-1]["terminated_at"] else None

    vm = await until(replaced, "the old instance to be ended")
    deleted = await alice.call("DELETE", path)

    newest, oldest = vm["instances"]
    assert newest["id"] > oldest["id"] == first["id"]
    assert vm["active_instance_id"] == newest["id"]
    assert oldest["terminated_at"] is not None
    assert (deleted.status, deleted.body) == (204, b"")
    (await alice.get(path)).problem(404, "not-found")
    (await alice.call("DELETE", path)).problem(404, "not-found")
    assert (await alice.get(PATH)).json() == []


async def test_a_server_that_never_ran_has_no_console_and_no_vm(
    alice: Caller,
) -> None:
    path = f"{PATH}/{(await _server(alice))['id']}"

    (await alice.get(f"{path}/vm/logs")).problem(404, "not-found")
    (await alice.post(f"{path}/vm/attest")).problem(404, "not-found")
    assert (await alice.post(f"{path}/stop")).json()["status"] == "stopped"


async def test_a_blocked_launch_answers_with_its_notes(
    alice: Caller, runtime: Served, vm: Still
) -> None:
    path = f"{PATH}/{vm.server_id}"
    vm.quarantine()
    runtime.rows(
        "UPDATE runtime_vm_instances SET desired_state = 'stopped', "
        "power_state = 'stopped' WHERE id = %s",
        vm.id,
    )

    blocked = await alice.post(f"{path}/start")
    explained = (await alice.get(f"{path}/placement")).json()

    problem = blocked.problem(409, "placement-blocked")
    assert problem["notes"][:2] == [
        "trust:attestation:untrusted",
        "trust:lifecycle:quarantined",
    ]
    assert (await alice.get(path)).json()["status"] == "pending-remediation"
    assert explained.keys() >= {"server_id", "allowed", "notes", "policy_notes"}
    assert (explained["allowed"], explained["notes"]) == (False, problem["notes"])


async def test_an_active_run_blocks_a_redeployment(alice: Caller, vm: Still) -> None:
    await a_playbook(alice, "repair")
    run = await a_run(alice, vm, "repair")

    answer = await alice.post(f"{PATH}/{vm.server_id}/redeploy")

    notes = answer.problem(409, "placement-blocked")["notes"]
    assert f"policy_hook:remediation_gate=active-run:{run['id']}:pending" in notes


async def test_a_release_needs_a_reason(alice: Caller) -> None:
    path = f"{PATH}/{(await _server(alice))['id']}/release"

    assert "reason" in (await alice.post(path, {})).problem(422, "invalid")["detail"]
    assert (await alice.post(path, {"reason": "looked at"})).status == 202


VERBS = ("start", "stop", "redeploy", "vm/attest")


async def test_s6_another_tenants_server_is_as_one_that_is_not_there(
    alice: Caller, bravo: Caller
) -> None:
    server = await _server(alice)
    calls = [
        ("GET", ""),
        ("GET", "/vm"),
        ("GET", "/vm/logs"),
        ("GET", "/placement"),
        ("DELETE", ""),
        *(("POST", f"/{verb}") for verb in VERBS),
    ]

    for method, tail in calls:
        theirs = await bravo.call(method, f"{PATH}/{server['id']}{tail}")
        absent = await bravo.call(method, f"{PATH}/{10**12}{tail}")

        theirs.problem(404, "not-found")
        assert theirs.body.replace(
            str(server["id"]).encode(), b"?"
        ) == absent.body.replace(str(10**12).encode(), b"?")
    release = f"{PATH}/{server['id']}/release"
    (await bravo.post(release, {"reason": "x"})).problem(404, "not-found")
    assert (await bravo.get(PATH)).json() == []
    assert (await alice.get(f"{PATH}/{server['id']}")).json() == server


async def test_a_viewer_sees_its_servers_and_moves_none(
    alice: Caller, meet: Meet
) -> None:
    server = await _server(alice)
    viewer, path = meet("viewer", user=alice.user), f"{PATH}/{server['id']}"

    for tail in ("", "/vm", "/placement"):
        assert (await viewer.get(path + tail)).status == 200
    (await viewer.post(PATH, {"name": "x"})).problem(403, "forbidden")
    for verb in VERBS:
        (await viewer.post(f"{path}/{verb}")).problem(403, "forbidden")
    (await viewer.post(f"{path}/release", {"reason": "x"})).problem(403, "forbidden")
    (await viewer.call("DELETE", path)).problem(403, "forbidden")


@pytest.mark.parametrize(
    "name", ["; rm -rf /", "$(id)", "--upload-pack", "{{7*7}}", "<b>&'\"", "%s%n", "…"]
)
@pytest.mark.libvirt
async def test_s10_s11_a_name_is_only_a_text(alice: Caller, name: str) -> None:
    server = await alice.made(PATH, {"name": name})
    path = f"{PATH}/{server['id']}"

    await alice.made(f"{path}/start")
    await _until(alice, server, "running")

    assert (await alice.get(path)).json()["name"] == name
    (row,) = (await alice.get("/api/trust/registry")).json()
    assert row["server_name"] == name
