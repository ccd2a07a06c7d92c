"""Why over HTTP: the reasons that stand between an instance and its work."""

from aiohttp import web

from trustfabric.db import why
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.reasons import Facts, Reason
from trustfabric.domain.why import Explanation, explain
from trustfabric.errors import NotFoundError
from trustfabric.http.auth import PRINCIPAL
from trustfabric.http.face import FACE
from trustfabric.http.parse import Query, path_id
from trustfabric.http.reply import reply
from trustfabric.http.views import View

routes = web.RouteTableDef()


@routes.get(r"/api/trust/registry/{id:\d+}/why")
async def why_instance(request: web.Request) -> web.Response:
    Query(request)
    return await _why(request, InstanceId(path_id(request)), None)


@routes.get(r"/api/servers/{id:\d+}/why")
async def why_server(request: web.Request) -> web.Response:
    Query(request)
    return await _why(request, None, ServerId(path_id(request)))


async def _why(
    request: web.Request, instance_id: InstanceId | None, server_id: ServerId | None
) -> web.Response:
    face, viewer = request.app[FACE], request[PRINCIPAL].owner
    now = face.now()
    async with face.database.reading() as conn:
        if instance_id is None and server_id is not None:
            instance_id = await why.newest_of(conn, viewer, server_id)
        if instance_id is None:
            raise NotFoundError(f"server {server_id} never had an instance")
        facts = await why.read_facts(conn, viewer, instance_id, face.rules, now)
    told = explain(facts, face.rules, now)
    view = {"at": now, **why_view(facts, told, now.timestamp())}
    return reply(view, version=facts.snapshot.version)


def why_view(facts: Facts, told: Explanation, now_s: float) -> View:
    """Show the reasons, and how old each is."""
    row = facts.snapshot
    return {
        "vm_instance_id": row.instance_id,
        "instance_id": row.instance_name,
        "server_id": row.server_id,
        "server_name": row.server_name,
        "version": row.version,
        "lifecycle_state": row.lifecycle,
        "attestation_status": row.attestation_status,
        "remediation_state": row.remediation_state,
        "remediation_attempts": row.remediation_attempts,
        "freshness_deadline": row.freshness_deadline,
        "trusted": told.trusted,
        "placeable": told.placeable,
        "gate_notes": [] if facts.decision is None else list(facts.decision.notes),
        "reasons": [_reason(reason, now_s) for reason in told.reasons],
    }


def _reason(reason: Reason, now_s: float) -> View:
    since = reason.since
    return {
        "about": reason.about,
        "code": reason.code,
        "text": reason.text,
        "blocks": reason.blocks,
        "source": reason.source,
        "since": since,
        "age_seconds": None
        if since is None
        else max(0, round(now_s - since.timestamp())),
        "until": reason.until,
        "fact": reason.fact,
        "next": [
            {"command": step.command, "request": step.request} for step in reason.next
        ],
    }
