"""Remediation runs over HTTP: the queue, approvals, logs, artifacts, the stream."""

from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web
from pydantic import Field

from trustfabric.actors.dispatch import CancelRun, DecideApproval, EnqueueRun, RetryRun
from trustfabric.actors.followers import About, about
from trustfabric.actors.streams import Event, Stream
from trustfabric.db import artifacts, run_events, runs
from trustfabric.domain.approvals import Ruling
from trustfabric.domain.events import RemediationEvent
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.runs import ApprovalState, Run, RunStatus
from trustfabric.errors import NotFoundError
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import ASK_S, FACE
from trustfabric.http.parse import (
    Body,
    Query,
    SmallObject,
    expected_version,
    path_id,
    read_body,
    read_nothing,
)
from trustfabric.http.reply import page, reply
from trustfabric.http.sse import Channel, follow, last_position
from trustfabric.http.tokens import Role
from trustfabric.http.views import View, artifact_view, log_view, run_view

routes = web.RouteTableDef()

_PATH = "/api/trust/remediation/runs"
_ONE = _PATH + r"/{id:\d+}"


@routes.get(_PATH)
async def list_runs(request: web.Request) -> web.Response:
    query = Query(
        request,
        "runtime_vm_instance_id",
        "status",
        "approval_state",
        "playbook",
        "limit",
        "cursor",
    )
    limit = query.limit()
    instance_id = query.integer("runtime_vm_instance_id", minimum=1)
    wanted = runs.RunFilter(
        owner_id=request[PRINCIPAL].owner,
        instance_id=None if instance_id is None else InstanceId(instance_id),
        status=query.choice("status", RunStatus),
        approval_state=query.choice("approval_state", ApprovalState),
        playbook=query.text("playbook"),
    )

    async with request.app[FACE].database.reading() as conn:
        rows = await runs.list_runs(
            conn, wanted, before=query.cursor() or 2**62, limit=limit
        )
    return page(
        request,
        [run_view(row) for row in rows],
        count=len(rows),
        limit=limit,
        last=rows[-1].id if rows else 0,
    )


class NewRun(Body):
    runtime_vm_instance_id: int = Field(ge=1, le=2**62)
    playbook: str = Field(min_length=1, max_length=200)
    metadata: SmallObject = Field(default_factory=dict)
    automation_payload: dict[str, Any] | None = None
    assigned_owner_id: int | None = Field(None, ge=1, le=2**62)


@routes.post(_PATH)
async def enqueue_run(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, NewRun)
    assigned = body.assigned_owner_id

    run = await request.app[FACE].dispatcher.ask(
        EnqueueRun(
            owner=principal.owner,
            by=principal.user_id,
            instance_id=InstanceId(body.runtime_vm_instance_id),
            playbook=body.playbook,
            metadata=body.metadata,
            automation_payload=body.automation_payload,
            assigned_owner_id=None if assigned is None else OwnerId(assigned),
        ),
        within_s=ASK_S,
    )
    return reply(
        {"created": True, "run": run_view(run)},
        version=run.version,
        location=f"{_PATH}/{run.id}",
    )


@routes.get(_ONE)
async def get_run(request: web.Request) -> web.Response:
    Query(request)
    return _reply(await _run(request))


class Approval(Body):
    new_state: Literal["approved", "rejected"]
    approval_notes: str | None = Field(None, max_length=500)
    expected_version: int | None = Field(None, ge=1, le=2**62)
    content_sha256: str | None = Field(None, min_length=64, max_length=64)


@routes.post(_ONE + "/approval")
async def decide_approval(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, Approval)
    ruling = Ruling(
        approve=body.new_state == "approved",
        by=principal.user_id,
        expected_version=expected_version(request, body.expected_version),
        notes=body.approval_notes,
        content_sha256=body.content_sha256,
    )

    run = await request.app[FACE].dispatcher.ask(
        DecideApproval(
            owner=principal.owner, run_id=RunId(path_id(request)), ruling=ruling
        ),
        within_s=ASK_S,
    )
    return _reply(run)


class Cancellation(Body):
    reason: str | None = Field(None, min_length=1, max_length=500)


@routes.post(_ONE + "/cancel")
async def cancel_run(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    Query(request)
    reason = None
    if request.body_exists:
        reason = (await read_body(request, Cancellation)).reason

    run = await request.app[FACE].dispatcher.ask(
        CancelRun(
            owner=principal.owner,
            run_id=RunId(path_id(request)),
            by=principal.actor,
            reason=reason,
        ),
        within_s=ASK_S,
    )
    return _reply(run)


@routes.post(_ONE + "/retry")
async def retry_run(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    await read_nothing(request)

    run = await request.app[FACE].dispatcher.ask(
        RetryRun(
            owner=principal.owner,
            run_id=RunId(path_id(request)),
            by=principal.user_id,
        ),
        within_s=ASK_S,
    )
    return reply(
        {"created": True, "run": run_view(run)},
        version=run.version,
        location=f"{_PATH}/{run.id}",
    )


@routes.get(_ONE + "/logs")
async def get_log(request: web.Request) -> web.Response:
    query = Query(request, "after", "limit", "cursor")
    limit = query.limit(default=500, maximum=5000)
    after = query.cursor() or query.integer("after") or 0
    run = await _run(request)

    async with request.app[FACE].database.reading() as conn:
        lines = await run_events.list_log(
            conn, request[PRINCIPAL].owner, run.id, after=after, limit=limit
        )
    return page(
        request,
        [log_view(line) for line in lines],
        count=len(lines),
        limit=limit,
        last=lines[-1].seq if lines else 0,
    )


@routes.get(_ONE + "/artifacts")
async def list_artifacts(request: web.Request) -> web.Response:
    query = Query(request, "limit", "cursor")
    limit = query.limit()
    run = await _run(request)

    async with request.app[FACE].database.reading() as conn:
        rows = await artifacts.list_artifacts(
            conn,
            request[PRINCIPAL].owner,
            run.id,
            after=query.cursor() or 0,
            limit=limit,
        )
    return page(
        request,
        [artifact_view(row) for row in rows],
        count=len(rows),
        limit=limit,
        last=rows[-1].id if rows else 0,
    )


@routes.get(_ONE + r"/artifacts/{artifact:\d+}")
async def get_artifact(request: web.Request) -> web.Response:
    Query(request)
    run_id, artifact_id = RunId(path_id(request)), path_id(request, "artifact")
    async with request.app[FACE].database.reading() as conn:
        found = await artifacts.get_artifact(
            conn, request[PRINCIPAL].owner, run_id, artifact_id
        )
        if found is None:
            raise NotFoundError(f"no artifact {artifact_id} of run {run_id}")
        content = await artifacts.read_artifact(conn, found)
    return web.Response(
        body=content,
        headers={
            "Content-Type": "application/octet-stream",
            "Content-Disposition": (
                f'attachment; filename="run-{run_id}-artifact-{found.id}"'
            ),
            "Content-Security-Policy": "sandbox",
        },
    )


@routes.get("/api/trust/remediation/stream", allow_head=False)
async def stream_runs(request: web.Request) -> web.StreamResponse:
    query = Query(request, "run_id", "instance_id", "status", "last_event_id")
    channel = Channel(
        stream=Stream.REMEDIATION,
        accepts=_Accepts(
            owner_id=request[PRINCIPAL].owner,
            run_id=query.integer("run_id", minimum=1),
            instance_id=query.integer("instance_id", minimum=1),
            status=query.choice("status", RunStatus),
        ),
        read=run_events.events_after,
        view=_view,
    )
    return await follow(request, channel, last_position(request, query))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Accepts:
    owner_id: int | None
    run_id: int | None
    instance_id: int | None
    status: RunStatus | None
    """Before or after, so that leaving is seen."""

    @property
    def about(self) -> About | None:
        return about(
            run_id=self.run_id, instance_id=self.instance_id, owner_id=self.owner_id
        )

    def __call__(self, event: Event) -> bool:
        assert isinstance(event, RemediationEvent)
        return (
            self.owner_id in (None, event.owner_id)
            and self.run_id in (None, event.run_id)
            and self.instance_id in (None, event.instance_id)
            and (self.status is None or self.status in _statuses_of(event))
        )


def _statuses_of(event: RemediationEvent) -> tuple[str | None, ...]:
    """Return the status told of and the one that was left."""
    told = event.payload.get("event")
    if not isinstance(told, dict):
        return ()
    return told.get("status"), told.get("previous_status")


def _view(event: Event) -> View:
    assert isinstance(event, RemediationEvent)
    return event.payload


async def _run(request: web.Request) -> Run:
    run_id = RunId(path_id(request))
    async with request.app[FACE].database.reading() as conn:
        run = await runs.get_run(conn, request[PRINCIPAL].owner, run_id)
    if run is None:
        raise NotFoundError(f"no run {run_id}")
    return run


def _reply(run: Run) -> web.Response:
    return reply(run_view(run), version=run.version)
