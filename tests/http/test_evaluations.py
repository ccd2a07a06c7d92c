"""Certifications over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fix_fabric import until
from tests.http.client import UNSET, Caller, Json
from tests.http.conftest import Meet, Still

PATH = "/api/evaluations"
SHOWN = {
    "id",
    "artifact_id",
    "server_id",
    "tier",
    "status",
    "next_refresh_at",
    "last_attestation_status",
    "fallback_launched_at",
    "lifecycle_state",
    "remediation_attempts",
    "freshness_deadline",
    "provenance_ref",
}


async def certified(caller: Caller) -> Json:
    """Make a server; return its certification, which nobody refreshes yet."""
    server = await caller.made("/api/servers", {"name": "web"})
    (row,) = (await caller.get(PATH, server_id=server["id"])).json()
    document: Json = row
    return document


def one(row: Json, what: str = "status") -> str:
    return f"{PATH}/{row['id']}/{what}"


async def patched(caller: Caller, row: Json, **body: Any) -> Json:
    answer = await caller.call("PATCH", one(row), body)
    assert answer.status == 200, answer.body
    assert answer.headers["ETag"] == f'"{answer.json()["version"]}"'
    document: Json = answer.json()
    return document


async def test_a_server_has_one_certification(alice: Caller, bravo: Caller) -> None:
    row = await certified(alice)

    assert row.keys() >= SHOWN
    assert (row["tier"], row["status"]) == ("standard", "pending")
    assert row["policy_requirement"] == "runtime-attestation"
    assert (await alice.get(one(row))).json()["id"] == row["id"]
    assert [each["id"] for each in (await alice.get(PATH)).json()] == [row["id"]]
    assert (await bravo.get(PATH)).json() == []


async def test_lists_are_narrowed_and_paged(alice: Caller) -> None:
    rows = [await certified(alice) for _ in range(3)]

    first = await alice.get(PATH, limit=2)
    assert [each["id"] for each in first.json()] == [row["id"] for row in rows[:2]]
    assert 'rel="next"' in first.headers["Link"]
    assert (await alice.get(PATH, status=" PASS ")).json() == []
    assert len((await alice.get(PATH, status="pending")).json()) == 3
    (await alice.get(PATH, status="good")).problem(400, "malformed")
    (await alice.get(PATH, tier="x")).problem(400, "malformed")


@pytest.mark.parametrize(
    ("method", "what"),
    [("GET", "status"), ("PATCH", "status"), ("GET", "lineage"), ("POST", "retry")],
)
async def test_others_certifications_are_not_there(
    alice: Caller, bravo: Caller, method: str, what: str
) -> None:
    row = await certified(alice)

    answer = await bravo.call(
        method, one(row, what), {} if method == "PATCH" else UNSET
    )

    answer.problem(404, "not-found")


async def test_a_new_one_that_shall_never_be_refreshed_is_not_planned(
    alice: Caller,
) -> None:
    row = await certified(alice)

    never = await patched(alice, row, next_refresh_at=None, governance_notes="never")

    assert (never["next_refresh_at"], never["refresh"]) == (None, None)


async def test_absent_keeps_and_null_clears(alice: Caller) -> None:
    row = await certified(alice)
    at = "2099-01-01T00:00:00Z"
    planned = await patched(
        alice,
        row,
        refresh_cadence_seconds=600,
        next_refresh_at=at,
        governance_notes="by hand",
        evidence_source=["a", {"b": 1}],
        evidence_lineage={"sbom": "x"},
    )
    assert planned["next_refresh_at"] == at
    assert planned["evidence_source"] == ["a", {"b": 1}]

    cleared = await patched(alice, row, governance_notes=None, evidence_lineage=None)

    assert cleared["governance_notes"] is None
    assert cleared["refresh_cadence_seconds"] == 600
    assert cleared["next_refresh_at"] == at
    lineage = (await alice.get(one(row, "lineage"))).json()
    assert lineage["evidence_lineage"] is None
    assert lineage["evidence_source"] == ["a", {"b": 1}]
    empty = await patched(
        alice,
        row,
        refresh_cadence_seconds=None,
        next_refresh_at=None,
        evidence_source=None,
    )
    assert [empty[name] for name in ("refresh_cadence_seconds", "next_refresh_at")] == [
        None,
        None,
    ]
    assert empty["evidence_source"] is None


async def test_a_version_is_checked_where_it_is_given(alice: Caller) -> None:
    row = await certified(alice)
    first = await patched(alice, row, governance_notes="1", next_refresh_at=None)
    version = first["version"]

    await patched(alice, row, governance_notes="2", expected_version=version)
    late = await alice.call(
        "PATCH", one(row), {"governance_notes": "3", "expected_version": version}
    )
    header = await alice.call(
        "PATCH", one(row), {}, headers={"If-Match": f'"{version}"'}
    )

    problem = late.problem(409, "version-conflict")
    assert (problem["expected_version"], problem["current_version"]) == (
        version,
        version + 1,
    )
    header.problem(409, "version-conflict")
    assert (await alice.get(one(row))).json()["governance_notes"] == "2"


@pytest.mark.parametrize(
    "body",
    [
        {"status": "pass"},
        {"refresh_cadence_seconds": 0},
        {"refresh_cadence_seconds": "60"},
        {"refresh_cadence_seconds": 2**31},
        {"next_refresh_at": "2099-01-01T00:00:00"},
        {"next_refresh_at": "soon"},
        {"governance_notes": "x" * 501},
        {"governance_notes": 7},
        {"expected_version": "1"},
    ],
)
async def test_what_does_not_fit_is_refused_by_its_name(
    alice: Caller, body: Json
) -> None:
    row = await certified(alice)

    answer = await alice.call("PATCH", one(row), body)

    assert next(iter(body)) in answer.problem(422, "invalid")["detail"]


async def test_viewers_only_look(alice: Caller, meet: Meet) -> None:
    row = await certified(alice)
    viewer = meet("viewer", alice.user)

    assert (await viewer.get(one(row))).status == 200
    (await viewer.call("PATCH", one(row), {})).problem(403, "forbidden")
    (await viewer.call("POST", one(row, "retry"))).problem(403, "forbidden")


async def test_a_retry_is_on_its_way_until_a_vm_runs(alice: Caller) -> None:
    row = await certified(alice)

    answer = await alice.call("POST", one(row, "retry"))

    assert answer.status == 202
    assert answer.json()["refresh"]["status"] == "queued"
    lineage = (await alice.get(one(row, "lineage"))).json()
    assert [each["status"] for each in lineage["refreshes"]] == ["queued"]


async def test_a_retry_of_a_distrusted_one_is_refused_with_notes(
    alice: Caller, vm: Still
) -> None:
    _certify(vm)
    (row,) = (await alice.get(PATH)).json()
    vm.move("quarantined", "untrusted")

    answer = await alice.call("POST", one(row, "retry"))

    notes = answer.problem(409, "placement-blocked")["notes"]
    assert "trust:lifecycle:quarantined" in notes


async def test_distrust_shows_as_a_fallback_and_goes_with_trust(
    alice: Caller, vm: Still
) -> None:
    _certify(vm)
    (row,) = (await alice.get(PATH)).json()

    vm.move("quarantined", "untrusted")

    async def blocked() -> Json | None:
        found: Json = (await alice.get(one(row))).json()
        return found if found["fallback_launched_at"] else None

    shown = await until(blocked, "the fallback")
    assert shown["lifecycle_state"] == "quarantined"
    assert shown["last_attestation_status"] == "untrusted"
    assert shown["status"] == "fail"
    deadline = datetime.now(UTC) + timedelta(hours=1)
    vm.move("restored", "trusted", freshness_deadline=deadline)

    async def resumed() -> bool | None:
        found = (await alice.get(one(row))).json()
        return found["fallback_launched_at"] is None or None

    await until(resumed, "the end of the fallback")


def _certify(vm: Still) -> None:
    vm.runtime.rows(
        "INSERT INTO evaluation_certifications (server_id) VALUES (%s)", vm.server_id
    )


async def test_all_is_there_for_an_admin(alice: Caller, boss: Caller) -> None:
    row = await certified(alice)

    assert (await boss.get(one(row))).json()["id"] == row["id"]


@pytest.mark.libvirt
async def test_a_vm_that_attests_is_certified_and_again_on_request(
    alice: Caller,
) -> None:
    config = {"attestation": {"kind": "tpm", "source": "swtpm"}}
    server = await alice.made("/api/servers", {"name": "web", "config": config})
    (row,) = (await alice.get(PATH, server_id=server["id"])).json()
    await alice.made(f"/api/servers/{server['id']}/start")

    async def passed_after(before: Any) -> Json | None:
        found: Json = (await alice.get(one(row))).json()
        return found if found["valid_from"] not in {None, before} else None

    first = await until(lambda: passed_after(None), "the first verdict")
    assert (first["status"], first["last_attestation_status"]) == ("pass", "trusted")
    assert (await alice.call("POST", one(row, "retry"))).status == 202
    await until(lambda: passed_after(first["valid_from"]), "another verdict")

    lineage = (await alice.get(one(row, "lineage"))).json()
    told = lineage["evidence_lineage"]["attestation"]
    assert told["provenance_ref"] == f"attestation:tpm:{told['attestation_id']}"
    assert [each["status"] for each in lineage["refreshes"]][-2:] == ["done", "done"]
