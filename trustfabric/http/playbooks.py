"""The playbook catalogue over HTTP."""

from typing import Any

from aiohttp import web
from pydantic import Field

from trustfabric.actors.playbooks import (
    CreatePlaybook,
    DeletePlaybook,
    UpdatePlaybook,
)
from trustfabric.db import playbooks
from trustfabric.domain.ids import OwnerId, PlaybookId
from trustfabric.domain.playbooks import (
    UNSET,
    Author,
    Playbook,
    PlaybookDraft,
    PlaybookEdit,
)
from trustfabric.domain.specs import ExecutorType
from trustfabric.errors import ForbiddenError, InvalidError, NotFoundError
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import ASK_S, FACE
from trustfabric.http.parse import Body, Query, expected_version, path_id, read_body
from trustfabric.http.reply import page, reply
from trustfabric.http.tokens import Principal, Role
from trustfabric.http.views import playbook_view

routes = web.RouteTableDef()

_PATH = "/api/trust/remediation/playbooks"
_ONE = _PATH + r"/{id:\d+}"


class NewPlaybook(Body):
    playbook_key: str
    display_name: str
    executor_type: ExecutorType
    description: str | None = None
    approval_required: bool = False
    sla_duration_seconds: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    shared: bool = False
    owner_id: int | None = Field(None, ge=1, le=2**62)


class PlaybookPatch(Body):
    display_name: str | None = None
    executor_type: ExecutorType | None = None
    description: str | None = None
    approval_required: bool | None = None
    sla_duration_seconds: int | None = None
    metadata: dict[str, Any] | None = None
    expected_version: int | None = Field(None, ge=1, le=2**62)


_CLEARABLE = frozenset({"description", "sla_duration_seconds", "metadata"})
_FIELD_OF = {"sla_duration_seconds": "sla_duration_s"}


@routes.get(_PATH)
async def list_playbooks(request: web.Request) -> web.Response:
    query = Query(request, "limit", "cursor")
    limit = query.limit()

    async with request.app[FACE].database.reading() as conn:
        rows = await playbooks.list_playbooks(
            conn, request[PRINCIPAL].owner, after=query.cursor() or 0, limit=limit
        )
    return page(
        request,
        [playbook_view(row) for row in rows],
        count=len(rows),
        limit=limit,
        last=rows[-1].id if rows else 0,
    )


@routes.post(_PATH)
async def create_playbook(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, NewPlaybook)
    draft = PlaybookDraft(
        key=body.playbook_key,
        display_name=body.display_name,
        executor_type=body.executor_type,
        owner_id=_owner_of(body, principal),
        description=body.description,
        approval_required=body.approval_required,
        sla_duration_s=body.sla_duration_seconds,
        metadata=body.metadata,
    )

    playbook = await request.app[FACE].playbooks.ask(
        CreatePlaybook(author=_author(principal), draft=draft), within_s=ASK_S
    )
    return _reply(playbook)


@routes.get(_ONE)
async def get_playbook(request: web.Request) -> web.Response:
    Query(request)
    playbook_id = PlaybookId(path_id(request))
    async with request.app[FACE].database.reading() as conn:
        found = await playbooks.get_playbook(
            conn, request[PRINCIPAL].owner, playbook_id
        )
    if found is None:
        raise NotFoundError(f"no playbook {playbook_id}")
    return _reply(found)


@routes.patch(_ONE)
async def update_playbook(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, PlaybookPatch)

    playbook = await request.app[FACE].playbooks.ask(
        UpdatePlaybook(
            author=_author(principal),
            playbook_id=PlaybookId(path_id(request)),
            edit=_edit(body),
            expected_version=expected_version(request, body.expected_version),
        ),
        within_s=ASK_S,
    )
    return _reply(playbook)


@routes.delete(_ONE)
async def delete_playbook(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    query = Query(request, "expected_version")
    given = query.integer("expected_version", minimum=1)

    await request.app[FACE].playbooks.ask(
        DeletePlaybook(
            author=_author(principal),
            playbook_id=PlaybookId(path_id(request)),
            expected_version=expected_version(request, given),
        ),
        within_s=ASK_S,
    )
    return web.Response(status=204)


def _owner_of(body: NewPlaybook, principal: Principal) -> OwnerId | None:
    is_admin = principal.role is Role.ADMIN
    if (body.shared or body.owner_id is not None) and not is_admin:
        raise ForbiddenError("only role admin writes shared or others' playbooks")
    if body.shared and body.owner_id is not None:
        raise InvalidError("owner_id: a shared playbook has no owner")
    if body.shared:
        return None
    return principal.user_id if body.owner_id is None else OwnerId(body.owner_id)


def _edit(body: PlaybookPatch) -> PlaybookEdit:
    """Turn a PATCH into an edit: absent keeps, null clears."""
    values: dict[str, Any] = {}
    for name in body.model_fields_set - {"expected_version"}:
        value = getattr(body, name)
        if value is None and name not in _CLEARABLE:
            raise InvalidError(f"{name}: can't be cleared")
        values[_FIELD_OF.get(name, name)] = value
    return PlaybookEdit(**{**_NOTHING, **values})


_NOTHING = {
    "display_name": UNSET,
    "description": UNSET,
    "executor_type": UNSET,
    "approval_required": UNSET,
    "sla_duration_s": UNSET,
    "metadata": UNSET,
}


def _author(principal: Principal) -> Author:
    return Author(owner_id=principal.user_id, is_admin=principal.role is Role.ADMIN)


def _reply(playbook: Playbook) -> web.Response:
    return reply(
        playbook_view(playbook),
        version=playbook.version,
        location=f"{_PATH}/{playbook.id}",
    )
