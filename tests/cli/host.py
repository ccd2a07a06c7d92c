"""A host of the tests' own that speaks the contract over real HTTP.

It answers from tables that a test fills, records what it was asked, and plays
its streams from scripts, one script a connection.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aiohttp import web

TOKEN = "eyJ0ZXN0.only.token"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Reply: TypeAlias = "Answer | Callable[[Asked], Answer]"


@dataclass(frozen=True)
class Cut:
    """End the connection here."""


@dataclass(frozen=True)
class Hold:
    """Keep the connection open, silently, until the host stops."""


Step: TypeAlias = "str | Cut | Hold | asyncio.Event"


@dataclass
class Host:
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    replies: dict[tuple[str, str], Reply] = field(default_factory=dict)
    scripts: dict[str, list[list[Step]]] = field(default_factory=dict)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def answers(
        self, method: str, path: str, body: Any, status: int = 200, **headers: str
    ) -> None:
        self.replies[method, path] = Answer(body, status, headers)

    def refuses(
        self, method: str, path: str, status: int, slug: str, **facts: Any
    ) -> None:
        problem = {
            "type": f"https://trustfabric.dev/problems/{slug}",
            "title": slug,
            "status": status,
            "detail": f"refused: {slug}",
            "error": f"refused: {slug}",
        } | facts
        self.replies[method, path] = Answer(problem, status)

    def lists(self, path: str, rows: list[Any], page: int = 100) -> None:
        """A list in pages, with a `Link` to the next."""

        def reply(asked: Asked) -> Answer:
            start = int(asked.query.get("cursor", "0"))
            size = min(page, int(asked.query.get("limit", "100")))
            end = start + size
            headers = {}
            if end < len(rows):
                link = f"<{path}?limit={size}&cursor={end}>"
                headers["Link"] = f'{link}; rel="next"'
            return Answer(rows[start:end], headers=headers)

        self.replies["GET", path] = reply

    def streams(self, path: str, *connections: list[Step]) -> None:
        self.scripts[path] = [list(steps) for steps in connections]

    def last(self, method: str, path: str) -> Asked:
        return [a for a in self.asked if (a.method, a.path) == (method, path)][-1]

    def connections(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        asked = Asked(
            request.method,
            request.path,
            dict(request.query),
            dict(request.headers),
            json.loads(raw) if raw else None,
        )
        self.asked.append(asked)
        if request.path in self.scripts:
            return await self._play(request)
        reply = self.replies.get((request.method, request.path))
        if reply is None:
            return web.json_response({"detail": "no such thing"}, status=404)
        answer = reply(asked) if callable(reply) else reply
        if isinstance(answer.body, bytes):
            return web.Response(
                body=answer.body, status=answer.status, headers=answer.headers
            )
        return web.json_response(
            answer.body, status=answer.status, headers=answer.headers
        )

    async def _play(self, request: web.Request) -> web.StreamResponse:
        scripts = self.scripts[request.path]
        steps = scripts.pop(0) if scripts else [Hold()]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for step in steps:
            match step:
                case str():
                    await response.write(step.encode())
                case Cut():
                    assert request.transport is not None
                    request.transport.abort()
                    break
                case Hold():
                    await self.stopped.wait()
                case asyncio.Event():
                    await step.wait()
        return response


def frame(id_: str, event: str, data: Any) -> str:
    return f"id: {id_}\nevent: {event}\ndata: {json.dumps(data)}\n\n"


def registry_row(instance: int = 7, **changes: Any) -> dict[str, Any]:
    return {
        "server_id": 3,
        "server_name": "web",
        "vm_instance_id": instance,
        "instance_id": f"vm-{instance}",
        "attestation_status": "trusted",
        "lifecycle_state": "restored",
        "remediation_state": "remediation:none",
        "remediation_attempts": 0,
        "freshness_deadline": "2026-01-01T00:05:00Z",
        "provenance_ref": "attestation:tpm:12",
        "provenance": {"kind": "tpm"},
        "version": 4,
        "updated_at": "2026-01-01T00:00:00.123456Z",
        "stale": False,
    } | changes


def run_row(run: int = 42, **changes: Any) -> dict[str, Any]:
    return {
        "id": run,
        "runtime_vm_instance_id": 7,
        "playbook": "default-vm-remediation",
        "status": "pending",
        "approval_state": "pending",
        "attempt": 0,
        "version": 3,
        "queued_at": "2026-01-01T00:00:00Z",
    } | changes


def trust_event(instance: int = 7, version: int = 5, **changes: Any) -> dict[str, Any]:
    row = registry_row(instance, version=version)
    del row["provenance"]
    return (
        row
        | {
            "previous_attestation_status": "trusted",
            "previous_lifecycle_state": "restored",
            "lifecycle_state": "quarantined",
            "attestation_status": "untrusted",
            "transition_reason": "verdict",
            "triggered_at": "2026-01-01T00:01:00Z",
            "history_id": 900 + version,
        }
        | changes
    )


def log_event(seq: int, message: str, run: int = 42) -> dict[str, Any]:
    return {
        "run_id": run,
        "instance_id": 7,
        "playbook": "default-vm-remediation",
        "manifest_tags": [],
        "manifest_metadata": {},
        "policy_feedback": [],
        "policy_gate": {"remediation_hooks": [], "accelerator_gates": []},
        "accelerators": [],
        "event": {
            "event": "log",
            "seq": seq,
            "timestamp": "2026-01-01T00:00:00Z",
            "stream": "stdout",
            "message": message,
        },
    }


def status_event(
    status: str, approval: str, run: int = 42, **more: Any
) -> dict[str, Any]:
    return (
        log_event(0, "", run)
        | {
            "event": {
                "event": "status",
                "status": status,
                "approval_state": approval,
                "failure_reason": None,
                "message": None,
            }
        }
        | more
    )
