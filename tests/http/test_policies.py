"""Policies and reference values over HTTP, and what they do to real verdicts."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.http.client import Caller, Json
from tests.http.conftest import Meet
from tests.http.guests import ZERO, Guest

POLICIES = "/api/attestation/policies"
REFERENCES = "/api/attestation/references"

STRANGE = "ab" * 32


def a_policy(**pcrs: str) -> Json:
    registers = {name.removeprefix("pcr"): [value] for name, value in pcrs.items()}
    tpm = {"allow_software": ["swtpm"], "pcrs": registers or {"0": [ZERO.hex()]}}
    return {"max_age_s": 200, "kinds": {"tpm": tpm}}


def a_set(**values: str) -> Json:
    named = {name.replace("_", "-"): [value] for name, value in values.items()}
    return {"kind": "tpm", "values": named}


class Shelf:
    """What an admin keeps for one owner only: others' tests are left alone."""

    def __init__(self, boss: Caller, owner: int) -> None:
        self.boss = boss
        self.owner = owner

    async def add(self, path: str, document: Json, **more: Any) -> Json:
        body = {
            "name": f"for-{self.owner}",
            "document": document,
            "owner_id": self.owner,
            **more,
        }
        return await self.boss.made(path, body)

    async def move(self, path: str, row: Json, verb: str, **body: Any) -> Json:
        answer = await self.boss.post(
            f"{path}/{row['id']}/{verb}", {"expected_version": row["version"], **body}
        )
        assert answer.status == 200, answer.body
        moved: Json = answer.json()
        return moved

    async def active(self, path: str, document: Json, **more: Any) -> Json:
        return await self.move(path, await self.add(path, document, **more), "activate")


@pytest_asyncio.fixture
async def shelf(boss: Caller, alice: Caller) -> Shelf:
    await alice.get("/api/session")  # who never came has no documents
    return Shelf(boss, alice.user)


def later(**span: float) -> str:
    return (datetime.now(UTC) + timedelta(**span)).isoformat()


# --- versions -----------------------------------------------------------------------


async def test_a_version_is_staged_and_numbered(shelf: Shelf, alice: Caller) -> None:
    first = await shelf.add(POLICIES, a_policy(), note="first")
    second = await shelf.add(POLICIES, a_policy())

    assert (first["document_version"], second["document_version"]) == (1, 2)
    assert first["state"] == "staged"
    answer = await alice.get(f"{POLICIES}/{first['id']}")
    assert answer.headers["ETag"] == '"1"'
    assert answer.json() == first
    listed = (await alice.get(POLICIES, name=first["name"])).json()
    assert [row["document_version"] for row in listed] == [1, 2]


async def test_activating_a_policy_ends_the_one_before(shelf: Shelf) -> None:
    first = await shelf.active(POLICIES, a_policy())
    second = await shelf.active(POLICIES, a_policy())

    before = (await shelf.boss.get(f"{POLICIES}/{first['id']}")).json()
    assert second["state"] == "active"
    assert before["state"] == "deprecated"
    assert before["deprecated_until"] <= later()


async def test_activating_with_a_date_lets_the_one_before_run_out(
    shelf: Shelf,
) -> None:
    first = await shelf.active(POLICIES, a_policy())
    second = await shelf.add(POLICIES, a_policy())
    await shelf.move(POLICIES, second, "activate", previous_until=later(hours=1))

    before = (await shelf.boss.get(f"{POLICIES}/{first['id']}")).json()
    assert before["deprecated_until"] > later()[:19]


async def test_sets_are_active_beside_each_other(shelf: Shelf) -> None:
    first = await shelf.active(REFERENCES, a_set(pcr_0=ZERO.hex()))
    await shelf.active(REFERENCES, a_set(pcr_0=STRANGE))

    before = (await shelf.boss.get(f"{REFERENCES}/{first['id']}")).json()
    assert before["state"] == "active"


async def test_one_policy_is_active_for_a_scope(shelf: Shelf) -> None:
    await shelf.active(POLICIES, a_policy())
    other = await shelf.add(POLICIES, a_policy(), name=f"other-{shelf.owner}")

    answer = await shelf.boss.post(
        f"{POLICIES}/{other['id']}/activate", {"expected_version": 1}
    )

    assert "deprecate it first" in answer.problem(409, "conflict")["detail"]


async def test_every_version_of_a_name_has_one_scope(shelf: Shelf) -> None:
    await shelf.add(POLICIES, a_policy())

    answer = await shelf.boss.post(
        POLICIES,
        {
            "name": f"for-{shelf.owner}",
            "document": a_policy(),
            "owner_id": shelf.owner,
            "tier": "sev-snp",
        },
    )

    assert answer.problem(409, "conflict")["owner_id"] == shelf.owner


async def test_what_is_revoked_stays_so(shelf: Shelf) -> None:
    row = await shelf.add(POLICIES, a_policy())
    gone = await shelf.move(POLICIES, row, "revoke")

    answer = await shelf.boss.post(
        f"{POLICIES}/{row['id']}/activate", {"expected_version": gone["version"]}
    )

    assert answer.problem(409, "conflict")["state"] == "revoked"


async def test_a_writer_says_which_version_it_saw(shelf: Shelf) -> None:
    row = await shelf.add(POLICIES, a_policy())
    path = f"{POLICIES}/{row['id']}/activate"

    (await shelf.boss.post(path)).problem(409, "version-required")
    (await shelf.boss.post(path, {"expected_version": 7})).problem(
        409, "version-conflict"
    )
    assert (
        await shelf.boss.call("POST", path, headers={"If-Match": '"1"'})
    ).status == (200)


async def test_policies_are_an_admin_s_to_write_and_their_owner_s_to_read(
    shelf: Shelf, alice: Caller, bravo: Caller
) -> None:
    row = await shelf.add(POLICIES, a_policy())

    (await alice.post(POLICIES, {"name": "x", "document": {}})).problem(
        403, "forbidden"
    )
    (await alice.post(f"{POLICIES}/{row['id']}/revoke")).problem(403, "forbidden")
    (await bravo.get(f"{POLICIES}/{row['id']}")).problem(404, "not-found")
    (await alice.get(f"{REFERENCES}/{row['id']}")).problem(404, "not-found")
    assert row["id"] not in [one["id"] for one in (await bravo.get(POLICIES)).json()]


@pytest.mark.parametrize(
    ("path", "body", "fault"),
    [
        (POLICIES, {"document": {}}, "name"),
        (POLICIES, {"name": "Not A Name", "document": {}}, "name"),
        (POLICIES, {"name": "x", "document": {"kinds": {"tmp": {}}}}, "kinds.tmp"),
        (POLICIES, {"name": "x", "document": {"id": "y"}}, "document.id"),
        (POLICIES, {"name": "x", "document": {"max_age_s": "1"}}, "max_age_s"),
        (POLICIES, {"name": "x", "document": {}, "tier": "gold"}, "tier"),
        (REFERENCES, {"name": "x", "document": {"kind": "tpm"}}, "values"),
        (REFERENCES, {"name": "x", "document": a_set(mrtd="ab" * 32)}, "mrtd"),
    ],
)
async def test_a_document_with_a_fault_is_refused_by_its_place(
    boss: Caller, path: str, body: Json, fault: str
) -> None:
    answer = await boss.post(path, body)

    assert fault in answer.problem(422, "invalid")["detail"]


async def test_an_owner_that_nobody_is_is_not_found(boss: Caller) -> None:
    body = {"name": "nobody-s", "document": {}, "owner_id": 2**40}

    (await boss.post(POLICIES, body)).problem(404, "not-found")


# --- in force -----------------------------------------------------------------------


async def test_a_verdict_names_the_policy_version_that_it_was_judged_by(
    shelf: Shelf, guest: Guest
) -> None:
    row = await shelf.active(POLICIES, a_policy())

    await guest.answer()

    verdict = await guest.until_code("ok")
    assert verdict["policy_id"] == row["name"]
    assert verdict["policy_version"] == row["document_version"]
    posture = await guest.until_posture(lifecycle_state="restored")
    assert posture["provenance"]["policy"] == {"id": row["name"], "version": 1}


async def test_activating_a_policy_has_those_concerned_attested_again(
    shelf: Shelf, guest: Guest
) -> None:
    await guest.answer()
    await guest.until_posture(lifecycle_state="restored")

    await shelf.active(POLICIES, a_policy(pcr0=STRANGE))
    await guest.answer()

    await guest.until_posture(lifecycle_state="quarantined")


async def test_what_a_deprecated_policy_still_accepts_is_trusted_with_a_warning(
    shelf: Shelf, guest: Guest
) -> None:
    await shelf.active(POLICIES, a_policy())
    strict = await shelf.add(POLICIES, a_policy(pcr0=STRANGE))
    await shelf.move(POLICIES, strict, "activate", previous_until=later(hours=1))

    await guest.answer()

    verdict = await guest.until_code("ok-with-advisories")
    assert verdict["policy_version"] == 1


async def test_a_revoked_set_makes_its_evidence_untrusted(
    shelf: Shelf, guest: Guest
) -> None:
    row = await shelf.active(REFERENCES, a_set(pcr_7=ZERO.hex()))
    await guest.answer()
    await guest.until_posture(lifecycle_state="restored")

    await shelf.move(REFERENCES, row, "revoke")
    await guest.answer()

    await guest.until_posture(lifecycle_state="quarantined")
    verdict = await guest.until_code("measurement-unknown")
    assert "revoked" in verdict["verification_notes"][0]


async def test_a_set_lets_more_be_measured(shelf: Shelf, guest: Guest) -> None:
    await shelf.active(REFERENCES, a_set(pcr_7="66" * 32))

    await guest.answer(b"\x66" * 32)

    await guest.until_posture(lifecycle_state="restored")


async def test_others_are_judged_by_what_they_were(
    boss: Caller, bravo: Caller, guest: Guest
) -> None:
    (await bravo.get("/api/servers")).json()
    await Shelf(boss, bravo.user).active(POLICIES, a_policy(pcr0=STRANGE))

    await guest.answer()

    await guest.until_code("ok")


# --- rehearsals ---------------------------------------------------------------------


async def test_a_dry_run_says_who_would_be_judged_otherwise(
    shelf: Shelf, guest: Guest, alice: Caller
) -> None:
    await guest.answer()
    await guest.until_code("ok")

    body = {"document": a_policy(pcr0=STRANGE), "owner_id": shelf.owner}
    (row,) = (await alice.post(f"{POLICIES}/dry-run", body)).json()

    assert row["vm_instance_id"] == guest.id
    assert row["changes"] is True
    assert (row["now"]["status"], row["would_be"]["status"]) == ("trusted", "untrusted")
    assert row["would_be"]["code"] == "measurement-unknown"
    (failed,) = row["failed_checks"]
    assert (failed["expected"], failed["actual"]) == (STRANGE, ZERO.hex())
    assert (await guest.posture())["lifecycle_state"] == "restored"


async def test_a_dry_run_of_revoking_a_policy_judges_by_what_is_left(
    shelf: Shelf, guest: Guest
) -> None:
    row = await shelf.active(POLICIES, a_policy(pcr0=STRANGE))
    await guest.answer()
    await guest.until_code("measurement-unknown")

    body = {"version_id": row["id"], "state": "revoked"}
    (would,) = (await shelf.boss.post(f"{POLICIES}/dry-run", body)).json()

    assert would["changes"] is True
    assert (would["now"]["status"], would["would_be"]["status"]) == (
        "untrusted",
        "trusted",
    )


async def test_a_version_that_is_there_is_rehearsed_by_its_id(
    shelf: Shelf, guest: Guest
) -> None:
    row = await shelf.active(REFERENCES, a_set(pcr_7=ZERO.hex()))
    await guest.answer()
    await guest.until_code("ok")

    path = f"{REFERENCES}/dry-run"
    same = await shelf.boss.post(path, {"version_id": row["id"]})
    revoked = await shelf.boss.post(path, {"version_id": row["id"], "state": "revoked"})

    assert [one["changes"] for one in same.json()] == [False]
    assert [one["changes"] for one in revoked.json()] == [True]


async def test_a_dry_run_shows_a_fleet_by_pages_and_each_owner_their_own(
    shelf: Shelf, guest: Guest, bravo: Caller, meet: Meet
) -> None:
    await guest.answer()
    await guest.until_code("ok")
    path, body = f"{POLICIES}/dry-run", {"document": a_policy()}
    whole = {**body, "owner_id": shelf.owner}

    assert (await bravo.post(path, body)).json() == []
    answer = await shelf.boss.call("POST", path, whole, query={"limit": "1"})
    assert len(answer.json()) == 1
    assert f"cursor={guest.id}" in answer.headers["Link"]
    rest = await shelf.boss.call(
        "POST", path, whole, query={"limit": "1", "cursor": str(guest.id)}
    )
    assert rest.json() == []
    (await meet("viewer").post(path, body)).problem(403, "forbidden")


@pytest.mark.parametrize("body", [{}, {"version_id": 1, "document": {}}])
async def test_a_dry_run_is_about_one_document(alice: Caller, body: Json) -> None:
    answer = await alice.post(f"{POLICIES}/dry-run", body)

    assert "version_id, document" in answer.problem(422, "invalid")["detail"]


async def test_a_dry_run_of_no_version_is_not_found(alice: Caller) -> None:
    answer = await alice.post(f"{POLICIES}/dry-run", {"version_id": 2**40})

    answer.problem(404, "not-found")
