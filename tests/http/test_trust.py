"""The trust registry's endpoints: shapes, filters, pages, versions, owners."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fix_runtime import Served
from tests.http.client import UNSET, Caller, Json
from tests.http.conftest import Meet, Still, still_instance

REGISTRY = "/api/trust/registry"
VIEW = {
    "server_id",
    "server_name",
    "vm_instance_id",
    "instance_id",
    "attestation_status",
    "lifecycle_state",
    "remediation_state",
    "remediation_attempts",
    "freshness_deadline",
    "provenance_ref",
    "provenance",
    "version",
    "updated_at",
    "stale",
}
QUARANTINE = {"attestation_status": "untrusted", "lifecycle_state": "quarantined"}


def _later(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def test_a_row_of_the_registry_has_the_contracts_fields(
    alice: Caller, vm: Still
) -> None:
    answer = await alice.get(vm.path)

    assert answer.status == 200
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["Content-Type"] == "application/json"
    row = answer.json()
    assert row.keys() >= VIEW
    assert datetime.fromisoformat(row["updated_at"]).tzinfo is not None
    assert row["updated_at"].endswith("Z")
    assert {name: row[name] for name in VIEW - {"updated_at"}} == {
        "server_id": vm.server_id,
        "server_name": "web",
        "vm_instance_id": vm.id,
        "instance_id": vm.name,
        "attestation_status": "pending",
        "lifecycle_state": "suspect",
        "remediation_state": "remediation:none",
        "remediation_attempts": 0,
        "freshness_deadline": None,
        "provenance_ref": None,
        "provenance": None,
        "version": 1,
        "stale": False,
    }
    assert (await alice.get(REGISTRY)).json() == [row]


async def test_the_list_is_filtered(alice: Caller, runtime: Served, vm: Still) -> None:
    other = still_instance(runtime, alice.user)
    # Of one that shall not run the scheduler writes no decay.
    runtime.rows(
        "UPDATE runtime_vm_instances SET desired_state = 'stopped' WHERE id = %s",
        other.id,
    )
    other.move("restored", "trusted", freshness_deadline=_later(-1))

    async def found(**query: object) -> list[int]:
        rows = (await alice.get(REGISTRY, **query)).json()
        return [row["vm_instance_id"] for row in rows]

    assert await found() == [vm.id, other.id]
    assert await found(server_id=other.server_id) == [other.id]
    assert await found(lifecycle_state="restored") == [other.id]
    assert await found(attestation_status="pending") == [vm.id]
    assert await found(stale="true") == [other.id]
    assert await found(stale="false") == [vm.id]
    assert await found(stale="true", lifecycle_state="suspect") == []


async def _event(caller: Caller, vm: Still, version: int) -> Json:
    """Return what made that version: the dispatcher may have written another since."""
    events = (await caller.get(f"{vm.path}/history")).json()["events"]
    found: Json
    (found,) = [each for each in events if each["registry_version"] == version]
    return found


async def _pages(caller: Caller, path: str, **query: object) -> list[list[Any]]:
    pages, answer = [], await caller.get(path, **query)
    while True:
        assert answer.status == 200, answer.body
        document = answer.json()
        pages.append(document["events"] if isinstance(document, dict) else document)
        link = answer.headers.get("Link")
        if link is None:
            return pages
        assert link.endswith('; rel="next"')
        answer = await caller.call("GET", link.partition(">")[0].removeprefix("<"))


async def test_the_list_is_paged_by_links(alice: Caller, runtime: Served) -> None:
    made = [still_instance(runtime, alice.user).id for _ in range(5)]

    pages = await _pages(alice, REGISTRY, limit=2, lifecycle_state="suspect")

    assert [[row["vm_instance_id"] for row in page] for page in pages] == [
        made[:2],
        made[2:4],
        made[4:],
    ]


async def test_history_is_newest_first_and_paged(alice: Caller, vm: Still) -> None:
    for status in ("unknown", "pending", "unknown", "pending"):
        vm.move("suspect", status)

    first = (await alice.get(f"{vm.path}/history")).json()
    pages = await _pages(alice, f"{vm.path}/history", limit=2)

    assert first.keys() >= {"server_id", "server_name", "instance_id", "events"}
    assert first["server_id"] == vm.server_id
    assert first["instance_id"] == vm.name
    assert [event["registry_version"] for event in first["events"]] == [5, 4, 3, 2, 1]
    assert [event for page in pages for event in page] == first["events"]
    assert [len(page) for page in pages] == [2, 2, 1]
    newest = first["events"][0]
    assert newest.keys() >= {
        "id",
        "attestation_id",
        "previous_status",
        "current_status",
        "previous_lifecycle_state",
        "current_lifecycle_state",
        "transition_reason",
        "remediation_state",
        "remediation_attempts",
        "freshness_deadline",
        "provenance_ref",
        "provenance",
        "metadata",
        "registry_version",
        "actor",
        "triggered_at",
    }
    assert newest["previous_status"] == "unknown"
    assert newest["current_status"] == "pending"


@pytest.mark.parametrize(("limit", "status"), [(200, 200), (201, 400), (0, 400)])
async def test_history_has_a_largest_limit(
    alice: Caller, vm: Still, limit: int, status: int
) -> None:
    assert (await alice.get(f"{vm.path}/history", limit=limit)).status == status


async def test_a_transition_raises_the_version_and_writes_history(
    alice: Caller, vm: Still
) -> None:
    answer = await alice.post(
        f"{vm.path}/transition",
        {**QUARANTINE, "expected_version": 1, "transition_reason": "looks odd"},
    )

    assert answer.status == 200
    assert answer.headers["ETag"] == '"2"'
    row = answer.json()
    assert row.keys() >= VIEW
    assert (row["lifecycle_state"], row["version"]) == ("quarantined", 2)
    event = await _event(alice, vm, 2)
    assert event["transition_reason"] == "looks odd"
    assert event["actor"] == f"user:{alice.user}"
    assert event["previous_lifecycle_state"] == "suspect"


async def test_the_version_may_come_as_if_match(alice: Caller, vm: Still) -> None:
    answer = await alice.call(
        "POST", f"{vm.path}/transition", QUARANTINE, headers={"If-Match": '"1"'}
    )

    assert answer.status == 200
    event = await _event(alice, vm, 2)
    assert event["transition_reason"] == "manual"


async def test_two_versions_that_differ_are_refused(alice: Caller, vm: Still) -> None:
    answer = await alice.call(
        "POST",
        f"{vm.path}/transition",
        {**QUARANTINE, "expected_version": 2},
        headers={"If-Match": '"1"'},
    )

    answer.problem(400, "malformed")


@pytest.mark.parametrize("verb", ["transition", "release"])
async def test_stale_and_missing_versions_write_nothing(
    alice: Caller, vm: Still, verb: str
) -> None:
    vm.quarantine()
    body: Json = {"reason": "fine"} if verb == "release" else QUARANTINE

    stale = await alice.post(f"{vm.path}/{verb}", {**body, "expected_version": 1})
    missing = await alice.post(f"{vm.path}/{verb}", body)

    problem = stale.problem(409, "version-conflict")
    assert (problem["expected_version"], problem["current_version"]) == (1, 2)
    problem = missing.problem(409, "version-required")
    assert (problem["expected_version"], problem["current_version"]) == (None, 2)
    assert (await alice.get(vm.path)).json()["version"] == 2


async def test_an_illegal_transition_is_refused_whoever_asks(
    alice: Caller, boss: Caller, vm: Still
) -> None:
    wish = {
        "attestation_status": "trusted",
        "lifecycle_state": "restored",
        "expected_version": 1,
    }
    for caller in (alice, boss):
        answer = await caller.post(f"{vm.path}/transition", wish)
        answer.problem(409, "illegal-transition")


async def test_only_an_admin_overrides_with_reason_and_deadline(
    alice: Caller, boss: Caller, vm: Still
) -> None:
    wish: Json = {
        "attestation_status": "trusted",
        "lifecycle_state": "restored",
        "expected_version": 1,
        "override": True,
        "transition_reason": "checked by hand",
        "freshness_deadline": _later(60),
    }
    bare = {k: v for k, v in wish.items() if k != "freshness_deadline"}

    (await alice.post(f"{vm.path}/transition", wish)).problem(403, "forbidden")
    (await boss.post(f"{vm.path}/transition", bare)).problem(422, "invalid")
    done = await boss.post(f"{vm.path}/transition", wish)

    assert done.json()["lifecycle_state"] == "restored"
    assert done.json()["provenance_ref"].startswith("operator-override")


@pytest.mark.parametrize(
    "deadline",
    [
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2030-01-01T00:00:00",
        "tomorrow",
        "2030-02-30T00:00:00Z",
        1893456000,
    ],
)
async def test_a_deadline_that_is_no_instant_is_refused(
    boss: Caller, vm: Still, deadline: object
) -> None:
    answer = await boss.post(
        f"{vm.path}/transition",
        {
            "attestation_status": "trusted",
            "lifecycle_state": "restored",
            "expected_version": 1,
            "override": True,
            "transition_reason": "x",
            "freshness_deadline": deadline,
        },
    )

    assert "freshness_deadline" in answer.problem(422, "invalid")["detail"]
    assert (await boss.get(vm.path)).json()["version"] == 1


@pytest.mark.parametrize("tag", ["monitor", "remediation:monitor"])
async def test_a_remediation_tag_has_its_prefix_or_not(
    alice: Caller, vm: Still, tag: str
) -> None:
    answer = await alice.post(
        f"{vm.path}/transition",
        {**QUARANTINE, "expected_version": 1, "remediation_state": tag},
    )

    assert answer.json()["remediation_state"] == "remediation:monitor"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attestation_status", "good"),
        ("attestation_status", None),
        ("lifecycle_state", "Quarantined"),
        ("remediation_state", "remediation:nonsense"),
        ("remediation_attempts", -1),
        ("remediation_attempts", 2**31),
        ("remediation_attempts", "1"),
        ("provenance_ref", "x" * 201),
        ("provenance", []),
        ("transition_reason", ""),
        ("transition_reason", "x" * 501),
        ("metadata", None),
        ("expected_version", "1"),
        ("expected_version", 0),
        ("override", 1),
    ],
)
async def test_a_transition_of_the_wrong_shape_names_the_field(
    alice: Caller, vm: Still, field: str, value: object
) -> None:
    body = {**QUARANTINE, "expected_version": 1, field: value}

    answer = await alice.post(f"{vm.path}/transition", body)

    assert field in answer.problem(422, "invalid")["detail"]


async def test_a_release_needs_a_reason_and_goes_to_suspect(
    alice: Caller, vm: Still
) -> None:
    vm.quarantine()

    bare = await alice.post(f"{vm.path}/release", {"expected_version": 2})
    done = await alice.post(
        f"{vm.path}/release", {"expected_version": 2, "reason": "false alarm"}
    )

    assert "reason" in bare.problem(422, "invalid")["detail"]
    assert done.status == 200
    assert done.json()["lifecycle_state"] == "suspect"
    assert done.headers["ETag"] == f'"{done.json()["version"]}"'


async def test_s6_another_tenants_instance_is_as_one_that_is_not_there(
    bravo: Caller, alice: Caller, vm: Still
) -> None:
    assert (await bravo.get(REGISTRY)).json() == []
    assert (await bravo.get(REGISTRY, server_id=vm.server_id)).json() == []
    assert (await bravo.get(REGISTRY, cursor=vm.id - 1)).json() == []
    for method, tail, body in (
        ("GET", "", UNSET),
        ("GET", "/history", UNSET),
        ("POST", "/transition", {**QUARANTINE, "expected_version": 1}),
        ("POST", "/transition", {**QUARANTINE, "expected_version": 9}),
        ("POST", "/transition", QUARANTINE),
        ("POST", "/release", {"reason": "mine", "expected_version": 1}),
    ):
        theirs = await bravo.call(method, vm.path + tail, body)
        absent = await bravo.call(method, f"{REGISTRY}/{10**12}{tail}", body)

        theirs.problem(404, "not-found")
        assert theirs.body.replace(str(vm.id).encode(), b"?") == absent.body.replace(
            str(10**12).encode(), b"?"
        )
    assert (await alice.get(vm.path)).json()["version"] == 1


async def test_an_admin_sees_every_tenant(boss: Caller, vm: Still) -> None:
    assert (await boss.get(vm.path)).json()["vm_instance_id"] == vm.id


async def test_a_viewer_reads_its_own_and_changes_nothing(
    meet: Meet, alice: Caller, vm: Still
) -> None:
    viewer = meet("viewer", user=alice.user)

    assert (await viewer.get(vm.path)).status == 200
    assert (await viewer.get(f"{vm.path}/history")).status == 200
    for verb, body in (("transition", QUARANTINE), ("release", {"reason": "x"})):
        answer = await viewer.post(f"{vm.path}/{verb}", {**body, "expected_version": 1})
        answer.problem(403, "forbidden")
