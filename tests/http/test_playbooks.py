"""The catalogue of playbooks over HTTP."""

from typing import Any

import pytest

from tests.http.client import Caller, Json
from tests.http.conftest import (
    CLOUD,
    SHELL,
    Meet,
    Still,
    a_playbook,
    a_run,
)

PATH = "/api/trust/remediation/playbooks"
DRAFT: Json = {
    "playbook_key": "repair",
    "display_name": "Repair it",
    "executor_type": "cloud_api",
    "metadata": CLOUD,
}


async def test_a_playbook_is_made_with_200_and_its_place(alice: Caller) -> None:
    answer = await alice.post(
        PATH,
        {
            **DRAFT,
            "description": "Calls the cloud",
            "approval_required": True,
            "sla_duration_seconds": 600,
        },
    )

    assert answer.status == 200
    made = answer.json()
    assert answer.headers["Location"] == f"{PATH}/{made['id']}"
    assert answer.headers["ETag"] == '"1"'
    stamps = {"id", "created_at", "updated_at"}
    assert {name: made[name] for name in made.keys() - stamps} == {
        "playbook_key": "repair",
        "display_name": "Repair it",
        "description": "Calls the cloud",
        "executor_type": "cloud_api",
        "owner_id": alice.user,
        "approval_required": True,
        "sla_duration_seconds": 600,
        "metadata": CLOUD,
        "version": 1,
    }
    again = await alice.get(f"{PATH}/{made['id']}")
    assert again.json() == made
    assert again.headers["ETag"] == '"1"'
    assert made in (await alice.get(PATH, limit=500)).json()


async def test_the_list_is_paged_by_links(alice: Caller) -> None:
    keys = [(await a_playbook(alice, f"k{at}"))["id"] for at in range(3)]
    found: list[int] = []

    link: str | None = f"{PATH}?limit=2"
    while link:
        answer = await alice.call("GET", link)
        found += [row["id"] for row in answer.json()]
        link = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")

    assert [one for one in found if one in keys] == keys
    assert len(found) == len(set(found))


async def test_patch_keeps_what_is_absent_and_clears_what_is_null(
    alice: Caller,
) -> None:
    made = await a_playbook(alice, "p", description="x", sla_duration_seconds=60)

    answer = await alice.call(
        "PATCH",
        f"{PATH}/{made['id']}",
        {"description": None, "display_name": "New", "expected_version": 1},
    )

    assert answer.status == 200
    assert answer.headers["ETag"] == '"2"'
    changed = {"description": None, "display_name": "New", "version": 2}
    after = answer.json()
    assert after.pop("updated_at") >= made.pop("updated_at")
    assert after == {**made, **changed}


@pytest.mark.parametrize("field", ["display_name", "executor_type"])
async def test_what_a_playbook_must_have_is_not_cleared(
    alice: Caller, field: str
) -> None:
    made = await a_playbook(alice, "p")

    answer = await alice.call(
        "PATCH", f"{PATH}/{made['id']}", {field: None, "expected_version": 1}
    )

    assert field in answer.problem(422, "invalid")["detail"]


@pytest.mark.parametrize("how", ["query", "If-Match"])
async def test_delete_states_its_version(alice: Caller, how: str) -> None:
    path = f"{PATH}/{(await a_playbook(alice, 'p'))['id']}"

    async def delete(version: int) -> Any:
        if how == "query":
            return await alice.call("DELETE", f"{path}?expected_version={version}")
        return await alice.call("DELETE", path, headers={"If-Match": f'"{version}"'})

    (await alice.call("DELETE", path)).problem(409, "version-required")
    (await delete(9)).problem(409, "version-conflict")
    done = await delete(1)

    assert (done.status, done.body) == (204, b"")
    (await alice.get(path)).problem(404, "not-found")
    (await delete(1)).problem(404, "not-found")


async def test_a_stale_patch_tells_both_versions(alice: Caller) -> None:
    path = f"{PATH}/{(await a_playbook(alice, 'p'))['id']}"

    stale = await alice.call("PATCH", path, {"description": "x", "expected_version": 7})
    missing = await alice.call("PATCH", path, {"description": "x"})

    problem = stale.problem(409, "version-conflict")
    assert (problem["expected_version"], problem["current_version"]) == (7, 1)
    missing.problem(409, "version-required")


async def test_a_key_is_there_once_an_owner(alice: Caller, bravo: Caller) -> None:
    await a_playbook(alice, "same")

    (await alice.post(PATH, {**DRAFT, "playbook_key": "same"})).problem(
        409, "duplicate-key"
    )
    assert (await bravo.post(PATH, {**DRAFT, "playbook_key": "same"})).status == 200


async def test_a_playbook_in_use_is_not_deleted(alice: Caller, vm: Still) -> None:
    made = await a_playbook(alice, "busy")
    run = await a_run(alice, vm, "busy")

    answer = await alice.call("DELETE", f"{PATH}/{made['id']}?expected_version=1")

    assert answer.problem(409, "conflict")["run_id"] == run["id"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"playbook_key": ""}, "playbook_key"),
        ({"playbook_key": "x" * 201}, "playbook_key"),
        ({"display_name": "  "}, "display_name"),
        ({"executor_type": "python"}, "executor_type"),
        ({"sla_duration_seconds": 0}, "sla_duration_seconds"),
        ({"sla_duration_seconds": 2**40}, "sla_duration_seconds"),
        ({"sla_duration_seconds": "60"}, "sla_duration_seconds"),
        ({"approval_required": "yes"}, "approval_required"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {}}, "metadata"),
        ({"owner_id": 0}, "owner_id"),
    ],
)
async def test_a_playbook_of_the_wrong_shape_names_the_field(
    alice: Caller, fields: Json, named: str
) -> None:
    answer = await alice.post(PATH, {**DRAFT, **fields})

    assert named in answer.problem(422, "invalid")["detail"]


@pytest.mark.parametrize(
    "fields",
    [
        {"executor_type": "shell", "metadata": SHELL},
        {"executor_type": "ansible", "metadata": {"playbook": "site.yml"}},
        {"shared": True},
        {"owner_id": 1},
    ],
)
async def test_only_an_admin_writes_programs_and_shared_playbooks(
    alice: Caller, fields: Json
) -> None:
    (await alice.post(PATH, {**DRAFT, **fields})).problem(403, "forbidden")


async def test_an_operator_does_not_touch_what_is_shared_but_sees_it(
    alice: Caller, boss: Caller
) -> None:
    shared = await a_playbook(boss, f"shared-{boss.user}", shared=True)
    path = f"{PATH}/{shared['id']}"

    assert shared["owner_id"] is None
    assert (await alice.get(path)).json() == shared
    patched = await alice.call(
        "PATCH", path, {"description": "x", "expected_version": 1}
    )
    patched.problem(403, "forbidden")
    deleted = await alice.call("DELETE", f"{path}?expected_version=1")
    deleted.problem(403, "forbidden")


async def test_an_operators_playbook_does_not_become_a_program(alice: Caller) -> None:
    made = await a_playbook(alice, "p")

    answer = await alice.call(
        "PATCH",
        f"{PATH}/{made['id']}",
        {"executor_type": "shell", "metadata": SHELL, "expected_version": 1},
    )

    answer.problem(403, "forbidden")


async def test_an_admin_writes_for_an_owner(alice: Caller, boss: Caller) -> None:
    absent = await boss.post(PATH, {**DRAFT, "owner_id": 10**12})
    absent.problem(404, "not-found")
    assert (await alice.get(PATH)).status == 200  # who has come once is known

    made = await a_playbook(boss, "for-you", owner_id=alice.user)

    assert (await alice.get(f"{PATH}/{made['id']}")).json()["owner_id"] == alice.user


async def test_s6_another_tenants_playbook_is_not_there(
    alice: Caller, bravo: Caller
) -> None:
    made = await a_playbook(alice, "mine")
    path = f"{PATH}/{made['id']}"

    (await bravo.get(path)).problem(404, "not-found")
    for version in (1, 9):
        body = {"description": "x", "expected_version": version}
        (await bravo.call("PATCH", path, body)).problem(404, "not-found")
        answer = await bravo.call("DELETE", f"{path}?expected_version={version}")
        answer.problem(404, "not-found")
    assert made not in (await bravo.get(PATH, limit=500)).json()


async def test_a_viewer_reads_playbooks_and_writes_none(
    meet: Meet, alice: Caller
) -> None:
    made = await a_playbook(alice, "p")
    viewer, path = meet("viewer", user=alice.user), f"{PATH}/{made['id']}"

    assert (await viewer.get(path)).status == 200
    (await viewer.post(PATH, DRAFT)).problem(403, "forbidden")
    (await viewer.call("PATCH", path, {"description": "x"})).problem(403, "forbidden")
    (await viewer.call("DELETE", path)).problem(403, "forbidden")


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({**CLOUD, "parameters": {"type": "strin"}}, "metadata.parameters"),
        (
            {
                **CLOUD,
                "parameters": {
                    "type": "object",
                    "properties": {"a": {"pattern": "(?=a)"}},
                },
            },
            "metadata.parameters/properties/a/pattern",
        ),
        ({**CLOUD, "approvals_required": 0}, "metadata.approvals_required"),
        ({**CLOUD, "observe_only": "yes"}, "metadata.observe_only"),
        ({"method": "POST", "url": "gopher://x"}, "url"),
    ],
)
async def test_what_could_not_run_is_refused_when_saved(
    alice: Caller, metadata: Json, named: str
) -> None:
    answer = await alice.post(
        "/api/trust/remediation/playbooks",
        {
            "playbook_key": "bad",
            "display_name": "Bad",
            "executor_type": "cloud_api",
            "approval_required": True,
            "metadata": metadata,
        },
    )

    assert named in answer.problem(422, "invalid")["detail"]
