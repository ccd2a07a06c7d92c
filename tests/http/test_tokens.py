"""Who gets in: bearer tokens (security cases S1, S2, S4, S5, S35)."""

import base64
import hmac
import importlib
import json
import pkgutil
import re
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import trustfabric.http
from tests.fix_runtime import SECRET, Served, serving, sign
from tests.http.client import Caller
from tests.http.conftest import Meet
from tests.http.guests import CHALLENGES
from tests.http.routes import ALL

WHO = "/api/session"
SOON = int(time.time()) + 86_400  # this is read when the tests are collected
FOREIGN = "another secret, which is long enough as well"


@pytest.mark.parametrize(("method", "path"), ALL)
async def test_s1_no_route_answers_without_a_token(
    nobody: Caller, method: str, path: str
) -> None:
    bare = await nobody.call(method, path)
    nobody.token = sign({"sub": "7", "role": "admin"}, FOREIGN)
    forged = await nobody.call(method, path)

    problem = bare.problem(401, "unauthenticated")
    assert bare.headers["WWW-Authenticate"] == "Bearer"
    assert problem["instance"] == path
    assert forged.problem(401, "unauthenticated")["detail"] == "the token is not valid"


def test_the_list_of_routes_is_whole() -> None:
    """A route that is added is added to `routes.py` too."""
    served = {
        (route.method, route.path)
        for module in pkgutil.iter_modules(trustfabric.http.__path__)
        for route in getattr(
            importlib.import_module(f"trustfabric.http.{module.name}"), "routes", ()
        )
        if isinstance(route, web.RouteDef)
    }
    called = [(method, path.partition("?")[0]) for method, path in ALL]
    for method, path in served - PUBLIC - AGENTS:
        pattern = re.sub(r"\{[^{}]*\}", "[^ ]+", path)
        assert [1 for m, p in called if m == method and re.fullmatch(pattern, p)], path


PUBLIC = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/.well-known/jwks.json"),
    ("POST", "/api/session"),
    ("DELETE", "/api/session"),
}
AGENTS = {("GET", CHALLENGES), ("POST", CHALLENGES)}
"""No person's token opens these: see test_attestation.py."""


async def test_a_good_token_says_who_its_bearer_is(runtime: Served, meet: Meet) -> None:
    exp = int(time.time()) + 60

    answer = await meet("user", user=41, exp=exp).get(WHO)

    assert answer.status == 200
    assert answer.json()["sub"] == 41
    assert answer.json()["role"] == "operator"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("sub", [41, "41"])
async def test_sub_may_be_an_integer_or_its_text(nobody: Caller, sub: object) -> None:
    nobody.token = sign({"sub": sub, "role": "viewer"})

    assert (await nobody.get(WHO)).json()["sub"] == 41


CLAIMS: dict[str, dict[str, object]] = {
    "expired": {"exp": int(time.time()) - 1},
    "not valid yet": {"nbf": SOON},
    "issued in the future": {"iat": SOON},
    "never expiring": {"exp": None},
    "exp is a text": {"exp": "tomorrow"},
    "exp is beyond the calendar": {"exp": 10**18},
    "exp is beyond time_t": {"exp": 10**30},
    "exp is infinite": {"exp": float("inf")},
    "without sub": {"sub": None},
    "sub is a name": {"sub": "root"},
    "sub is zero": {"sub": "0"},
    "sub is negative": {"sub": "-7"},
    "sub has other digits": {"sub": "\u0667"},
    "sub is beyond 2^63": {"sub": str(2**63)},
    "sub is thousands of digits": {"sub": "1" * 5000},
    "sub is true": {"sub": True},
    "sub is a list": {"sub": ["7"]},
    "without role": {"role": None},
    "unknown role": {"role": "root"},
    "role is a list": {"role": ["admin"]},
    "role in capitals": {"role": "ADMIN"},
    "a run without its scope": {"role": "run"},
    "a run of nonsense": {"role": "run", "run": [], "instance": {}, "server": "x"},
}


@pytest.mark.parametrize("case", CLAIMS)
async def test_s1_bad_claims_are_refused(nobody: Caller, case: str) -> None:
    nobody.token = sign({"sub": "7", "role": "admin", **CLAIMS[case]})

    (await nobody.get(WHO)).problem(401, "unauthenticated")


def _part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _signed(header: Any, claims: Any, digest: str = "sha256", key: str = SECRET) -> str:
    signed = f"{_part(header)}.{_part(claims)}"
    return f"{signed}.{_part(hmac.digest(key.encode(), signed.encode(), digest))}"


def _forgeries() -> dict[str, str]:
    good = {"sub": "7", "role": "admin", "exp": SOON}
    header = {"alg": "HS256", "typ": "JWT"}
    right = _signed(header, good)
    head, body, signature = right.split(".")
    return {
        "alg none": f"{_part({'alg': 'none'})}.{body}.",
        "alg None": f"{_part({'alg': 'None'})}.{body}.{signature}",
        "other alg": _signed({"alg": "HS512"}, good, "sha512"),
        "asymmetric alg": _signed({"alg": "RS256"}, good),
        "no alg": _signed({}, good),
        "kid is a path": _signed({**header, "kid": "/dev/null"}, good, key=""),
        "kid is SQL": _signed({**header, "kid": "' OR 1=1 --"}, good, key=FOREIGN),
        "unknown crit": _signed({**header, "crit": ["exp2"], "exp2": 1}, good),
        "claims changed": f"{head}.{_part({**good, 'sub': '1'})}.{signature}",
        "signature cut": right[:-4],
        "signature absent": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "four parts": f"{right}.{signature}",
        "claims are a list": _signed(header, [1]),
        "claims are no JSON": _signed(header, b"\xff\xfe"),
        "header is no JSON": f"{_part(b'{')}.{body}.{signature}",
        "header is too deep": f"{_part(b'[' * 5000)}.{body}.{signature}",
        "header has a giant number": f"{_part(b'1' * 5000)}.{body}.{signature}",
        "claims are too deep": _signed(header, b"[" * 4000),
        "not base64": "a.b.c",
        "junk inside": f"{head}.{body}.!{signature}",
        "a line end inside": f"{head}.{body}.{signature[:9]}%0A{signature[9:]}",
        "empty": "",
        "not ASCII": "tökén",
    }


@pytest.mark.parametrize("case", _forgeries())
async def test_s2_forged_tokens_are_refused(nobody: Caller, case: str) -> None:
    nobody.token = _forgeries()[case]

    (await nobody.get(WHO)).problem(401, "unauthenticated")


@pytest.mark.parametrize("length", [8_000, 100_000])
async def test_s2_a_token_that_is_too_long_is_refused(
    nobody: Caller, length: int
) -> None:
    nobody.token = sign({"sub": "7", "role": "admin", "x": "x" * length})

    assert (await nobody.get(WHO)).status in (400, 401)


@pytest.mark.parametrize(
    "header", ["Basic NzpzZWNyZXQ=", "Bearer", "Token {}", "{}", "", "Bearer {} {}"]
)
async def test_other_authorization_headers_are_refused(
    nobody: Caller, runtime: Served, header: str
) -> None:
    token = runtime.token(7)

    answer = await nobody.call(
        "GET", WHO, headers={"Authorization": header.format(token, token)}
    )

    answer.problem(401, "unauthenticated")


async def test_two_authorization_headers_are_refused(runtime: Served) -> None:
    headers = [("Authorization", f"Bearer {runtime.token(7)}")] * 2
    async with (
        aiohttp.ClientSession() as http,
        http.get(runtime.url + WHO, headers=headers) as answer,
    ):
        assert answer.status in (400, 401)


async def test_s4_a_bad_token_is_not_skipped_for_a_good_session(
    nobody: Caller, runtime: Served
) -> None:
    cookie = f"tf_session={runtime.token(7)}"
    nobody.token = "forged"

    answer = await nobody.call("GET", WHO, headers={"Cookie": cookie})

    answer.problem(401, "unauthenticated")


async def test_s5_only_the_token_says_who_asks(alice: Caller) -> None:
    answer = await alice.call(
        "GET", WHO, headers={"X-User": "1", "X-Forwarded-User": "1"}
    )

    assert answer.json()["sub"] == alice.user


@pytest.mark.parametrize("owner", ["owner", "owner_id", "user", "requested_by"])
async def test_s5_a_body_cannot_name_an_owner(alice: Caller, owner: str) -> None:
    answer = await alice.post("/api/servers", {"name": "web", owner: 1})

    assert owner in answer.problem(422, "invalid")["detail"]


@pytest.mark.parametrize(("method", "path"), ALL)
async def test_s35_a_token_in_the_query_is_refused(
    nobody: Caller, boss: Caller, method: str, path: str
) -> None:
    secret = sign({"sub": "7", "role": "admin", "exp": int(time.time()) + 77})

    for name in ("token", "access_token", "authorization"):
        alone = await nobody.call(method, path, query={name: secret})
        beside = await boss.call(method, path, query={name: secret})

        alone.problem(401, "unauthenticated")
        detail = beside.problem(400, "malformed")["detail"]
        assert detail == f"{name}: unknown query parameter"
    assert secret.split(".")[2] not in boss.runtime.log()


async def test_s35_a_token_in_the_path_is_never_logged(boss: Caller) -> None:
    secret = sign({"sub": "7", "role": "admin", "exp": int(time.time()) + 78})

    answer = await boss.get(f"/api/servers/{secret}")

    answer.problem(404, "not-found")
    assert secret.split(".")[2] not in boss.runtime.log()


async def test_issuer_and_audience_are_checked_where_they_are_configured(
    tmp_path: Path, database_url: str, http: aiohttp.ClientSession
) -> None:
    settings = {"JWT_ISSUER": "https://id.example", "JWT_AUDIENCE": "fabric"}
    right = {"iss": "https://id.example", "aud": "fabric"}
    with serving(tmp_path / "data", database_url, **settings) as served:

        async def status(**claims: object) -> int:
            claims = {"sub": "7", "role": "viewer", "exp": SOON, **claims}
            known = {name: value for name, value in claims.items() if value}
            caller = Caller(served, http, 7, _signed({"alg": "HS256"}, known))
            return (await caller.get(WHO)).status

        assert await status(**right) == 200
        assert await status() == 401
        for wrong in (
            {"iss": "https://id"},
            {"iss": "https://id.example.evil"},
            {"iss": ["https://id.example"]},
            {"iss": None},
            {"aud": "fabri"},
            {"aud": None},
            {"aud": ["fabric"]},
            {"aud": ["other", "fabric"]},
        ):
            assert await status(**{**right, **wrong}) == 401, wrong
