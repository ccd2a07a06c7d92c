"""What is refused, and how (security cases S13, S20, S27): a clear problem each."""

import asyncio
import json
from typing import Any

import pytest

from tests.http.client import UNSET, Caller
from tests.http.conftest import Still, a_playbook
from tests.http.routes import ALL, READS, SERVER, WITH_BODY

SERVERS = "/api/servers"

UNREADABLE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not JSON"),
    "half an object": (b'{"name": ', "not JSON"),
    "two documents": (b'{"name": "a"} {}', "not JSON"),
    "a comment": (b'{"name": "a"} // b', "not JSON"),
    "a trailing comma": (b'{"name": "a",}', "not JSON"),
    "single quotes": (b"{'name': 'a'}", "not JSON"),
    "a byte order mark": (b'\xef\xbb\xbf{"name": "a"}', "not JSON"),
    "UTF-16": ('{"name": "a"}'.encode("utf-16"), ""),
    "latin 1": (b'{"name": "\xe9"}', "not well-formed Unicode"),
    "a form": (b"name=a", "not JSON"),
    "a key twice": (b'{"name": "a", "name": "b"}', "'name' is there twice"),
    "a key twice, deeper": (b'{"config": {"a": 1, "a": 2}}', "'a' is there twice"),
    "NaN": (b'{"config": {"x": NaN}}', "NaN is no JSON"),
    "Infinity": (b'{"config": {"x": -Infinity}}', "-Infinity is no JSON"),
    "1e400": (b'{"config": {"x": [1, 1e400]}}', "body.config.x[1]: not a finite"),
    "2^64": (b'{"config": {"x": 18446744073709551616}}', "beyond 64 bits"),
    "a giant number": (b'{"config": {"x": ' + b"9" * 5000 + b"}}", "not JSON"),
    "half a character": (b'{"config": {"x": "\\ud800"}}', "half a character"),
    "half a character as key": (b'{"config": {"\\udfff": 1}}', "half a character"),
    "a NUL": (b'{"name": "a\\u0000b"}', "body.name: a text with NUL"),
    "a NUL as key": (b'{"config": {"\\u0000": 1}}', "a text with NUL"),
    "depth 200": (b'{"config": {"x": ' + b"[" * 200 + b"]" * 200 + b"}}", "deeply"),
    "depth 2000": (b'{"config":' * 2000 + b"1" + b"}" * 2000, "deeply"),
    "depth 100000": (b"[" * 100_000, "deeply"),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_s13_unreadable_json_is_refused_with_its_fault(
    alice: Caller, case: str
) -> None:
    raw, fault = UNREADABLE[case]

    answer = await alice.call("POST", SERVERS, raw=raw)

    detail = answer.problem(400, "malformed")["detail"]
    assert detail.startswith("body")
    assert fault in detail
    assert len(detail) < 1000
    assert (await alice.get(SERVERS)).json() == []


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"text"', b"null", b"true"])
async def test_a_body_that_is_no_object_is_refused(alice: Caller, raw: bytes) -> None:
    answer = await alice.call("POST", SERVERS, raw=raw)

    assert answer.problem(422, "invalid")["detail"] == "body: not an object"


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_every_route_that_reads_a_document_refuses_rubbish(
    boss: Caller, method: str, path: str
) -> None:
    broken = await boss.call(method, path, raw=b"{")
    strange = await boss.call(method, path, {"no_such_field": 1})

    broken.problem(400, "malformed")
    assert "no_such_field" in strange.problem(422, "invalid")["detail"]


@pytest.mark.parametrize("verb", ["start", "stop", "redeploy", "vm/attest"])
async def test_a_verb_takes_no_fields(alice: Caller, verb: str) -> None:
    strange = await alice.post(f"{SERVER}/{verb}", {"force": True})
    empty = await alice.post(f"{SERVER}/{verb}", {})

    assert "force" in strange.problem(422, "invalid")["detail"]
    empty.problem(404, "not-found")


async def test_s13_more_than_a_mebibyte_is_too_large(alice: Caller) -> None:
    answer = await alice.call("POST", SERVERS, raw=b" " * (1 << 20) + b"{}")

    answer.problem(413, "too-large")


async def test_a_mebibyte_is_read(alice: Caller) -> None:
    raw = json.dumps({"name": "web"}).encode()

    answer = await alice.call("POST", SERVERS, raw=raw + b" " * ((1 << 20) - len(raw)))

    assert answer.status == 201


async def test_a_compressed_body_counts_as_what_it_unpacks_to(alice: Caller) -> None:
    import gzip

    answer = await alice.call(
        "POST",
        SERVERS,
        raw=gzip.compress(b" " * (50 << 20)),
        headers={"Content-Encoding": "gzip"},
    )

    assert answer.status in (400, 413)


async def test_a_body_of_many_keys_is_checked_in_no_time(alice: Caller) -> None:
    keys = ",".join(f'"k{at}":0' for at in range(90_000))
    raw = f'{{"config":{{{keys},"k89999":1}}}}'.encode()

    async with asyncio.timeout(5):
        answer = await alice.call("POST", SERVERS, raw=raw)

    assert "'k89999' is there twice" in answer.problem(400, "malformed")["detail"]


async def test_faults_are_told_in_few_words(alice: Caller) -> None:
    body = {"name": "web", **{"x" * 9_000 + str(at): 1 for at in range(100)}}

    answer = await alice.post(SERVERS, body)

    answer.problem(422, "invalid")
    assert len(answer.body) < 25_000


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "name"),
    ({"name": None}, "name"),
    ({"name": 7}, "name"),
    ({"name": ""}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"name": "a\nb"}, "name"),
    ({"name": "a", "config": []}, "config"),
    ({"name": "a", "config": {"vm": {"memory_mib": "1024"}}}, "config.vm.memory_mib"),
    ({"name": "a", "config": {"vm": {"memory_mib": 1.5}}}, "config.vm.memory_mib"),
    ({"name": "a", "config": {"vm": {"memory_mib": True}}}, "config.vm.memory_mib"),
    ({"name": "a", "config": {"vm": {"memory_mib": 0}}}, "config.vm.memory_mib"),
    ({"name": "a", "config": {"vm": {"memory_mib": 2**40}}}, "config.vm.memory_mib"),
    ({"name": "a", "config": {"vm": {"vcpu_count": -1}}}, "config.vm.vcpu_count"),
    ({"name": "a", "config": {"vm": {"isolation_tier": "none"}}}, "isolation_tier"),
    ({"name": "a", "config": {"vm": {"image": "../../etc/shadow"}}}, "image"),
    ({"name": "a", "config": {"vm": {"disk": "/dev/sda"}}}, "config.vm.disk"),
    ({"name": "a", "config": {"attestation": {"kind": "faith"}}}, "attestation.kind"),
    ({"name": "a", "config": {"attestation": {"kind": ["tpm"]}}}, "attestation.kind"),
    (
        {"name": "a", "config": {"attestation": {"kind": "nvidia-gpu"}}},
        "attestation kind nvidia-gpu is evidence of an accelerator",
    ),
]


@pytest.mark.parametrize(("body", "field"), WRONG)
async def test_a_body_of_the_wrong_shape_names_the_field(
    alice: Caller, body: dict[str, Any], field: str
) -> None:
    answer = await alice.post(SERVERS, body)

    assert field in answer.problem(422, "invalid")["detail"]


@pytest.mark.parametrize("path", READS)
async def test_an_unknown_query_parameter_is_refused(boss: Caller, path: str) -> None:
    answer = await boss.get(path, no_such=1)

    assert "no_such" in answer.problem(400, "malformed")["detail"]


REGISTRY = "/api/trust/registry"
RUNS = "/api/trust/remediation/runs"


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (REGISTRY, "server_id", "web"),
        (REGISTRY, "server_id", "0"),
        (REGISTRY, "server_id", "-1"),
        (REGISTRY, "server_id", "1.5"),
        (REGISTRY, "server_id", "٣"),
        (REGISTRY, "server_id", str(2**63)),
        (REGISTRY, "server_id", "9" * 5000),
        (REGISTRY, "server_id", ""),
        (REGISTRY, "lifecycle_state", "broken"),
        (REGISTRY, "lifecycle_state", ""),
        (REGISTRY, "attestation_status", "suspect"),
        (REGISTRY, "stale", "maybe"),
        (REGISTRY, "limit", "0"),
        (REGISTRY, "limit", "501"),
        (REGISTRY, "limit", "-"),
        (REGISTRY, "cursor", "next"),
        (REGISTRY, "cursor", "-1"),
        (RUNS, "status", "done"),
        (RUNS, "approval_state", "maybe"),
        (RUNS, "runtime_vm_instance_id", "vm-1"),
        (RUNS, "playbook", "a\0b"),
        (SERVERS, "status", "up"),
        (f"{REGISTRY}/stream", "include", "secrets"),
        (f"{REGISTRY}/stream", "snapshot", "2"),
        ("/api/trust/remediation/stream", "run_id", "x"),
        ("/api/trust/remediation/stream", "status", "x"),
    ],
)
async def test_a_wrong_query_value_is_refused_naming_it(
    alice: Caller, path: str, name: str, value: str
) -> None:
    answer = await alice.get(path, **{name: value})

    assert answer.problem(400, "malformed")["detail"].startswith(f"{name}: ")


async def test_a_query_parameter_given_twice_is_refused(alice: Caller) -> None:
    answer = await alice.call("GET", f"{REGISTRY}?stale=true&stale=false")

    assert "more than once" in answer.problem(400, "malformed")["detail"]


async def test_words_of_the_query_are_trimmed_and_case_folded(
    alice: Caller, vm: Still
) -> None:
    answer = await alice.get(REGISTRY, lifecycle_state=" Suspect ", stale=" FALSE ")

    assert [row["vm_instance_id"] for row in answer.json()] == [vm.id]


IDS = ("0", str(2**62), str(2**63), "9" * 4500, "007" * 20)


@pytest.mark.parametrize(
    ("method", "path"), [(m, p) for m, p in ALL if str(2**62) in p]
)
async def test_unknown_ids_are_not_found(boss: Caller, method: str, path: str) -> None:
    bodies = {
        "transition": {"attestation_status": "unknown", "lifecycle_state": "suspect"},
        "release": {"reason": "why not"},
        "approval": {"new_state": "approved", "expected_version": 1},
        str(2**62): {"description": "x"},
        "status": {},
        "artifacts": {"text": "x"},
        "deprecate": {"until": "2030-01-01T00:00:00Z"},
    }
    name = path.rsplit("/", 1)[-1]
    body = bodies.get(name, UNSET) if method in ("POST", "PATCH") else UNSET
    for number in IDS:
        answer = await boss.call(method, path.replace(str(2**62), number, 1), body)

        answer.problem(404, "not-found")


@pytest.mark.parametrize("odd", ["-1", "1.5", "abc", "%00", "%FF", "1%2F2", "٣", "1e3"])
async def test_what_cannot_be_an_id_is_not_found(boss: Caller, odd: str) -> None:
    for path in (REGISTRY, RUNS, SERVERS):
        (await boss.get(f"{path}/{odd}")).problem(404, "not-found")


async def test_a_method_that_is_not_there_says_which_are(alice: Caller) -> None:
    answer = await alice.call("PUT", SERVERS)

    answer.problem(405, "method-not-allowed")
    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(","))


@pytest.mark.parametrize(
    "version", ["*", "3", '"x"', '""', 'W/"3"', '"-1"', '"1", "2"', f'"{"9" * 5000}"']
)
async def test_if_match_is_a_version_in_quotes(boss: Caller, version: str) -> None:
    playbook = await a_playbook(boss, f"if-match-{boss.user}")
    path = f"/api/trust/remediation/playbooks/{playbook['id']}"

    answer = await boss.call("DELETE", path, headers={"If-Match": version})

    if version == "3":  # without quotes it is understood, and is not the newest
        answer.problem(409, "version-conflict")
    else:
        assert "If-Match" in answer.problem(400, "malformed")["detail"]


async def _raw(caller: Caller, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", caller.runtime.port)
    writer.write(request)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "line",
    [
        b"GET /api/servers/\xff\xfe HTTP/1.1",
        b"GET /api/servers?\xff=1 HTTP/1.1",
        b"GET /api/servers?playbook=%ED%A0%80 HTTP/1.1",
        b"GET /\xed\xa0\x80 HTTP/1.1",
        b"GET /api/servers HTTP/1.1\r\nLast-Event-ID: \xff",
        b"GET /api/trust/registry/stream HTTP/1.1\r\nLast-Event-ID: \xff",
        b'PATCH /api/trust/remediation/playbooks/1 HTTP/1.1\r\nIf-Match: "\xff"',
        b"POST /api/servers HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 2",
        b"GET /api/servers HTTP/1.1\r\nExpect: the worst",
        b"GET //evil.example/api/servers HTTP/1.1",
        b"GET http://evil.example/api/servers/0 HTTP/1.1",
        b"GET /api/servers HTTP/1.1\r\nHost: other.example",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        b"POST /api/servers HTTP/1.1\r\nTransfer-Encoding: identity, chunked",
        b"GET /api/servers HTTP/1.1\r\nX: " + b"x" * 20_000,
        b"OPTIONS * HTTP/1.1",
        b"BREW /api/servers HTTP/1.1",
        b"nonsense",
        b"\x16\x03\x01\x02\x00",
    ],
)
async def test_s27_strange_requests_are_refused_and_no_fault_of_ours(
    alice: Caller, line: bytes
) -> None:
    head = (
        f"Host: 127.0.0.1\r\nAuthorization: Bearer {alice.token}\r\n"
        "Connection: close\r\n\r\n{}"
    )

    answer = await _raw(alice, line + b"\r\n" + head.encode())

    status = int(answer.split(b" ", 2)[1])
    assert 400 <= status < 500 or answer.startswith(b"HTTP/1.1 200"), answer[:300]
    assert (await alice.get("/healthz")).status == 200


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/1.1\r\nAuthorization: Bearer {}\x00",
        "GET / HTTP/1.1\r\nAuthorization Bearer {}",
        "GET / HTTP/1.1\r\n{}",
        "GET /{} {} HTTP/1.1",
        "{} / HTTP/1.1",
        'GET / HTTP/1.1\r\n{{"event": "forged", "x": "{}"}}',
    ],
)
async def test_s31_s35_garbled_requests_leave_nothing_in_the_log(
    alice: Caller, line: str
) -> None:
    secret = "s3cr3t-" + "x" * 30
    before = len(alice.runtime.log())

    answer = await _raw(alice, line.format(secret, secret).encode() + b"\r\n\r\n")

    assert answer.split(b" ", 2)[1].startswith(b"4")
    told = alice.runtime.log()[before:]
    assert secret not in told
    assert "Traceback" not in told
    assert "forged" not in told


async def test_errors_tell_nothing_of_the_inside(boss: Caller) -> None:
    for method, path in ALL:
        if path.endswith("/stream"):
            continue
        answer = await boss.call(method, path, {"'": "' OR 1=1; --"})
        for word in (b"Traceback", b"SELECT", b"psycopg", b"/trustfabric/"):
            assert word not in answer.body, path
