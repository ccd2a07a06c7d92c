"""Certifications over HTTP: lists, plans, lineage, and a refresh at once."""

from datetime import datetime
from typing import Any

from aiohttp import web
from pydantic import Field

from trustfabric.actors.refreshes import EditCertification, RetryCertification
from trustfabric.db import evaluations, refreshes
from trustfabric.domain.evaluations import (
    CertificationId,
    CertificationStatus,
    Edit,
)
from trustfabric.domain.ids import ServerId
from trustfabric.errors import NotFoundError
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import ASK_S, FACE
from trustfabric.http.parse import (
    Body,
    Query,
    expected_version,
    in_utc,
    path_id,
    read_body,
    read_nothing,
)
from trustfabric.http.reply import page, reply
from trustfabric.http.tokens import Role
from trustfabric.http.views import certification_view, lineage_view

routes = web.RouteTableDef()

_PATH = "/api/evaluations"
_ONE = _PATH + r"/{id:\d+}"


class Plan(Body):
    """What is absent stays, null clears."""

    refresh_cadence_seconds: int | None = Field(None, ge=1, le=2**31 - 1)
    next_refresh_at: datetime | None = None
    governance_notes: str | None = Field(None, max_length=500)
    evidence_source: Any = None
    evidence_lineage: Any = None
    expected_version: int | None = Field(None, ge=1, le=2**62)


_FIELD_OF = {"refresh_cadence_seconds": "cadence_s"}


@routes.get(_PATH)
async def list_evaluations(request: web.Request) -> web.Response:
    face = request.app[FACE]
    query = Query(request, "server_id", "status", "limit", "cursor")
    server_id, limit = query.integer("server_id", minimum=1), query.limit()
    wanted = evaluations.CertificationFilter(
        owner_id=request[PRINCIPAL].owner,
        server_id=None if server_id is None else ServerId(server_id),
        status=query.choice("status", CertificationStatus),
    )

    async with face.database.reading() as conn:
        rows = await evaluations.list_standings(
            conn, wanted, after=query.cursor() or 0, limit=limit
        )
    return page(
        request,
        [certification_view(row, face.now()) for row in rows],
        count=len(rows),
        limit=limit,
        last=rows[-1].certification.id if rows else 0,
    )


@routes.get(_ONE + "/status")
async def get_status(request: web.Request) -> web.Response:
    Query(request)
    return await _status(request)


@routes.patch(_ONE + "/status")
async def plan(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, Plan)

    await request.app[FACE].refresher.ask(
        EditCertification(
            owner_id=principal.owner,
            certification_id=_id(request),
            edit=_edit(body),
            expected_version=expected_version(request, body.expected_version),
        ),
        within_s=ASK_S,
    )
    return await _status(request)


@routes.post(_ONE + "/retry")
async def retry(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    await read_nothing(request)

    await request.app[FACE].refresher.ask(
        RetryCertification(owner_id=principal.owner, certification_id=_id(request)),
        within_s=ASK_S,
    )
    return await _status(request, code=202)


@routes.get(_ONE + "/lineage")
async def get_lineage(request: web.Request) -> web.Response:
    Query(request)
    standing = await _standing(request)
    async with request.app[FACE].database.reading() as conn:
        newest = await refreshes.list_refreshes(conn, standing.certification.id)
    return reply(lineage_view(standing, newest), version=standing.certification.version)


async def _status(request: web.Request, code: int = 200) -> web.Response:
    standing = await _standing(request)
    return reply(
        certification_view(standing, request.app[FACE].now()),
        status=code,
        version=standing.certification.version,
    )


async def _standing(request: web.Request) -> evaluations.Standing:
    async with request.app[FACE].database.reading() as conn:
        found = await evaluations.get_standing(
            conn, request[PRINCIPAL].owner, _id(request)
        )
    if found is None:
        raise NotFoundError(f"no evaluation {_id(request)}")
    return found


def _id(request: web.Request) -> CertificationId:
    return CertificationId(path_id(request))


def _edit(body: Plan) -> Edit:
    named = body.model_fields_set - {"expected_version"}
    values = {_FIELD_OF.get(name, name): getattr(body, name) for name in named}
    if "next_refresh_at" in named:
        values["next_refresh_at"] = in_utc("next_refresh_at", body.next_refresh_at)
    return Edit(values=values)
