"""Agents that push over HTTP, and what is recorded of what they push."""

import asyncio
import base64
import json
import secrets

import aiohttp
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.domain.evidence.tpm_quotes import FakeTpm
from tests.fix_runtime import Served
from tests.http.client import Caller, Json
from tests.http.conftest import Meet
from tests.http.guests import (
    CHALLENGES,
    TAMPERED,
    TOKENS,
    ZERO,
    Guest,
    a_guest,
    a_running,
    issue,
)
from trustfabric.actors.bells import MOST
from trustfabric.verify import verify_stored

# --- answers ------------------------------------------------------------------------


async def test_a_pushed_answer_restores(guest: Guest) -> None:
    asked = await guest.answer()

    row = await guest.until_posture(lifecycle_state="restored")
    verdict = await guest.until_code("ok")
    assert row["provenance_ref"] == verdict["provenance_ref"]
    assert verdict["challenge_id"] == asked["challenge_id"]
    assert (verdict["policy_id"], verdict["policy_version"]) == ("demo-software-tpm", 1)


async def test_a_tampered_guest_is_quarantined(guest: Guest) -> None:
    await guest.answer(TAMPERED)

    await guest.until_posture(lifecycle_state="quarantined")
    verdict = await guest.until_code("measurement-unknown")
    assert "pcr-sha256-7" in verdict["verification_notes"][0]


async def test_malformed_evidence_is_untrusted_with_its_reason(guest: Guest) -> None:
    asked = await guest.challenge()

    assert (await guest.push(asked["nonce"], b"no evidence")).status == 202

    await guest.until_posture(lifecycle_state="quarantined")
    await guest.until_code("malformed")


async def test_evidence_for_another_nonce_is_untrusted(guest: Guest) -> None:
    asked = await guest.challenge()
    other = asked | {"extra_data": "00" * 32}

    assert (await guest.push(asked["nonce"], guest.quote(other))).status == 202

    await guest.until_code("nonce-mismatch")
    assert (await guest.posture())["attestation_status"] == "untrusted"


async def test_a_second_answer_to_a_challenge_is_refused_and_untrusted(
    guest: Guest,
) -> None:
    asked = await guest.challenge()
    evidence = guest.quote(asked)
    await guest.push(asked["nonce"], evidence)
    await guest.until_posture(lifecycle_state="restored")

    again = await guest.push(asked["nonce"], evidence)

    again.problem(409, "answer-refused")
    await guest.until_posture(lifecycle_state="quarantined")
    verdict = await guest.until_code("nonce-mismatch")
    assert "second time" in verdict["verification_notes"][0]


async def test_a_nonce_that_nobody_was_told_is_refused_and_untrusted(
    guest: Guest,
) -> None:
    asked = await guest.challenge()

    answer = await guest.push(secrets.token_hex(32), guest.quote(asked))

    answer.problem(409, "answer-refused")
    await guest.until_posture(lifecycle_state="quarantined")


async def test_another_s_challenge_can_t_be_answered(
    guest: Guest, alice: Caller
) -> None:
    other = await a_guest(alice)
    asked = await other.challenge()

    answer = await guest.push(asked["nonce"], guest.quote(asked))

    answer.problem(409, "answer-refused")
    await guest.until_posture(lifecycle_state="quarantined")
    assert (await other.posture())["lifecycle_state"] == "suspect"


async def test_a_late_answer_is_unknown_and_asked_for_again(guest: Guest) -> None:
    asked = await guest.challenge()
    guest.owner.runtime.rows(
        """
        UPDATE attestation_challenges
           SET issued_at = now() - interval '3 s', expires_at = now() - interval '1 s'
         WHERE id = %s
        """,
        asked["challenge_id"],
    )

    answer = await guest.push(asked["nonce"], guest.quote(asked))

    answer.problem(409, "answer-late")
    await guest.until_code("unreachable")
    assert (await guest.posture())["lifecycle_state"] == "suspect"
    await guest.answer()
    await guest.until_posture(lifecycle_state="restored")


async def test_a_late_answer_after_it_was_given_up_is_no_replay(guest: Guest) -> None:
    asked = await guest.challenge()
    guest.owner.runtime.rows(
        """
        UPDATE attestation_challenges SET used_at = now(), outcome = 'unreachable'
         WHERE id = %s
        """,
        asked["challenge_id"],
    )

    answer = await guest.push(asked["nonce"], guest.quote(asked))

    answer.problem(409, "answer-late")
    assert (await guest.posture())["attestation_status"] != "untrusted"
    assert (await guest.challenge())["challenge_id"] > asked["challenge_id"]


async def test_of_two_answers_to_one_challenge_one_is_recorded(guest: Guest) -> None:
    asked = await guest.challenge()
    evidence = base64.b64encode(guest.quote(asked)).decode()

    body = {"nonce": asked["nonce"], "evidence": evidence}
    answers = await asyncio.gather(
        *(guest.agent.post(CHALLENGES, body) for _ in range(5))
    )

    assert [each.status for each in answers].count(202) <= 1
    assert {each.status for each in answers} <= {202, 409, 429}
    if 202 not in {each.status for each in answers}:
        await guest.push(asked["nonce"], base64.b64decode(evidence))
    await guest.until_code("ok")
    recorded = guest.owner.runtime.rows(
        "SELECT count(*) FROM runtime_vm_attestations WHERE challenge_id = %s",
        asked["challenge_id"],
    )
    assert recorded == [(1,)]


async def test_a_challenge_whose_answer_is_being_judged_is_not_told_again(
    guest: Guest,
) -> None:
    asked = await guest.challenge()
    with psycopg.connect(guest.owner.runtime.database_url) as conn:
        conn.execute(
            """
            SELECT 1 FROM runtime_vm_trust_registry
             WHERE runtime_vm_instance_id = %s FOR UPDATE
            """,
            [guest.id],
        )
        assert (await guest.push(asked["nonce"], guest.quote(asked))).status == 202

        assert (await guest.agent.get(CHALLENGES)).json() == []

    await guest.until_posture(lifecycle_state="restored")
    assert (await guest.agent.get(CHALLENGES)).json() == []


# --- fetching -----------------------------------------------------------------------


async def test_each_telling_has_a_nonce_of_its_own_and_any_answers(
    guest: Guest,
) -> None:
    first = await guest.challenge()
    second = await guest.challenge()

    answer = await guest.push(first["nonce"], guest.quote(first))

    assert first["challenge_id"] == second["challenge_id"]
    assert first["nonce"] != second["nonce"]
    assert answer.status == 202
    await guest.until_posture(lifecycle_state="restored")


async def test_no_nonce_is_kept(guest: Guest) -> None:
    asked = await guest.challenge()

    kept = guest.owner.runtime.rows(
        """
        SELECT 1 FROM attestation_tellings WHERE nonce_digest = %s
        UNION ALL
        SELECT 1 FROM attestation_challenges WHERE nonce_digest = %s
        """,
        bytes.fromhex(asked["nonce"]),
        bytes.fromhex(asked["nonce"]),
    )
    assert kept == []
    assert asked["nonce"] not in guest.owner.runtime.log()


async def test_a_challenge_is_told_so_often_and_no_more(guest: Guest) -> None:
    for _ in range(16):
        await guest.challenge()

    answer = await guest.agent.get(CHALLENGES)

    answer.problem(429, "busy")
    assert "Retry-After" in answer.headers


async def test_who_is_trusted_has_nothing_to_fetch(guest: Guest) -> None:
    await guest.answer()
    await guest.until_posture(lifecycle_state="restored")

    assert (await guest.agent.get(CHALLENGES)).json() == []


async def test_an_agent_that_waits_is_told_at_once(guest: Guest) -> None:
    await guest.answer()
    await guest.until_posture(lifecycle_state="restored")

    waiting = asyncio.create_task(guest.challenge(wait=30))
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await guest.attest()
        asked = await waiting

    assert asked["vm_instance_id"] == guest.id


async def test_who_waits_keeps_no_runtime_from_stopping(
    own_runtime: Served, http: aiohttp.ClientSession
) -> None:
    owner = Caller(own_runtime, http, 7, own_runtime.token(7))
    guest = await a_guest(owner)
    await guest.answer()
    await guest.until_posture(lifecycle_state="restored")

    calls = [guest.agent.get(CHALLENGES, wait=30) for _ in range(MOST + 1)]
    waiting = {asyncio.ensure_future(call) for call in calls}
    async with asyncio.timeout(15):
        (refused,), still = await asyncio.wait(
            waiting, return_when=asyncio.FIRST_COMPLETED
        )
        refused.result().problem(429, "busy")  # so the others wait by now
        code = await asyncio.to_thread(own_runtime.stop)
        answers = await asyncio.gather(*still)

    assert code == 0
    assert [(each.status, each.json()) for each in answers] == [(200, [])] * MOST


@pytest.mark.parametrize("wait", ["31", "-1", "x", ""])
async def test_a_wait_is_bounded(guest: Guest, wait: str) -> None:
    answer = await guest.agent.call("GET", CHALLENGES, query={"wait": wait})

    answer.problem(400, "malformed")


# --- bodies -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"nonce": "00" * 32}, "evidence"),
        ({"evidence": "e30="}, "nonce"),
        ({"nonce": "00" * 31, "evidence": "e30="}, "nonce"),
        ({"nonce": "zz" * 32, "evidence": "e30="}, "nonce"),
        ({"nonce": "00" * 32, "evidence": "***"}, "base64"),
        ({"nonce": "00" * 32, "evidence": "A" * 90_000}, "evidence"),
        ({"nonce": "00" * 32, "evidence": "e30=", "kind": "ear"}, "kind"),
    ],
)
async def test_a_body_of_the_wrong_shape_names_the_field(
    guest: Guest, body: Json, fault: str
) -> None:
    answer = await guest.agent.post(CHALLENGES, body)

    assert fault in answer.problem(422, "invalid")["detail"]
    assert (await guest.posture())["attestation_status"] != "untrusted"


async def test_a_body_without_end_is_cut_off(guest: Guest) -> None:
    answer = await guest.agent.call("POST", CHALLENGES, raw=b"x" * (1 << 21))

    answer.problem(413, "too-large")


# --- tokens -------------------------------------------------------------------------


async def test_a_token_reaches_the_challenges_only(guest: Guest) -> None:
    for path in ("/api/servers", f"/api/trust/registry/{guest.id}", TOKENS):
        (await guest.agent.get(path)).problem(403, "forbidden")
    (await guest.agent.post(f"/api/servers/{guest.server}/stop")).problem(
        403, "forbidden"
    )


async def test_only_agents_have_challenges(alice: Caller, nobody: Caller) -> None:
    (await alice.get(CHALLENGES)).problem(403, "forbidden")
    (await alice.post(CHALLENGES, {})).problem(403, "forbidden")
    (await nobody.get(CHALLENGES)).problem(401, "unauthenticated")
    (await nobody.post(CHALLENGES, {})).problem(401, "unauthenticated")


@pytest.mark.parametrize(
    "change",
    [
        """
        UPDATE attestation_agent_tokens
           SET issued_at = now() - interval '2 h', expires_at = now() - interval '1 h'
         WHERE id = %s
        """,
        """
        UPDATE runtime_vm_instances i SET boot_id = gen_random_uuid()
          FROM attestation_agent_tokens t
         WHERE i.id = t.runtime_vm_instance_id AND t.id = %s
        """,
        "DELETE FROM attestation_agent_tokens WHERE id = %s",
    ],
    ids=["expired", "another boot", "unknown"],
)
async def test_a_token_ends(guest: Guest, change: str) -> None:
    guest.owner.runtime.rows(change, guest.token_id)

    (await guest.agent.get(CHALLENGES)).problem(401, "unauthenticated")


async def test_a_revoked_token_is_over(guest: Guest) -> None:
    path = f"{TOKENS}/{guest.token_id}"
    assert (await guest.owner.call("DELETE", path)).status == 204

    (await guest.agent.get(CHALLENGES)).problem(401, "unauthenticated")
    assert (await guest.owner.call("DELETE", path)).status == 204
    (row,) = (await guest.owner.get(TOKENS, runtime_vm_instance_id=guest.id)).json()
    assert row["revoked_at"] is not None


async def test_a_token_for_any_boot_outlives_one(guest: Guest) -> None:
    issued = await issue(guest.owner, guest.id, boot="any")
    agent = Caller(guest.owner.runtime, guest.owner.http, token=issued["token"])
    guest.owner.runtime.rows(
        "UPDATE runtime_vm_instances SET boot_id = gen_random_uuid() WHERE id = %s",
        guest.id,
    )

    assert (await agent.get(CHALLENGES)).status == 200


async def test_a_forged_token_is_none(guest: Guest) -> None:
    claims = {"instance": guest.id, "jti": secrets.token_urlsafe(32)}
    token = guest.owner.runtime.token(guest.owner.user, "agent", **claims)
    agent = Caller(guest.owner.runtime, guest.owner.http, token=token)

    (await agent.get(CHALLENGES)).problem(401, "unauthenticated")


async def test_a_token_is_shown_once_and_kept_as_its_digest(guest: Guest) -> None:
    listed = await guest.owner.get(TOKENS)

    assert all("token" not in row for row in listed.json())
    assert guest.agent.token is not None
    assert guest.agent.token not in guest.owner.runtime.log()


async def test_tokens_are_the_owner_s(guest: Guest, bravo: Caller, meet: Meet) -> None:
    body = {"runtime_vm_instance_id": guest.id}

    (await bravo.post(TOKENS, body)).problem(404, "not-found")
    (await meet("viewer").post(TOKENS, body)).problem(403, "forbidden")
    (await bravo.call("DELETE", f"{TOKENS}/{guest.token_id}")).problem(404, "not-found")
    assert (await bravo.get(TOKENS)).json() == []


async def test_no_token_is_issued_where_the_host_answers(alice: Caller) -> None:
    config = {"attestation": {"kind": "tpm", "source": "virtio"}}
    _, instance = await a_running(alice, **config)

    answer = await alice.post(TOKENS, {"runtime_vm_instance_id": instance})

    assert "host" in answer.problem(422, "invalid")["detail"]


async def test_only_an_admin_vouches_for_hardware(guest: Guest, boss: Caller) -> None:
    public = base64.b64encode(guest.tpm.public()).decode()
    body = {
        "runtime_vm_instance_id": guest.id,
        "tpmt_public": public,
        "endorser": "ek:1234",
    }

    path = "/api/attestation/keys"
    (await guest.owner.post(path, body)).problem(403, "forbidden")
    assert (await boss.post(path, body)).status == 201
    body["tpmt_public"] = "AAAA"
    (await boss.post(path, body)).problem(422, "invalid")


async def test_s21_a_key_is_not_exchanged_for_another(guest: Guest) -> None:
    path = "/api/attestation/keys"
    other = FakeTpm(key=ec.generate_private_key(ec.SECP256R1()))
    body = {"runtime_vm_instance_id": guest.id}
    same, new = (
        {**body, "tpmt_public": base64.b64encode(tpm.public()).decode()}
        for tpm in (guest.tpm, other)
    )

    assert (await guest.owner.post(path, same)).status == 201
    (await guest.owner.post(path, new)).problem(409, "conflict")


async def test_s21_of_many_first_keys_at_once_one_is_taken(guest: Guest) -> None:
    with psycopg.connect(guest.owner.runtime.database_url, autocommit=True) as conn:
        conn.execute(
            "DELETE FROM attestation_keys WHERE runtime_vm_instance_id = %s",
            (guest.id,),
        )
    keys = [FakeTpm(key=ec.generate_private_key(ec.SECP256R1())) for _ in range(8)]

    async def enroll(tpm: FakeTpm) -> int:
        public = base64.b64encode(tpm.public()).decode()
        body = {"runtime_vm_instance_id": guest.id, "tpmt_public": public}
        return (await guest.owner.post("/api/attestation/keys", body)).status

    statuses = await asyncio.gather(*map(enroll, keys))

    assert sorted(statuses) == [201, *[409] * 7]


# --- verdicts -----------------------------------------------------------------------


async def test_a_verdict_is_come_to_again_offline(guest: Guest) -> None:
    await guest.answer(TAMPERED)
    verdict = await guest.until_code("measurement-unknown")

    case = await guest.owner.get(f"/api/attestation/{verdict['id']}/case")

    again = verify_stored(case.body)
    assert (again["code"], again["agrees"]) == ("measurement-unknown", True)


async def test_raw_evidence_is_handed_out_as_what_no_browser_renders(
    guest: Guest,
) -> None:
    await guest.answer()
    verdict = await guest.until_code("ok")

    answer = await guest.owner.get(f"/api/attestation/{verdict['id']}/evidence")

    assert json.loads(answer.body)["kind"] == "tpm"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment;")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


async def test_verdicts_are_the_owner_s_and_evidence_the_operator_s(
    guest: Guest, bravo: Caller, meet: Meet
) -> None:
    await guest.answer()
    verdict = await guest.until_code("ok")
    path = f"/api/attestation/{verdict['id']}"
    viewer = meet("viewer", guest.owner.user)

    assert (await bravo.get("/api/attestation")).json() == []
    for part in ("", "/evidence", "/case"):
        (await bravo.get(path + part)).problem(404, "not-found")
    detail = (await viewer.get(path)).json()
    assert detail["parsed_claims"]["pcrs"]["sha256"]["0"] == ZERO.hex()
    (await viewer.get(f"{path}/evidence")).problem(403, "forbidden")


async def test_verdicts_are_listed_newest_first_by_pages(guest: Guest) -> None:
    await guest.answer()
    await guest.until_code("ok")

    rows = (
        await guest.owner.get(
            "/api/attestation", runtime_vm_instance_id=guest.id, limit=1
        )
    ).json()
    answer = await guest.owner.get("/api/attestation", limit=1, cursor=rows[0]["id"])

    assert answer.json()[0]["id"] < rows[0]["id"]
    unknown = await guest.owner.get("/api/attestation", status="unknown")
    assert {row["verification_status"] for row in unknown.json()} == {"unknown"}


@pytest.mark.parametrize("query", [{"status": "fine"}, {"x": "1"}, {"limit": "0"}])
async def test_a_wrong_query_is_refused(alice: Caller, query: dict[str, str]) -> None:
    answer = await alice.call("GET", "/api/attestation", query=query)

    answer.problem(400, "malformed")
