"""Artifacts recorded from outside: by a run with its own token, or by a person."""

import base64
import hashlib
from typing import Any

import pytest

from tests.http.client import Caller
from tests.http.working import RUNS, Working


def path_of(working: Working) -> str:
    return f"{RUNS}/{working.run['id']}/artifacts"


async def test_a_program_adds_an_artifact_that_is_served_safely(
    working: Working, alice: Caller
) -> None:
    content = b"<svg onload=alert(1)>\0\xff"
    answer = await working.program.post(
        path_of(working),
        {
            "artifact_type": "evidence",
            "name": "proof/picture.svg",
            "media_type": "image/svg+xml",
            "content_base64": base64.b64encode(content).decode(),
            "metadata": {"stage": 2},
        },
    )

    assert answer.status == 201, answer.body
    made = answer.json()
    assert made["recorded_by"] == f"run:{working.run['id']}"
    assert made["metadata"] == {"stage": 2, "name": "proof/picture.svg"}
    assert (made["size"], made["sha256"]) == (
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    fetched = await alice.get(answer.headers["Location"])
    assert fetched.body == content
    assert fetched.headers["Content-Type"] == "application/octet-stream"
    assert fetched.headers["Content-Disposition"].startswith("attachment;")
    assert fetched.headers["X-Content-Type-Options"] == "nosniff"
    assert fetched.headers["Content-Security-Policy"] == "sandbox"
    listed = (await alice.get(path_of(working))).json()
    assert [one["id"] for one in listed] == [made["id"]]


async def test_what_is_kept_elsewhere_is_recorded_by_its_address(
    working: Working, alice: Caller
) -> None:
    told = {"uri": "s3://bucket/image.qcow2", "sha256": "a" * 64, "size": 7}

    answer = await working.program.post(path_of(working), told)

    assert answer.status == 201, answer.body
    assert answer.json().items() >= told.items()
    (await alice.get(answer.headers["Location"])).problem(404, "not-found")


async def test_a_runs_own_token_is_masked_in_what_it_records(
    working: Working, alice: Caller
) -> None:
    token = str(working.program.token)

    answer = await working.program.post(
        path_of(working), {"text": f"t={token}", "metadata": {"said": token}}
    )

    assert answer.json()["metadata"] == {"said": "***"}
    assert (await alice.get(answer.headers["Location"])).body == b"t=***"


async def test_a_runs_own_token_is_masked_in_an_address(
    working: Working,
) -> None:
    token = str(working.program.token)

    told = {"uri": f"https://logs.test/?key={token}", "sha256": "a" * 64, "size": 7}
    answer = await working.program.post(path_of(working), told)

    assert answer.status == 201, answer.body
    assert answer.json()["uri"] == "https://logs.test/?key=***"
    assert token.encode() not in answer.body


async def test_a_person_records_on_their_own_runs_only(
    working: Working, alice: Caller, bravo: Caller, meet: Any
) -> None:
    body = {"text": "seen", "artifact_type": "note"}

    own = await alice.post(path_of(working), body)

    assert own.json()["recorded_by"] == f"user:{alice.user}"
    (await bravo.post(path_of(working), body)).problem(404, "not-found")
    viewer = meet("viewer", alice.user)
    (await viewer.post(path_of(working), body)).problem(403, "forbidden")


async def test_another_runs_artifacts_are_not_for_a_runs_token(
    working: Working, alice: Caller
) -> None:
    for tail in (f"{RUNS}/{working.run['id'] + 1}/artifacts", path_of(working)):
        method = "POST" if tail != path_of(working) else "GET"
        (await working.program.call(method, tail)).problem(403, "forbidden")
    stale = working.with_claims(epoch=working.claims["epoch"] - 1)
    (await stale.post(path_of(working), {"text": "x"})).problem(401, "unauthenticated")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "text, content_base64 and uri"),
        ({"text": "a", "uri": "https://x/"}, "text, content_base64 and uri"),
        ({"content_base64": "%%%"}, "content_base64"),
        ({"uri": "https://x/y"}, "sha256"),
        ({"uri": "https://x/y", "sha256": "a" * 64}, "size"),
        ({"uri": "large-object:1", "sha256": "a" * 64, "size": 1}, "uri"),
        ({"uri": "run-log:1", "sha256": "a" * 64, "size": 1}, "uri"),
        ({"uri": "https://u:p@x/y", "sha256": "a" * 64, "size": 1}, "uri"),
        ({"uri": "javascript:alert(1)", "sha256": "a" * 64, "size": 1}, "uri"),
        ({"text": "a", "sha256": "a" * 64}, "sha256"),
        ({"text": "a", "artifact_type": "execution-log"}, "artifact_type"),
        ({"text": "a", "artifact_type": "A\r\nB"}, "artifact_type"),
        ({"text": "a", "name": "../../etc/cron.d/x"}, "name"),
        ({"text": "a", "name": "/etc/passwd"}, "name"),
        ({"text": "a", "name": "a\r\nSet-Cookie: x"}, "name"),
        ({"text": "a", "media_type": "text/html\r\nX: y"}, "media_type"),
        ({"text": "a", "metadata": {"m": "x" * 9000}}, "metadata"),
        ({"text": "a", "run_id": 1}, "run_id"),
    ],
)
async def test_what_could_mislead_is_refused_by_name(
    working: Working, body: dict[str, Any], field: str
) -> None:
    answer = await working.program.post(path_of(working), body)

    assert field in answer.problem(422, "invalid")["detail"]


async def test_a_name_may_not_climb(working: Working) -> None:
    answer = await working.program.post(
        path_of(working), {"text": "a", "name": "a/../../b"}
    )

    answer.problem(422, "invalid")


@pytest.mark.slow
async def test_a_run_has_room_for_so_many(working: Working) -> None:
    for number in range(100):
        made = await working.program.post(path_of(working), {"text": f"{number}"})
        assert made.status == 201

    refused = await working.program.post(path_of(working), {"text": "more"})

    refused.problem(409, "conflict")
