"""Policies and reference values over HTTP: versions, their states, rehearsals."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypeVar

from aiohttp import web
from pydantic import Field

from trustfabric.actors.policies import CreateVersion, MoveVersion, Rehearse
from trustfabric.db import policies
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.rehearsal import Rehearsed
from trustfabric.domain.attestation.versions import Draft, Noun, Scope, State, Version
from trustfabric.domain.ids import OwnerId
from trustfabric.domain.vms import IsolationTier
from trustfabric.errors import InvalidError, NotFoundError
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import ASK_S, FACE
from trustfabric.http.parse import (
    Body,
    Query,
    expected_version,
    in_utc,
    path_id,
    read_body,
)
from trustfabric.http.reply import page, reply
from trustfabric.http.tokens import Principal, Role

routes = web.RouteTableDef()

B = TypeVar("B", bound=Body)

_PATH = r"/api/attestation/{noun:policies|references}"
_ONE = _PATH + r"/{id:\d+}"
_REHEARSED_AT_ONCE = 50
_NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"


class NewVersion(Body):
    name: str = Field(pattern=_NAME)
    document: dict[str, Any]
    owner_id: int | None = Field(None, ge=1, le=2**62)
    """Whose instances it is for; absent: everybody's."""
    image: str | None = Field(None, min_length=1, max_length=128)
    tier: IsolationTier | None = None
    note: str | None = Field(None, max_length=500)


class Activation(Body):
    previous_until: datetime | None = Field(None, strict=False)
    """Until when the versions before it are believed, with a warning."""
    expected_version: int | None = Field(None, ge=1, le=2**62)


class Deprecation(Body):
    until: datetime = Field(strict=False)
    expected_version: int | None = Field(None, ge=1, le=2**62)


class Revocation(Body):
    expected_version: int | None = Field(None, ge=1, le=2**62)


class DryRun(Body):
    version_id: int | None = Field(None, ge=1, le=2**62)
    """A version that is there; else `document` and whom it would be for."""
    document: dict[str, Any] | None = None
    name: str = Field("dry-run", pattern=_NAME)
    owner_id: int | None = Field(None, ge=1, le=2**62)
    image: str | None = Field(None, min_length=1, max_length=128)
    tier: IsolationTier | None = None
    state: Literal["active", "revoked"] = "active"


@routes.get(_PATH)
async def list_versions(request: web.Request) -> web.Response:
    query = Query(request, "name", "state", "limit", "cursor")
    limit = query.limit()
    only = policies.Filter(name=query.text("name"), state=query.choice("state", State))
    async with request.app[FACE].database.reading() as conn:
        rows = await policies.list_versions(
            conn,
            request[PRINCIPAL].owner,
            _noun(request),
            only,
            after=query.cursor() or 0,
            limit=limit,
        )
    views = [version_view(row) for row in rows]
    last = rows[-1].id if rows else 0
    return page(request, views, count=len(rows), limit=limit, last=last)


@routes.post(_PATH)
async def create_version(request: web.Request) -> web.Response:
    principal = require(request, Role.ADMIN)
    body = await read_body(request, NewVersion)
    draft = _draft(request, principal, body, body.document, note=body.note)
    made = await request.app[FACE].policies.ask(
        CreateVersion(draft=draft), within_s=ASK_S
    )
    return _reply(made, status=201)


@routes.get(_ONE)
async def get_version(request: web.Request) -> web.Response:
    Query(request)
    noun, version_id = _noun(request), path_id(request)
    async with request.app[FACE].database.reading() as conn:
        found = await policies.get_version(
            conn, request[PRINCIPAL].owner, noun, version_id
        )
    if found is None:
        raise NotFoundError(f"no version {version_id} of {noun}")
    return _reply(found)


@routes.post(_ONE + "/activate")
async def activate(request: web.Request) -> web.Response:
    body = await _optional(request, Activation)
    until = in_utc("previous_until", body.previous_until)
    return await _move(request, State.ACTIVE, until, body.expected_version)


@routes.post(_ONE + "/deprecate")
async def deprecate(request: web.Request) -> web.Response:
    body = await read_body(request, Deprecation)
    until = in_utc("until", body.until)
    return await _move(request, State.DEPRECATED, until, body.expected_version)


@routes.post(_ONE + "/revoke")
async def revoke(request: web.Request) -> web.Response:
    body = await _optional(request, Revocation)
    return await _move(request, State.REVOKED, None, body.expected_version)


async def _optional(request: web.Request, kind: type[B]) -> B:
    """Read a body that may be left out: If-Match says the rest."""
    if request.body_exists:
        return await read_body(request, kind)
    Query(request)
    return kind()


async def _move(
    request: web.Request, state: State, until: datetime | None, given: int | None
) -> web.Response:
    principal = require(request, Role.ADMIN)
    saved = await request.app[FACE].policies.ask(
        MoveVersion(
            noun=_noun(request),
            version_id=path_id(request),
            state=state,
            until=until,
            actor=principal.actor,
            expected_version=expected_version(request, given),
        ),
        within_s=ASK_S,
    )
    return _reply(saved)


@routes.post(_PATH + "/dry-run")
async def dry_run(request: web.Request) -> web.Response:
    """Say what a version would make of the last evidence; a page at a time."""
    principal = require(request, Role.OPERATOR)
    limit, after, body = await _paged(request)
    if (body.version_id is None) == (body.document is None):
        raise InvalidError("version_id, document: one of them is wanted")
    proposed: Draft | int
    if body.document is None:
        assert body.version_id is not None
        proposed = body.version_id
    else:
        proposed = _draft(request, principal, body, body.document, note=None)
    rows = await request.app[FACE].policies.ask(
        Rehearse(
            owner_id=principal.owner,
            noun=_noun(request),
            proposed=proposed,
            state=State(body.state),
            after=after,
            limit=limit,
        ),
        within_s=ASK_S,
    )
    views = [_rehearsed_view(row) for row in rows]
    last = rows[-1].instance_id if rows else 0
    count = min(len(rows), limit)  # all accelerators of the last instance are there
    return page(request, views, count=count, limit=limit, last=last)


async def _paged(request: web.Request) -> tuple[int, int, DryRun]:
    """Read the one body that comes with a query: which page of the fleet."""
    query = Query(request, "limit", "cursor")
    limit = query.limit(default=_REHEARSED_AT_ONCE, maximum=_REHEARSED_AT_ONCE)
    body = await read_body(request, DryRun, "limit", "cursor")
    return limit, query.cursor() or 0, body


def _draft(
    request: web.Request,
    principal: Principal,
    body: NewVersion | DryRun,
    document: Mapping[str, Any],
    *,
    note: str | None,
) -> Draft:
    scope = Scope(
        owner_id=None if body.owner_id is None else OwnerId(body.owner_id),
        image=body.image,
        tier=None if body.tier is None else body.tier.value,
    )
    return Draft(
        noun=_noun(request),
        name=body.name,
        scope=scope,
        document=document,
        note=note,
        created_by=principal.actor,
    )


def _noun(request: web.Request) -> Noun:
    return Noun(request.match_info["noun"])


def _reply(version: Version, *, status: int = 200) -> web.Response:
    return reply(
        version_view(version),
        status=status,
        version=version.version,
        location=f"/api/attestation/{version.noun}/{version.id}",
    )


def version_view(version: Version) -> Mapping[str, Any]:
    return {
        "id": version.id,
        "name": version.name,
        "document_version": version.number,
        "owner_id": version.scope.owner_id,
        "image": version.scope.image,
        "tier": version.scope.tier,
        "state": version.state,
        "deprecated_until": version.deprecated_until,
        "document": version.document,
        "note": version.note,
        "created_by": version.created_by,
        "version": version.version,
        "created_at": version.created_at,
        "updated_at": version.updated_at,
    }


def _rehearsed_view(row: Rehearsed) -> Mapping[str, Any]:
    return {
        "vm_instance_id": row.instance_id,
        "instance_id": row.stored.instance,
        "accelerator_id": row.accelerator_id,
        "server_id": row.server_id,
        "attestation_id": row.stored.attestation_id,
        "verified_at": row.stored.verified_at,
        "changes": row.changes,
        "now": _judged_view(row.now),
        "would_be": _judged_view(row.would_be),
        "failed_checks": [check.view() for check in row.would_be.failures],
    }


def _judged_view(appraisal: Appraisal) -> Mapping[str, Any]:
    return {
        "status": appraisal.status,
        "code": appraisal.code,
        "policy_id": appraisal.policy_id,
        "policy_version": appraisal.policy_version,
        "advisories": appraisal.advisories,
    }
