"""The cloud_api executor against real sockets: what it calls, trusts, repeats."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.test_utils import TestServer

from tests.drivers.test_shell import Log, a_job
from trustfabric.domain.allow_list import AllowList
from trustfabric.domain.executors import ExitStatus
from trustfabric.domain.failures import FailureReason
from trustfabric.drivers.cloud_api import CloudExecutor
from trustfabric.drivers.cloud_calls import CloudSettings
from trustfabric.drivers.pinned import Lookup, PinnedClient, system_lookup
from trustfabric.drivers.secrets import Secrets

KEY = "sk-abcdefghijkl"


@dataclass
class Api:
    """A server that answers what it is told to, and keeps what it was asked."""

    port: int = 0
    asked: list[tuple[str, str, Any, dict[str, str]]] = field(default_factory=list)
    answers: list[Callable[[web.Request], Any]] = field(default_factory=list)
    lookup: Lookup = system_lookup
    allowed: list[str] = field(default_factory=list)
    log: Log = field(default_factory=Log)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.asked.append(
            (request.method, str(request.rel_url), body, dict(request.headers))
        )
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        made = answer(request)
        response = await made if asyncio.iscoroutine(made) else made
        assert isinstance(response, web.StreamResponse)
        return response

    def will(self, *answers: Callable[[web.Request], Any]) -> None:
        self.answers = list(answers)

    async def run(
        self, cancelled: asyncio.Event | None = None, **spec: Any
    ) -> ExitStatus:
        allowed = AllowList.of([f"127.0.0.1:{self.port}", *self.allowed])
        executor = CloudExecutor(
            PinnedClient(allowed, self.lookup),
            Secrets({"key": KEY}),
            CloudSettings(retry_base_s=0.01, body_bytes=10_000),
        )
        spec = {"method": "GET", "url": self.url(), **spec}
        if "steps" in spec:
            del spec["url"], spec["method"]
        job = a_job(**spec)
        return await executor.execute(job, self.log.emit, cancelled or asyncio.Event())


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    api.will(said({"state": "done"}))
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", api.handle)
    async with TestServer(app, host="127.0.0.1") as server:
        api.port = server.port or 0
        yield api


def said(
    document: Any, status: int = 200, **headers: str
) -> Callable[[web.Request], web.Response]:
    return lambda _: web.json_response(document, status=status, headers=headers)


def status(number: int, **headers: str) -> Callable[[web.Request], web.Response]:
    return lambda _: web.Response(status=number, headers=headers)


def resolves(*addresses: str) -> Lookup:
    """Each time a name is asked for, the next of these; the last one for ever."""
    left = list(addresses)

    async def lookup(host: str, port: int) -> list[ResolveResult]:
        address = left.pop(0) if len(left) > 1 else left[0]
        return [
            ResolveResult(
                hostname=host,
                host=one,
                port=port,
                family=socket.AF_INET6 if ":" in one else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for one in address.split(",")
        ]

    return lookup


# --- what is sent ------------------------------------------------------------


async def test_a_body_is_filled_with_values_never_with_text(api: Api) -> None:
    await api.run(
        method="POST",
        url=api.url("/vms/${instance_name}?q=${payload/text}"),
        body={
            "id": "${instance_id}",
            "name": "vm ${instance_id}: ${instance_name}",
            "all": "${payload}",
            "plain": "$${x}",
            "deep": [{"n": "${attempt}"}],
        },
        headers={"X-Run": "run ${run_id}"},
    )

    ((method, url, body, headers),) = api.asked
    assert method == "POST"
    assert url == ("/vms/vm-2%3B%20rm%20-rf%20%2F?q=%7B%7B7%2A7%7D%7D%20%24%28id%29")
    assert body == {
        "id": 2,
        "name": "vm 2: vm-2; rm -rf /",
        "all": {"text": "{{7*7}} $(id)"},
        "plain": "${x}",
        "deep": [{"n": 1}],
    }
    assert headers["X-Run"] == "run 1"
    assert headers["Accept-Encoding"] == "identity"


async def test_the_answer_before_is_data_for_the_next_request(api: Api) -> None:
    api.will(said({"operation": {"id": "op/7"}}), said({"state": "done"}))

    ended = await api.run(
        steps=[
            {"method": "POST", "url": api.url("/start"), "body": {}},
            {"method": "GET", "url": api.url("/ops/${response/operation/id}")},
        ]
    )

    assert ended.failure_reason is None, api.log.events
    assert api.asked[1][1] == "/ops/op%2F7"
    assert ended.detail["output"] == {"state": "done"}


async def test_secrets_are_sent_and_shown_nowhere(api: Api) -> None:
    api.will(
        lambda request: web.json_response(
            {"you": request.headers["Authorization"], "key": KEY}, status=400
        )
    )

    ended = await api.run(
        method="POST",
        headers={"Authorization": "Bearer secret:key", "X-Key": "secret:key"},
        body={"password": "secret:key"},
    )

    _, _, body, headers = api.asked[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["X-Key"] == KEY
    assert body == {"password": KEY}
    assert KEY not in repr(api.log.events) + repr(ended) + repr(
        [file.content for file in ended.files]
    )


async def test_a_value_that_would_climb_in_a_path_is_refused(api: Api) -> None:
    api.will(said({"name": ".."}), said({}))

    ended = await api.run(
        steps=[
            {"method": "GET", "url": api.url("/a")},
            {"method": "DELETE", "url": api.url("/vms/${response/name}/disks")},
        ]
    )

    assert ended.failure_reason is FailureReason.PLAYBOOK_BUG
    assert len(api.asked) == 1


async def test_a_header_can_not_be_split(api: Api) -> None:
    api.will(said({"name": "a\r\nX-Evil: 1"}), said({}))

    ended = await api.run(
        steps=[
            {"method": "GET", "url": api.url("/a")},
            {
                "method": "GET",
                "url": api.url("/b"),
                "headers": {"X-A": "${response/name}"},
            },
        ]
    )

    assert ended.failure_reason is FailureReason.PLAYBOOK_BUG
    assert len(api.asked) == 1


# --- whom it reaches ---------------------------------------------------------


async def test_s19_a_host_that_is_not_listed_is_not_called(api: Api) -> None:
    ended = await api.run(url="http://127.0.0.2/")

    assert ended.failure_reason is FailureReason.POLICY_DENIED
    assert "EXECUTOR_ALLOWED_HOSTS" in ended.message


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "100.100.100.200",
        "0.0.0.0",
        "168.63.129.16",
        "::1",
        "fe80::1",
        "fec0::1",
        "2002:a9fe:a9fe::",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "8.8.8.8,169.254.169.254",
    ],
)
async def test_s19_what_a_listed_name_leads_to_is_checked(
    api: Api, address: str
) -> None:
    api.allowed = ["api.test"]
    api.lookup = resolves(address)

    ended = await api.run(url="http://api.test/")

    assert ended.failure_reason is FailureReason.POLICY_DENIED, ended
    assert "api.test leads to" in ended.message
    assert api.asked == []


async def test_s19_a_name_that_changes_in_between_gains_nothing(api: Api) -> None:
    """The first answer is ours and listed; the second one, on the retry, is not."""
    api.allowed = [f"api.test:{api.port}"]
    api.lookup = resolves("127.0.0.1", "169.254.169.254")
    api.will(status(503), said({}))

    ended = await api.run(url=api.url("/", host="api.test"))

    assert len(api.asked) == 1
    assert api.asked[0][3]["Host"] == f"api.test:{api.port}"
    assert ended.failure_reason is FailureReason.POLICY_DENIED


async def test_s19_redirects_are_not_followed(api: Api) -> None:
    api.will(status(302, Location="http://169.254.169.254/latest/meta-data/"))

    ended = await api.run()

    assert ended.failure_reason is FailureReason.POLICY_DENIED
    assert "not followed" in ended.message
    assert len(api.asked) == 1


async def test_a_proxy_of_the_environment_is_not_asked(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    ended = await api.run()

    assert ended.failure_reason is None


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    tmp_path: Path,
) -> None:
    async with _self_signed(tmp_path) as (port, asked):
        client = PinnedClient(AllowList.of([f"127.0.0.1:{port}"]))
        executor = CloudExecutor(client, Secrets())
        job = a_job(method="GET", url=f"https://127.0.0.1:{port}/")

        ended = await executor.execute(job, Log().emit, asyncio.Event())

    assert ended.failure_reason is FailureReason.POLICY_DENIED
    assert "certificate" in ended.message
    assert asked == []


@asynccontextmanager
async def _self_signed(place: Path) -> AsyncIterator[tuple[int, list[Any]]]:
    key, cert = place / "key.pem", place / "cert.pem"
    made = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
        "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(key), "-out", str(cert),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await made.wait() == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    asked: list[Any] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


# --- what it takes for an answer ---------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (400, FailureReason.EXECUTION_FAILURE),
        (401, FailureReason.POLICY_DENIED),
        (403, FailureReason.POLICY_DENIED),
        (404, FailureReason.EXECUTION_FAILURE),
        (429, FailureReason.DEPENDENCY_UNAVAILABLE),
        (500, FailureReason.DEPENDENCY_UNAVAILABLE),
        (503, FailureReason.DEPENDENCY_UNAVAILABLE),
    ],
)
async def test_a_status_names_its_reason(
    api: Api, number: int, reason: FailureReason
) -> None:
    api.will(status(number))

    ended = await api.run()

    assert ended.failure_reason is reason
    assert f"status {number}" in ended.message


@pytest.mark.parametrize(
    ("expected", "holds"),
    [
        ({"status": [200, 202]}, True),
        ({"status": 202}, False),
        ({"json": {"/state": "done"}}, True),
        ({"json": {"/state": {"in": ["done", "over"]}}}, True),
        ({"json": {"/count": {"equals": 1}}}, True),
        ({"json": {"/count": {"equals": True}}}, False),
        ({"json": {"/list/0/a~1b": 1}}, True),
        ({"json": {"/list/1": {"exists": False}}}, True),
        ({"json": {"/absent": {"exists": True}}}, False),
        ({"json": {"/absent": {"equals": None}}}, False),
        ({"json": {"/none": None}}, True),
    ],
)
async def test_expectations_hold_or_fail_the_run(
    api: Api, *, expected: Any, holds: bool
) -> None:
    document = {"state": "done", "count": 1, "list": [{"a/b": 1}], "none": None}
    api.will(said(document))

    ended = await api.run(expect=expected)

    want = None if holds else FailureReason.EXECUTION_FAILURE
    assert ended.failure_reason is want, ended.message


async def test_what_is_not_json_is_told_so(api: Api) -> None:
    api.will(lambda _: web.Response(text="<html>"))

    ended = await api.run(expect={"json": {"/a": 1}})

    assert ended.failure_reason is FailureReason.EXECUTION_FAILURE
    assert "not JSON" in ended.message


async def test_a_huge_answer_is_not_read_to_its_end(api: Api) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"[" * 65_536)

    api.will(endless)

    ended = await api.run()

    assert ended.failure_reason is FailureReason.EXECUTION_FAILURE
    assert "larger than" in ended.message


async def test_a_slow_drip_has_its_time(api: Api) -> None:
    stop = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"[")
        await stop.wait()
        return response

    api.will(drip)

    ended = await api.run(request_timeout_seconds=0.1, retry={"limit": 0})
    stop.set()

    assert ended.failure_reason is FailureReason.TIMEOUT
    assert "no answer within 0.1 s" in ended.message


# --- what it does again ------------------------------------------------------


async def test_a_get_is_tried_again_and_waits_as_asked(api: Api) -> None:
    headers = {"Retry-After": "1"}
    api.will(status(429, **headers), status(503), said({}))

    ended = await api.run()

    assert ended.failure_reason is None
    assert len(api.asked) == 3
    assert ended.duration_s > 1
    assert any("again in 1 s" in line for line in api.log.lines())


async def test_a_post_is_sent_once_unless_twice_is_once(api: Api) -> None:
    api.will(status(503))

    once = await api.run(method="POST", body={})
    assert once.failure_reason is FailureReason.DEPENDENCY_UNAVAILABLE
    assert len(api.asked) == 1

    await api.run(method="POST", body={}, idempotent=True, retry={"limit": 2})
    assert len(api.asked) == 1 + 3


async def test_nobody_there_is_a_dependency_that_is_away(api: Api) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        api.allowed = [f"127.0.0.1:{port}"]

        ended = await api.run(method="POST", url=f"http://127.0.0.1:{port}/")

    assert ended.failure_reason is FailureReason.DEPENDENCY_UNAVAILABLE
    assert sum("again in" in line for line in api.log.lines()) == 3


async def test_no_such_host_is_a_dependency_that_is_away(api: Api) -> None:
    async def lookup(host: str, port: int) -> list[ResolveResult]:
        raise OSError(-2, "Name or service not known")

    api.lookup, api.allowed = lookup, ["api.test"]

    ended = await api.run(url="http://api.test/", retry={"limit": 0})

    assert ended.failure_reason is FailureReason.DEPENDENCY_UNAVAILABLE


async def test_a_post_whose_exchange_breaks_off_is_not_repeated(api: Api) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    api.will(cut)

    ended = await api.run(method="POST", body={})

    assert ended.failure_reason is FailureReason.DEPENDENCY_UNAVAILABLE
    assert len(api.asked) == 1


# --- polling -----------------------------------------------------------------


async def test_it_polls_until_it_is_done(api: Api) -> None:
    api.will(
        said({"id": 7}, 202),
        said({"state": "running"}),
        said({"state": "running"}),
        said({"state": "done"}),
    )

    ended = await api.run(
        method="POST",
        expect={"status": 202},
        poll={
            "url": api.url("/ops/${response/id}"),
            "until": {"json": {"/state": "done"}},
            "interval_seconds": 0.01,
            "backoff": 2,
        },
    )

    assert ended.failure_reason is None, ended.message
    assert [url for _, url, _, _ in api.asked] == ["/", *["/ops/7"] * 3]
    waits = [line.split("again in ")[1] for line in api.log.lines() if "again" in line]
    assert waits == ["0.01 s", "0.02 s"]


async def test_an_answer_that_says_it_failed_ends_the_polling(api: Api) -> None:
    api.will(said({}, 202), said({"state": "error"}))

    ended = await api.run(
        method="POST",
        poll={
            "until": {"json": {"/state": "done"}},
            "failed": {"/state": {"in": ["error", "cancelled"]}},
            "interval_seconds": 0.01,
        },
    )

    assert ended.failure_reason is FailureReason.EXECUTION_FAILURE
    assert len(api.asked) == 2


async def test_polling_ends_with_the_time_of_the_whole(api: Api) -> None:
    ended = await api.run(
        timeout_seconds=1,
        poll={"until": {"json": {"/state": "over"}}, "interval_seconds": 0.01},
    )

    assert ended.failure_reason is FailureReason.TIMEOUT
    assert len(api.asked) > 2


async def test_a_cancel_says_what_is_not_known(api: Api) -> None:
    cancelled, stop = asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        cancelled.set()
        await stop.wait()
        return web.Response()

    api.will(hang)
    ended = await api.run(cancelled, method="POST", body={})
    stop.set()

    assert ended.failure_reason is FailureReason.CANCELLED
    assert "may have taken effect" in ended.message
