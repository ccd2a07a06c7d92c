"""The dashboard's session: a cookie that scripts can't read (S15, S18, S34)."""

from http.cookies import SimpleCookie

import pytest

from tests.fix_runtime import Served
from tests.http.client import Answer, Caller

PATH = "/api/session"


def _cookies(answer: Answer) -> SimpleCookie:
    jar = SimpleCookie()
    for name, value in answer.headers.items():
        if name == "Set-Cookie":
            jar.load(value)
    return jar


async def _signed_in(nobody: Caller, token: str) -> tuple[Caller, str]:
    """Return the caller with its cookies alone, and its CSRF token."""
    answer = await nobody.post(PATH, {"token": token})
    jar = _cookies(answer)
    pairs = "; ".join(f"{name}={morsel.value}" for name, morsel in jar.items())
    nobody.headers["Cookie"] = pairs
    return nobody, jar["tf_csrf"].value


async def test_signing_in_keeps_the_token_from_scripts(
    nobody: Caller, runtime: Served
) -> None:
    token = runtime.token(7, "viewer")

    answer = await nobody.post(PATH, {"token": token})

    assert answer.status == 200
    assert answer.json().keys() == {"sub", "role", "exp"}
    assert token.encode() not in answer.body
    session, csrf = (_cookies(answer)[name] for name in ("tf_session", "tf_csrf"))
    assert session["httponly"]
    assert not csrf["httponly"]
    for cookie in (session, csrf):
        assert cookie["samesite"] == "Strict"
        assert cookie["path"] == "/"
        assert 0 < int(cookie["max-age"]) <= 600


@pytest.mark.parametrize("token", ["forged", "", "a.b.c", "x" * 9000, None, 7])
async def test_a_bad_token_gets_no_session(nobody: Caller, token: object) -> None:
    answer = await nobody.post(PATH, {"token": token})

    assert answer.status in (401, 422)
    assert "Set-Cookie" not in answer.headers
    assert str(token).encode() not in answer.body or not token


@pytest.mark.parametrize("tail", ["\n", "\r\nSet-Cookie: a=b", ";", " ", "\0"])
async def test_a_token_has_one_spelling(
    nobody: Caller, runtime: Served, tail: str
) -> None:
    answer = await nobody.post(PATH, {"token": runtime.token(7) + tail})

    assert answer.status in (400, 401)
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""],
)
async def test_another_sites_form_does_not_sign_anybody_in(
    nobody: Caller, runtime: Served, kind: str
) -> None:
    answer = await nobody.post(
        PATH, {"token": runtime.token(7)}, **{"Content-Type": kind}
    )

    answer.problem(415, "unsupported-media-type")
    assert "Set-Cookie" not in answer.headers


async def test_s18_a_session_reads_by_itself_and_writes_with_its_csrf_token(
    nobody: Caller, runtime: Served
) -> None:
    browser, csrf = await _signed_in(nobody, runtime.token(runtime.newcomer()))
    body = {"name": "web"}

    assert (await browser.get("/api/servers")).status == 200
    for shown in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "0" * 64}):
        (await browser.post("/api/servers", body, **shown)).problem(403, "forbidden")
    (await browser.post("/api/servers", body, **{"X-CSRF-Token": "é"})).problem(
        403, "forbidden"
    )
    done = await browser.post("/api/servers", body, **{"X-CSRF-Token": csrf})

    assert done.status == 201


async def test_s18_anothers_csrf_token_does_not_do(
    nobody: Caller, runtime: Served, meet: object
) -> None:
    other = Caller(runtime, nobody.http)
    _, foreign = await _signed_in(other, runtime.token(8))
    browser, _ = await _signed_in(nobody, runtime.token(7))

    answer = await browser.post(
        "/api/servers", {"name": "web"}, **{"X-CSRF-Token": foreign}
    )

    answer.problem(403, "forbidden")


async def test_a_session_of_rubbish_is_refused(nobody: Caller) -> None:
    nobody.headers["Cookie"] = "tf_session=rubbish"

    (await nobody.get(PATH)).problem(401, "unauthenticated")


async def test_signing_out_forgets_both_cookies(
    nobody: Caller, runtime: Served
) -> None:
    browser, _ = await _signed_in(nobody, runtime.token(7))

    answer = await browser.call("DELETE", PATH)

    assert answer.status == 204
    jar = _cookies(answer)
    assert {jar[name]["max-age"] for name in ("tf_session", "tf_csrf")} == {"0"}


@pytest.mark.parametrize("origin", ["null", "https://trusted.example.evil"])
async def test_s18_other_origins_get_no_permission(alice: Caller, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}

    preflight = await alice.call("OPTIONS", "/api/servers", headers=headers)
    simple = await alice.call("GET", "/api/servers", headers=headers)

    assert preflight.status == 405
    for answer in (preflight, simple):
        assert not [n for n in answer.headers if n.startswith("Access-Control-")]


async def test_the_page_is_open_and_revalidated(nobody: Caller) -> None:
    page = await nobody.get("/")
    script = await nobody.get("/static/main.js")

    for answer in (page, script):
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["ETag"]
    head = await nobody.call("HEAD", "/")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/servers", "/nowhere"])
async def test_every_answer_is_guarded(nobody: Caller, path: str) -> None:
    headers = (await nobody.get(path)).headers

    policy = [part.strip() for part in headers["Content-Security-Policy"].split(";")]
    assert "default-src 'self'" in policy
    assert "object-src 'none'" in policy
    assert "base-uri 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Server"] == "trustfabric"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%00",
        "/static/",
        "/static//etc/passwd",
        "/.git/config",
    ],
)
async def test_nothing_but_the_page_is_served(nobody: Caller, path: str) -> None:
    from yarl import URL

    url = URL(nobody.runtime.url + path, encoded=True)
    async with nobody.http.get(url) as answer:
        assert answer.status in (400, 403, 404)
        assert answer.content_type == "application/problem+json"
