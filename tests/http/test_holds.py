"""Holds and the breaker over HTTP: who may, what is said, and what is told."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.http.client import Caller
from tests.http.conftest import Still, still_instance

HOLDS = "/api/trust/holds"
BREAKER = "/api/trust/remediation/breaker"
INCIDENTS = "/api/trust/incidents"
LATER = (datetime.now(UTC) + timedelta(days=1)).isoformat()


def on(vm: Still, **changes: Any) -> dict[str, Any]:
    order = {
        "scope": "instance",
        "runtime_vm_instance_id": vm.id,
        "reason": "looking at it",
        "until": LATER,
    }
    return order | changes


async def test_a_hold_is_placed_listed_and_released(alice: Caller, vm: Still) -> None:
    answer = await alice.post(HOLDS, on(vm))
    hold = answer.json()
    assert answer.status == 201
    assert answer.headers["Location"] == f"{HOLDS}/{hold['id']}"
    assert hold["state"] == "in-force"
    assert (hold["by"], hold["kind"]) == (f"user:{alice.user}", "person")

    again = await alice.post(HOLDS, on(vm))
    assert (again.status, again.json()["id"]) == (200, hold["id"])
    listed = (await alice.get(HOLDS, runtime_vm_instance_id=vm.id)).json()
    assert [one["id"] for one in listed] == [hold["id"]]

    for _ in range(2):
        path = f"{HOLDS}/{hold['id']}"
        gone = await alice.call("DELETE", path, query={"reason": "done"})
        assert gone.status == 204
    after = (await alice.get(f"{HOLDS}/{hold['id']}")).json()
    assert (after["state"], after["release_reason"]) == ("released", "done")
    assert [one["event"] for one in after["events"]] == ["held", "released"]
    assert not (await alice.get(HOLDS, state="in-force")).json()


async def test_a_hold_without_an_end_asked_for_twice_is_one(
    alice: Caller, vm: Still
) -> None:
    order = {name: value for name, value in on(vm).items() if name != "until"}

    first, second = [await alice.post(HOLDS, order) for _ in range(2)]

    assert (first.status, second.status) == (201, 200)
    assert first.json() == second.json()
    assert first.json()["until"] is not None


async def test_a_hold_shows_in_the_gate_with_who_and_until(
    alice: Caller, vm: Still
) -> None:
    await alice.made(HOLDS, on(vm))

    notes = (await alice.get(f"/api/servers/{vm.server_id}/placement")).json()["notes"]

    assert "policy_hook:remediation_gate=held:instance" in notes
    (note,) = [note for note in notes if note.startswith("remediation:held-by:")]
    assert note.startswith(f"remediation:held-by:instance:user:{alice.user}:until:20")


async def test_a_hold_for_some_seconds_ends_by_itself(alice: Caller, vm: Still) -> None:
    async with alice.stream(f"{HOLDS}/stream") as stream:
        order = on(vm, for_seconds=0.3)
        del order["until"]
        hold = await alice.made(HOLDS, order)

        told = [(await stream.event()).data for _ in range(2)]

    assert [one["event"] for one in told] == ["held", "expired"]
    assert {one["hold_id"] for one in told} == {hold["id"]}
    after = (await alice.get(f"{HOLDS}/{hold['id']}")).json()
    assert after["state"] == "expired"


async def test_others_see_no_hold_of_mine(
    alice: Caller, bravo: Caller, vm: Still
) -> None:
    hold = await alice.made(HOLDS, on(vm))
    path = f"{HOLDS}/{hold['id']}"

    (await bravo.get(path)).problem(404, "not-found")
    (await bravo.call("DELETE", path)).problem(404, "not-found")
    (await bravo.post(HOLDS, on(vm))).problem(404, "not-found")
    assert hold["id"] not in [one["id"] for one in (await bravo.get(HOLDS)).json()]


async def test_a_viewer_places_nothing(meet: Any, alice: Caller, vm: Still) -> None:
    viewer = meet("viewer", alice.user)

    (await viewer.post(HOLDS, on(vm))).problem(403, "forbidden")
    assert (await viewer.get(HOLDS)).status == 200


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"scope": "instance"}, 422, "runtime_vm_instance_id"),
        (
            {"scope": "owner", "runtime_vm_instance_id": 1},
            422,
            "runtime_vm_instance_id",
        ),
        ({"scope": "galaxy"}, 422, "scope"),
        ({"scope": "owner", "until": "2020-01-01T00:00:00Z"}, 422, "until"),
        ({"scope": "owner", "until": "2100-01-01T00:00:00Z"}, 422, "until"),
        ({"scope": "owner", "until": "2100-01-01T00:00:00"}, 422, "until"),
        ({"scope": "owner", "until": LATER, "for_seconds": 5}, 422, "for_seconds"),
        ({"scope": "owner", "for_seconds": 0}, 422, "for_seconds"),
        ({"scope": "owner", "reason": ""}, 422, "reason"),
        ({"scope": "owner", "why": "x"}, 422, "why"),
        ({"scope": "all"}, 403, "scope"),
    ],
)
async def test_what_does_not_fit_is_refused_by_its_name(
    alice: Caller, body: dict[str, Any], status: int, field: str
) -> None:
    answer = await alice.post(HOLDS, {"reason": "x", **body})

    assert answer.status == status
    assert answer.json()["detail"].startswith(field)


async def test_an_admins_hold_is_not_the_owners_to_release(
    alice: Caller, boss: Caller, vm: Still
) -> None:
    hold = await boss.made(HOLDS, on(vm))
    path = f"{HOLDS}/{hold['id']}"

    (await alice.call("DELETE", path)).problem(403, "forbidden")
    assert (await boss.call("DELETE", path)).status == 204


async def test_the_breaker_is_shown_and_released_by_admins_only(
    alice: Caller, boss: Caller
) -> None:
    shown = (await alice.get(BREAKER)).json()
    assert (shown["state"], shown["incidents"]) == ("closed", [])
    assert shown["limits"]["percent"] == 20.0

    body = {"reason": "rolled back"}
    (await alice.post(f"{BREAKER}/release", body)).problem(403, "forbidden")
    assert (await boss.made(f"{BREAKER}/release", body))["released"] == []


async def test_of_the_fleets_incident_tenants_see_that_it_is(
    alice: Caller, boss: Caller
) -> None:
    alice.runtime.rows(
        """
        INSERT INTO remediation_incidents
               (scope, cause, quarantined, living, limits, common, counted_since,
                opened_at, opened_by, updated_at, released_at, released_by)
        VALUES ('all', 'share', 9, 10, '{"window_seconds": 600}',
                '[{"trait": "image", "value": "x", "affected": 9, "rest": 0,
                   "affected_total": 9, "rest_total": 1}]',
                now(), now(), 'test', now(), now(), 'user:1')
        """
    )

    seen = (await alice.get(INCIDENTS)).json()[0]
    known = (await boss.get(INCIDENTS)).json()[0]

    assert "common" not in seen
    assert "quarantined" not in seen
    assert known["summary"].endswith("9 of 9 have image x, of the others 0 of 1")
    assert (await alice.get(f"{INCIDENTS}/{known['id']}")).json() == seen
    assert known["id"] not in [
        one["id"] for one in (await boss.get(INCIDENTS, open="true")).json()
    ]


# --- why ----------------------------------------------------------------------------


async def test_why_agrees_with_the_gate_and_names_what_would_clear_it(
    alice: Caller, vm: Still
) -> None:
    vm.quarantine()
    hold = await alice.made(HOLDS, on(vm))

    answer = await alice.get(f"{vm.path}/why")
    told = answer.json()

    assert answer.headers["ETag"] == f'"{told["version"]}"'
    assert (told["trusted"], told["placeable"]) == (False, False)
    reasons = {one["code"]: one for one in told["reasons"]}
    assert reasons.keys() == {
        "lifecycle-quarantined",
        "attestation-untrusted",
        "hold",
        "no-playbook",
        "gate-lifecycle-quarantined",
        "gate-held",
    }
    assert reasons["gate-held"]["source"] == f"hold:{hold['id']}"
    gate = (await alice.get(f"/api/servers/{vm.server_id}/placement")).json()
    assert told["gate_notes"] == gate["notes"]
    for one in told["reasons"]:
        assert one["age_seconds"] >= 0
        assert one["next"]
    of_server = (await alice.get(f"/api/servers/{vm.server_id}/why")).json()
    assert of_server["reasons"][0]["code"] == "lifecycle-quarantined"


async def test_of_a_trusted_instance_why_is_empty(alice: Caller, vm: Still) -> None:
    vm.move("restored", "trusted", freshness_deadline=LATER)

    told = (await alice.get(f"{vm.path}/why")).json()

    assert (told["trusted"], told["placeable"], told["reasons"]) == (True, True, [])


async def test_why_is_for_those_who_may_see_the_instance(
    bravo: Caller, vm: Still
) -> None:
    (await bravo.get(f"{vm.path}/why")).problem(404, "not-found")
    (await bravo.get(f"/api/servers/{vm.server_id}/why")).problem(404, "not-found")
    (await bravo.get(f"{vm.path}/why", depth=2)).problem(400, "malformed")


async def test_a_server_without_an_instance_has_no_why(alice: Caller) -> None:
    server = await alice.made("/api/servers", {"name": "web"})

    answer = await alice.get(f"/api/servers/{server['id']}/why")

    answer.problem(404, "not-found")


async def test_history_that_was_pruned_leaves_a_reason_all_the_same(
    alice: Caller,
) -> None:
    vm = still_instance(alice.runtime, alice.user)
    alice.runtime.rows(
        "DELETE FROM runtime_vm_trust_history WHERE runtime_vm_instance_id = %s", vm.id
    )

    told = (await alice.get(f"{vm.path}/why")).json()

    assert told["reasons"][0]["code"] == "lifecycle-suspect"
