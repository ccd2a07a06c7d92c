"""Remediation runs over HTTP: enqueue, approve, cancel, retry, logs, artifacts."""

import asyncio
import hashlib

import pytest

from tests.fix_runtime import Served
from tests.http.client import UNSET, Caller, Json
from tests.http.conftest import (
    CLOUD,
    SHELL,
    Meet,
    Still,
    a_playbook,
    a_run,
    run_becomes,
    still_instance,
)

PATH = "/api/trust/remediation/runs"
VIEW = {
    "id",
    "runtime_vm_instance_id",
    "playbook",
    "playbook_id",
    "status",
    "approval_required",
    "approval_state",
    "approval_decided_at",
    "approval_decided_by",
    "approval_notes",
    "approvals_required",
    "approvals_given",
    "sla_breached",
    "sla_breached_at",
    "requested_by",
    "assigned_owner_id",
    "sla_deadline",
    "automation_payload",
    "metadata",
    "playbook_snapshot",
    "content_sha256",
    "priority",
    "not_before",
    "result",
    "failure_reason",
    "last_error",
    "attempt",
    "queued_at",
    "started_at",
    "completed_at",
    "cancelled_at",
    "cancellation_reason",
    "version",
    "created_at",
    "updated_at",
}


@pytest.fixture
async def playbook(alice: Caller) -> Json:
    return await a_playbook(alice, "repair")


async def test_enqueue_answers_200_with_created_and_the_run(
    alice: Caller, vm: Still, playbook: Json
) -> None:
    answer = await alice.post(
        PATH,
        {
            "runtime_vm_instance_id": vm.id,
            "playbook": "repair",
            "metadata": {"tag": "t::a"},
            "automation_payload": {"depth": 1},
        },
    )

    assert answer.status == 200
    document = answer.json()
    assert document.keys() == {"created", "run"}
    assert document["created"] is True
    run = document["run"]
    assert answer.headers["Location"] == f"{PATH}/{run['id']}"
    assert answer.headers["ETag"] == f'"{run["version"]}"'
    assert run.keys() >= VIEW
    assert not {"lease_owner", "lease_epoch", "lease_expires_at"} & run.keys()
    assert run["runtime_vm_instance_id"] == vm.id
    assert run["playbook_id"] == playbook["id"]
    assert (run["status"], run["approval_state"]) == ("pending", "pending")
    assert run["requested_by"] == f"user:{alice.user}"
    assert run["assigned_owner_id"] == alice.user
    assert run["metadata"] == {"tag": "t::a"}
    assert run["automation_payload"] == {"depth": 1}
    assert run["playbook_snapshot"]["metadata"] == CLOUD
    got = await alice.get(f"{PATH}/{run['id']}")
    assert got.json() == run
    assert got.headers["ETag"] == f'"{run["version"]}"'
    row = (await alice.get(vm.path)).json()
    assert row["remediation_state"] == "remediation:pending-approval"


async def test_a_second_active_run_is_refused(
    alice: Caller, vm: Still, playbook: Json
) -> None:
    body = {"runtime_vm_instance_id": vm.id, "playbook": "repair"}

    answers = await asyncio.gather(*(alice.post(PATH, body) for _ in range(50)))

    assert sorted(answer.status for answer in answers) == [200] + [409] * 49
    for answer in answers:
        if answer.status == 409:
            answer.problem(409, "run-active")
    assert len((await alice.get(PATH)).json()) == 1


async def test_a_payload_that_does_not_fit_is_422_with_a_pointer_to_the_fault(
    alice: Caller, vm: Still
) -> None:
    parameters = {
        "type": "object",
        "properties": {"depth": {"type": "integer"}, "zone": {"default": "a"}},
        "required": ["depth"],
    }
    await a_playbook(alice, "deep", metadata={**CLOUD, "parameters": parameters})
    body = {"runtime_vm_instance_id": vm.id, "playbook": "deep"}

    problem = (await alice.post(PATH, body)).problem(422, "invalid")
    wrong = {**body, "automation_payload": {"depth": "HUNTER2"}}
    other = (await alice.post(PATH, wrong)).problem(422, "invalid")
    right = {**body, "automation_payload": {"depth": 2}}
    run = (await alice.made(PATH, right))["run"]

    assert (problem["pointer"], other["pointer"]) == ("/depth", "/depth")
    assert problem["faults"] == [{"pointer": "/depth", "message": "is required"}]
    assert "HUNTER2" not in str(other)
    assert run["playbook_snapshot"]["parameters"] == {"depth": 2, "zone": "a"}


async def test_it_takes_two_people_where_the_playbook_says_so(
    alice: Caller, meet: Meet, vm: Still
) -> None:
    metadata = {**CLOUD, "approvals_required": 2}
    await a_playbook(alice, "paired", metadata=metadata)
    run = await a_run(alice, vm, "paired")
    path = f"{PATH}/{run['id']}"

    def consent(version: int) -> Json:
        return {"new_state": "approved", "expected_version": version}

    first, second = meet("admin"), meet("admin")
    half = await first.made(f"{path}/approval", consent(run["version"]))
    again = await first.post(f"{path}/approval", consent(half["version"]))
    waiting = (await alice.get(vm.path)).json()["remediation_state"]
    whole = await second.made(f"{path}/approval", consent(half["version"]))

    assert (run["approvals_given"], run["approvals_required"]) == (0, 2)
    assert (half["approval_state"], half["approvals_given"]) == ("pending", 1)
    assert again.problem(409, "conflict")["approvals_required"] == 2
    assert waiting == "remediation:pending-approval"
    assert (whole["approval_state"], whole["approvals_given"]) == ("approved", 2)


async def test_a_breached_sla_is_a_badge_and_an_event(
    alice: Caller, vm: Still, runtime: Served
) -> None:
    await a_playbook(alice, "late", sla_duration_seconds=1)
    run = await a_run(alice, vm, "late")
    assert run["sla_breached"] is False

    async with alice.stream(
        "/api/trust/remediation/stream", last_event_id="0-0", run_id=run["id"]
    ) as stream:
        while (told := (await stream.event()).data["event"])["message"] != (
            "sla-breached"
        ):
            assert told["sla_breached"] is False

    assert told["sla_breached"] is True
    assert (await alice.get(f"{PATH}/{run['id']}")).json()["sla_breached"] is True


async def test_an_unknown_playbook_is_400_and_an_unknown_instance_404(
    alice: Caller, vm: Still, playbook: Json
) -> None:
    unknown = await alice.post(
        PATH, {"runtime_vm_instance_id": vm.id, "playbook": "none"}
    )
    nowhere = await alice.post(
        PATH, {"runtime_vm_instance_id": 10**12, "playbook": "repair"}
    )

    unknown.problem(400, "unknown-playbook")
    nowhere.problem(404, "not-found")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"runtime_vm_instance_id": "1"}, "runtime_vm_instance_id"),
        ({"runtime_vm_instance_id": 0}, "runtime_vm_instance_id"),
        ({"runtime_vm_instance_id": 2**63 - 1}, "runtime_vm_instance_id"),
        ({"playbook": ""}, "playbook"),
        ({"playbook": 1}, "playbook"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"accelerators": 1}}, "accelerators"),
        ({"automation_payload": "x"}, "automation_payload"),
        ({"assigned_owner_id": -1}, "assigned_owner_id"),
        ({"requested_by": "user:1"}, "requested_by"),
        ({"status": "completed"}, "status"),
    ],
)
async def test_an_enqueue_of_the_wrong_shape_names_the_field(
    alice: Caller, vm: Still, playbook: Json, fields: Json, named: str
) -> None:
    body = {"runtime_vm_instance_id": vm.id, "playbook": "repair", **fields}

    answer = await alice.post(PATH, body)

    assert named in answer.problem(422, "invalid")["detail"]


async def test_the_list_is_filtered_newest_first_and_paged(
    alice: Caller, runtime: Served, playbook: Json
) -> None:
    made: list[Json] = []
    for _ in range(3):
        one = still_instance(runtime, alice.user)
        made.insert(0, await a_run(alice, one, "repair"))
    ids = [run["id"] for run in made]
    await alice.made(f"{PATH}/{ids[0]}/cancel")

    async def found(**query: object) -> list[int]:
        return [run["id"] for run in (await alice.get(PATH, **query)).json()]

    assert await found() == ids
    assert await found(status="cancelled") == ids[:1]
    assert await found(status="PENDING") == ids[1:]
    assert await found(approval_state="pending", status="pending") == ids[1:]
    assert await found(playbook="repair") == ids
    assert await found(playbook="other") == []
    instance = made[1]["runtime_vm_instance_id"]
    assert await found(runtime_vm_instance_id=instance) == ids[1:2]
    first = await alice.get(PATH, limit=2)
    link = first.headers["Link"].partition(">")[0].removeprefix("<")
    rest = await alice.call("GET", link)
    assert [run["id"] for run in first.json() + rest.json()] == ids


async def test_s7_the_requester_does_not_approve(
    meet: Meet, alice: Caller, vm: Still, playbook: Json
) -> None:
    run = await a_run(alice, vm, "repair")
    body = {"new_state": "approved", "expected_version": run["version"]}
    path = f"{PATH}/{run['id']}/approval"

    for same in (alice, meet("admin", user=alice.user), meet("user", user=alice.user)):
        (await same.post(path, body)).problem(403, "self-approval")

    assert (await alice.get(f"{PATH}/{run['id']}")).json() == run


async def test_another_person_approves_once(
    alice: Caller, boss: Caller, vm: Still, playbook: Json
) -> None:
    run = await a_run(alice, vm, "repair")
    path = f"{PATH}/{run['id']}/approval"
    body = {
        "new_state": "approved",
        "approval_notes": "go",
        "expected_version": run["version"],
        "content_sha256": run["content_sha256"],
    }

    done = await boss.post(path, body)
    replayed = await boss.post(path, body)

    assert done.status == 200
    after = done.json()
    assert done.headers["ETag"] == f'"{after["version"]}"'
    assert after["approval_state"] == "approved"
    assert after["approval_decided_by"] == f"user:{boss.user}"
    assert after["approval_notes"] == "go"
    assert replayed.status == 409


async def test_a_rejection_ends_the_run_as_cancelled(
    alice: Caller, boss: Caller, vm: Still, playbook: Json
) -> None:
    run = await a_run(alice, vm, "repair")

    answer = await boss.call(
        "POST",
        f"{PATH}/{run['id']}/approval",
        {"new_state": "rejected"},
        headers={"If-Match": f'"{run["version"]}"'},
    )

    after = answer.json()
    assert (after["status"], after["approval_state"]) == ("cancelled", "rejected")


async def test_an_approval_states_the_newest_version(
    alice: Caller, boss: Caller, vm: Still, playbook: Json
) -> None:
    run = await a_run(alice, vm, "repair")
    path = f"{PATH}/{run['id']}/approval"

    stale = await boss.post(path, {"new_state": "approved", "expected_version": 99})
    missing = await boss.post(path, {"new_state": "approved"})

    assert stale.problem(409, "version-conflict")["current_version"] == run["version"]
    missing.problem(409, "version-required")
    assert (await alice.get(f"{PATH}/{run['id']}")).json() == run


async def test_s8_an_approval_of_what_was_edited_since_is_stale(
    alice: Caller, boss: Caller, vm: Still, playbook: Json
) -> None:
    run = await a_run(alice, vm, "repair")
    edited = await alice.call(
        "PATCH",
        f"/api/trust/remediation/playbooks/{playbook['id']}",
        {"metadata": {**CLOUD, "method": "PUT"}, "expected_version": 1},
    )
    assert edited.status == 200

    answer = await boss.post(
        f"{PATH}/{run['id']}/approval",
        {"new_state": "approved", "expected_version": run["version"]},
    )

    answer.problem(409, "approval-stale")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"new_state": "maybe"}, "new_state"),
        ({"new_state": None}, "new_state"),
        ({"approval_notes": "x" * 501}, "approval_notes"),
        ({"approval_notes": 1}, "approval_notes"),
        ({"expected_version": "1"}, "expected_version"),
        ({"content_sha256": "abc"}, "content_sha256"),
        ({"approved_by": 1}, "approved_by"),
    ],
)
async def test_an_approval_of_the_wrong_shape_names_the_field(
    boss: Caller, fields: Json, named: str
) -> None:
    body = {"new_state": "approved", "expected_version": 1, **fields}

    answer = await boss.post(f"{PATH}/1/approval", body)

    assert named in answer.problem(422, "invalid")["detail"]


async def test_a_waiting_run_is_cancelled_and_retried_as_a_new_one(
    alice: Caller, vm: Still, playbook: Json
) -> None:
    run = await a_run(alice, vm, "repair")
    path = f"{PATH}/{run['id']}"

    (await alice.post(f"{path}/retry")).problem(409, "conflict")
    ended = await alice.made(f"{path}/cancel", {"reason": "not needed"})
    (await alice.post(f"{path}/cancel")).problem(409, "conflict")
    retried = await alice.post(f"{path}/retry", {})

    assert ended["status"] == "cancelled"
    assert ended["cancellation_reason"].startswith("not needed")
    assert retried.status == 200
    new = retried.json()["run"]
    assert new["id"] > run["id"]
    assert retried.headers["Location"] == f"{PATH}/{new['id']}"
    assert new["status"] == "pending"


@pytest.fixture
async def printed(alice: Caller, boss: Caller, vm: Still) -> str:
    """Where a run is that has printed five lines, and one on its stderr."""
    script = "for at in 1 2 3 4 5; do echo line $at; done; echo odd >&2"
    key = f"print-{boss.user}"
    await a_playbook(
        boss,
        key,
        shared=True,
        executor_type="shell",
        approval_required=False,
        metadata={"script": script, "timeout_seconds": 30},
    )
    run = await a_run(alice, vm, key)
    ended = await run_becomes(alice, run["id"], "completed", "failed", "cancelled")
    assert ended["status"] == "completed", ended
    return f"{PATH}/{run['id']}"


async def test_a_log_is_read_on_from_any_line(alice: Caller, printed: str) -> None:
    lines = (await alice.get(f"{printed}/logs")).json()

    assert all(
        line.keys() == {"seq", "timestamp", "stream", "message"} for line in lines
    )
    told = [line["message"] for line in lines if line["stream"] == "stdout"]
    assert told == [f"line {at}" for at in range(1, 6)]
    assert "odd" in [line["message"] for line in lines if line["stream"] == "stderr"]
    seqs = [line["seq"] for line in lines]
    assert seqs == sorted(set(seqs))
    assert (await alice.get(f"{printed}/logs", after=seqs[1])).json() == lines[2:]
    paged, link = [], f"{printed}/logs?after={seqs[0]}&limit=2"
    async with asyncio.timeout(10):
        while link:
            answer = await alice.call("GET", link)
            paged += answer.json()
            link = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert paged == lines[1:]


async def test_s15_an_artifact_is_an_attachment_that_runs_nothing(
    alice: Caller, printed: str
) -> None:
    (artifact, *_) = (await alice.get(f"{printed}/artifacts")).json()
    content = await alice.get(f"{printed}/artifacts/{artifact['id']}")

    assert artifact.keys() >= {
        "id",
        "run_id",
        "artifact_type",
        "uri",
        "media_type",
        "sha256",
        "size",
        "metadata",
        "recorded_by",
    }
    assert content.status == 200
    assert len(content.body) == artifact["size"]
    assert hashlib.sha256(content.body).hexdigest() == artifact["sha256"]
    assert content.headers["Content-Type"] == "application/octet-stream"
    assert content.headers["Content-Disposition"].startswith("attachment;")
    assert content.headers["Content-Security-Policy"] == "sandbox"
    assert content.headers["X-Content-Type-Options"] == "nosniff"


async def test_s6_another_tenants_run_is_as_one_that_is_not_there(
    alice: Caller, bravo: Caller, vm: Still, playbook: Json
) -> None:
    run = await a_run(alice, vm, "repair")
    await a_playbook(bravo, "mine")

    assert (await bravo.get(PATH)).json() == []
    assert (await bravo.get(PATH, runtime_vm_instance_id=vm.id)).json() == []
    assert (await bravo.get(PATH, cursor=run["id"] + 1)).json() == []
    approve = {"new_state": "approved", "expected_version": run["version"]}
    for method, tail, body in (
        ("GET", "", UNSET),
        ("GET", "/logs", UNSET),
        ("GET", "/artifacts", UNSET),
        ("GET", "/artifacts/1", UNSET),
        ("POST", "/approval", approve),
        ("POST", "/approval", {**approve, "expected_version": 99}),
        ("POST", "/cancel", {}),
        ("POST", "/retry", {}),
    ):
        theirs = await bravo.call(method, f"{PATH}/{run['id']}{tail}", body)
        absent = await bravo.call(method, f"{PATH}/{10**12}{tail}", body)

        theirs.problem(404, "not-found")
        assert theirs.body.replace(
            str(run["id"]).encode(), b"?"
        ) == absent.body.replace(str(10**12).encode(), b"?")
    enqueue = {"runtime_vm_instance_id": vm.id, "playbook": "mine"}
    (await bravo.post(PATH, enqueue)).problem(404, "not-found")
    assert (await alice.get(f"{PATH}/{run['id']}")).json() == run


async def test_s6_a_tenants_playbook_is_unknown_to_another(
    alice: Caller, bravo: Caller, vm: Still
) -> None:
    await a_playbook(bravo, "theirs")

    answer = await alice.post(
        PATH, {"runtime_vm_instance_id": vm.id, "playbook": "theirs"}
    )

    answer.problem(400, "unknown-playbook")


async def test_an_operator_assigns_to_itself_only(
    alice: Caller, bravo: Caller, vm: Still, playbook: Json
) -> None:
    body = {
        "runtime_vm_instance_id": vm.id,
        "playbook": "repair",
        "assigned_owner_id": bravo.user,
    }

    (await alice.post(PATH, body)).problem(403, "forbidden")


async def test_a_viewer_reads_runs_and_decides_nothing(
    meet: Meet, alice: Caller, vm: Still, playbook: Json
) -> None:
    run = await a_run(alice, vm, "repair")
    viewer, path = meet("viewer", user=alice.user), f"{PATH}/{run['id']}"

    for tail in ("", "/logs", "/artifacts"):
        assert (await viewer.get(path + tail)).status == 200
    approve = {"new_state": "approved", "expected_version": run["version"]}
    (await viewer.post(f"{path}/approval", approve)).problem(403, "forbidden")
    (await viewer.post(f"{path}/cancel")).problem(403, "forbidden")
    (await viewer.post(f"{path}/retry")).problem(403, "forbidden")
    enqueue = {"runtime_vm_instance_id": vm.id, "playbook": "repair"}
    (await viewer.post(PATH, enqueue)).problem(403, "forbidden")


async def test_s9_an_approval_and_a_cancellation_that_race_do_not_both_win(
    alice: Caller, boss: Caller, vm: Still
) -> None:
    await a_playbook(
        boss, f"race-{boss.user}", shared=True, executor_type="shell", metadata=SHELL
    )
    run = await a_run(alice, vm, f"race-{boss.user}")
    path = f"{PATH}/{run['id']}"
    body = {"new_state": "rejected", "expected_version": run["version"]}

    rejected, cancelled = await asyncio.gather(
        boss.post(f"{path}/approval", body), alice.post(f"{path}/cancel")
    )

    assert sorted((rejected.status, cancelled.status)) == [200, 409]
