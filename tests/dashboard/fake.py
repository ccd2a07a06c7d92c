"""A runtime that speaks the contract to the page; the test moves it, not VMs."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias

import orjson
from aiohttp import web

STATIC = Path(__file__).parents[2] / "trustfabric" / "http" / "static"
CSP = (
    "default-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'self'; require-trusted-types-for 'script'"
)
TOKEN = "token-of-user-7"
CSRF = "csrf-of-user-7"
HEARTBEAT_S = 0.5
Json: TypeAlias = dict[str, Any]
Stream: TypeAlias = Literal["trust", "remediation"]


def instant(seconds_from_now: float = 0.0) -> str:
    at = datetime.now(UTC) + timedelta(seconds=seconds_from_now)
    return at.isoformat().replace("+00:00", "Z")


@dataclass
class FakeRuntime:
    """The state behind the endpoints; its methods are what happens in the story."""

    role: str = "operator"
    rows: dict[int, Json] = field(default_factory=dict)
    history: dict[int, list[Json]] = field(default_factory=dict)
    runs: dict[int, Json] = field(default_factory=dict)
    lines: dict[int, list[Json]] = field(default_factory=dict)
    actors: list[Json] = field(default_factory=list)
    incidents: list[Json] = field(default_factory=list)
    placement: dict[int, Json] = field(default_factory=dict)
    decisions: list[Json] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    down: bool = False
    url: str = ""
    sessions: set[str] = field(default_factory=set)
    _log: list[tuple[Stream, str, Json | None]] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _streams: set[asyncio.Task[Any]] = field(default_factory=set)

    async def add(self, instance: int, **fields: Any) -> None:
        """Put an instance into the registry, suspect and pending as a new one is."""
        self.rows[instance] = {
            "server_id": instance + 100,
            "server_name": f"server-{instance}",
            "vm_instance_id": instance,
            "instance_id": f"tf-{instance:04d}-a1",
            "attestation_status": "pending",
            "lifecycle_state": "suspect",
            "remediation_state": "remediation:none",
            "remediation_attempts": 0,
            "freshness_deadline": None,
            "provenance_ref": None,
            "provenance": None,
            "version": 1,
            "updated_at": instant(),
            "stale": False,
            **fields,
        }

    async def move(self, instance: int, reason: str, **changes: Any) -> None:
        """Change trust: one version, one history row, one event."""
        before = self.rows[instance]
        after = {**before, **changes, "version": before["version"] + 1}
        after["updated_at"] = instant()
        self.rows[instance] = after
        events = self.history.setdefault(instance, [])
        events.insert(0, _history_row(len(events) + 1, before, after, reason))
        event = {
            **after,
            "previous_attestation_status": before["attestation_status"],
            "previous_lifecycle_state": before["lifecycle_state"],
            "transition_reason": reason,
            "triggered_at": after["updated_at"],
            "history_id": events[0]["id"],
        }
        await self.emit("trust", "trust", event)

    async def stage(self, run: int, instance: int, **fields: Any) -> None:
        self.runs[run] = {
            "id": run,
            "runtime_vm_instance_id": instance,
            "playbook": "default-vm-remediation",
            "status": "pending",
            "approval_required": True,
            "approval_state": "pending",
            "requested_by": "actor:dispatcher",
            "sla_deadline": instant(900),
            "playbook_snapshot": {"command": ["restart-vm"], "timeout_seconds": 60},
            "content_sha256": "9f2c" * 16,
            "attempt": 1,
            "queued_at": instant(),
            "version": 1,
            **fields,
        }
        await self.status(run, "staged after quarantine")

    async def advance_run(self, run: int, message: str, **changes: Any) -> None:
        version = self.runs[run]["version"] + 1
        self.runs[run] = {**self.runs[run], **changes, "version": version}
        await self.status(run, message)

    async def status(self, run: int, message: str) -> None:
        record = self.runs[run]
        event = {
            "event": "status",
            "status": record["status"],
            "approval_state": record["approval_state"],
            "failure_reason": record.get("failure_reason"),
            "message": message,
        }
        await self.emit("remediation", "remediation", self._remediation(run, event))

    async def say(self, run: int, message: str, stream: str = "stdout") -> None:
        stored = self.lines.setdefault(run, [])
        line = {"seq": len(stored) + 1, "timestamp": instant(), "stream": stream}
        stored.append({**line, "message": message})
        event = {"event": "log", **stored[-1]}
        await self.emit("remediation", "remediation", self._remediation(run, event))

    async def emit(self, stream: Stream, event: str, data: Json | None) -> None:
        async with self._news:
            self._log.append((stream, event, data))
            self._news.notify_all()

    async def fall(self) -> None:
        """Cut every stream and answer nothing but 503 until `down` is false again."""
        self.down = True
        for task in list(self._streams):
            task.cancel()

    def _remediation(self, run: int, event: Json) -> Json:
        record = self.runs[run]
        return {
            "run_id": run,
            "instance_id": record["runtime_vm_instance_id"],
            "playbook": record["playbook"],
            "manifest_tags": ["demo::tenant-alpha"],
            "manifest_metadata": {},
            "policy_feedback": ["policy_hook:remediation_gate=active-run"],
            "policy_gate": {"remediation_hooks": [], "accelerator_gates": []},
            "accelerators": [],
            "event": event,
        }

    # What the endpoints answer.

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        path = request.path_qs
        self.requests.append((request.method, path, dict(request.headers)))
        if self.down and request.path.startswith("/api/"):
            return _problem(503, "unavailable", "The database is away.")
        public = not request.path.startswith("/api/") or path == "/api/session"
        if not public and request.cookies.get("tf_session") not in self.sessions:
            return _problem(401, "unauthenticated", "Sign in first.")
        unsafe = request.method not in {"GET", "HEAD"} and not public
        if unsafe and request.headers.get("X-CSRF-Token") != CSRF:
            return _problem(403, "csrf", "The CSRF token is missing.")
        response: web.StreamResponse = await handler(request)
        return response

    async def sign_in(self, request: web.Request) -> web.Response:
        if (await request.json()).get("token") != TOKEN:
            return _problem(401, "unauthenticated", "No such token.")
        response = _json({"sub": 7, "role": self.role, "exp": 4102444800})
        session = f"session-{len(self.requests)}"
        self.sessions.add(session)
        response.set_cookie("tf_session", session, httponly=True, samesite="Strict")
        response.set_cookie("tf_csrf", CSRF, samesite="Strict")
        return response

    async def session(self, request: web.Request) -> web.Response:
        if request.cookies.get("tf_session") not in self.sessions:
            return _problem(401, "unauthenticated", "Sign in first.")
        return _json({"sub": 7, "role": self.role, "exp": 4102444800})

    async def sign_out(self, request: web.Request) -> web.Response:
        self.sessions.discard(request.cookies.get("tf_session", ""))
        response = web.Response(status=204)
        response.del_cookie("tf_session")
        return response

    async def get_history(self, request: web.Request) -> web.Response:
        instance = int(request.match_info["id"])
        row = self.rows[instance]
        head = {key: row[key] for key in ("server_id", "server_name", "instance_id")}
        return _json({**head, "events": self.history.get(instance, [])[:25]})

    async def get_placement(self, request: web.Request) -> web.Response:
        answer = self.placement.get(int(request.match_info["id"]))
        if answer is None:
            return _problem(404, "not-found", "No such resource.")
        return _json(answer)

    async def list_runs(self, request: web.Request) -> web.Response:
        wanted = request.query.get("approval_state")
        return _json(
            [
                run
                for _, run in sorted(self.runs.items(), reverse=True)
                if wanted in (None, run["approval_state"])
            ]
        )

    async def get_run(self, request: web.Request) -> web.Response:
        return _json(self.runs[int(request.match_info["id"])])

    async def get_logs(self, request: web.Request) -> web.Response:
        stored = self.lines.get(int(request.match_info["id"]), [])
        after = int(request.query.get("after", "0"))
        return _json([line for line in stored if line["seq"] > after][:100])

    async def decide(self, request: web.Request) -> web.Response:
        run, body = int(request.match_info["id"]), await request.json()
        self.decisions.append({"run": run, **body})
        if body["expected_version"] != self.runs[run]["version"]:
            return _problem(409, "version-conflict", "The run has changed since.")
        status = "pending" if body["new_state"] == "approved" else "cancelled"
        await self.advance_run(
            run,
            "decided",
            approval_state=body["new_state"],
            approval_notes=body.get("approval_notes"),
            approval_decided_by=7,
            status=status,
        )
        return _json(self.runs[run])

    async def list_incidents(self, _request: web.Request) -> web.Response:
        return _json(self.incidents)

    async def get_actors(self, _request: web.Request) -> web.Response:
        return _json(self.actors)

    async def trust_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, "trust")

    async def remediation_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._stream(request, "remediation")

    async def _stream(self, request: web.Request, name: Stream) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 300\n\n")
        resumed = request.headers.get("Last-Event-ID")
        position = len(self._log) if resumed is None else int(resumed.split("-")[1])
        if request.query.get("snapshot") == "true":
            frames = [_frame(position, "trust", row) for row in self.rows.values()]
            await response.write(b"".join(frames))
            await response.write(_frame(position, "bookmark", {}))
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            await self._follow(response, name, position)
        finally:
            self._streams.discard(task)
        return response

    async def _follow(
        self, response: web.StreamResponse, name: Stream, position: int
    ) -> None:
        while True:
            while position < len(self._log):
                stream, event, data = self._log[position]
                position += 1
                if stream == name:
                    await response.write(_frame(position, event, data))
            async with self._news:
                if position < len(self._log):
                    continue
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), HEARTBEAT_S)
            await response.write(b": heartbeat\n\n")


def _history_row(number: int, before: Json, after: Json, reason: str) -> Json:
    return {
        "id": number,
        "previous_status": before["attestation_status"],
        "current_status": after["attestation_status"],
        "previous_lifecycle_state": before["lifecycle_state"],
        "current_lifecycle_state": after["lifecycle_state"],
        "transition_reason": reason,
        "remediation_state": after["remediation_state"],
        "registry_version": after["version"],
        "actor": "actor:attestation",
        "triggered_at": after["updated_at"],
    }


def _frame(position: int, event: str, data: Json | None) -> bytes:
    head = f"id: p-{position}\nevent: {event}\ndata: ".encode()
    return head + orjson.dumps(data) + b"\n\n"


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _problem(status: int, slug: str, detail: str) -> web.Response:
    body = {"type": f"urn:trustfabric:problem:{slug}", "status": status}
    return web.Response(
        body=orjson.dumps({**body, "detail": detail, "error": detail}),
        status=status,
        content_type="application/problem+json",
    )


async def _index(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(STATIC / "index.html")


async def _secure(_request: web.Request, response: web.StreamResponse) -> None:
    headers: Mapping[str, str] = {
        "Content-Security-Policy": CSP,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    response.headers.update(headers)


@asynccontextmanager
async def serving(runtime: FakeRuntime) -> AsyncIterator[FakeRuntime]:
    """Serve `runtime` on a free port of loopback; its `url` says which."""
    app = web.Application(middlewares=[runtime.guard])
    app.on_response_prepare.append(_secure)
    trust, remediation = "/api/trust/registry", "/api/trust/remediation"
    app.add_routes(
        [
            web.get("/", _index),
            web.static("/static", STATIC),
            web.post("/api/session", runtime.sign_in),
            web.get("/api/session", runtime.session),
            web.delete("/api/session", runtime.sign_out),
            web.get(f"{trust}/stream", runtime.trust_stream),
            web.get(trust + r"/{id:\d+}/history", runtime.get_history),
            web.get(r"/api/servers/{id:\d+}/placement", runtime.get_placement),
            web.get(f"{remediation}/stream", runtime.remediation_stream),
            web.get(f"{remediation}/runs", runtime.list_runs),
            web.get(remediation + r"/runs/{id:\d+}", runtime.get_run),
            web.get(remediation + r"/runs/{id:\d+}/logs", runtime.get_logs),
            web.post(remediation + r"/runs/{id:\d+}/approval", runtime.decide),
            web.get("/api/system/actors", runtime.get_actors),
            web.get("/api/trust/incidents", runtime.list_incidents),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runtime.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield runtime
    finally:
        await runtime.fall()
        await runner.cleanup()
