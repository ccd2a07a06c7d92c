"""The trust registry over HTTP: lists, details, history, transitions, the stream."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from aiohttp import web
from pydantic import Field

from trustfabric.actors.attestation import Attest
from trustfabric.actors.followers import About, about
from trustfabric.actors.streams import Event, Stream
from trustfabric.actors.trust import ApplyChange
from trustfabric.db import retention, trust, trust_events, trust_past
from trustfabric.db.run_writes import CancelActiveRun
from trustfabric.db.session import Connection
from trustfabric.domain import lifecycle
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.trust import (
    AttestationStatus,
    Lifecycle,
    Snapshot,
    Tag,
    is_stale,
)
from trustfabric.domain.wishes import Wish, by_hand
from trustfabric.errors import (
    ConflictError,
    InvalidError,
    MalformedError,
    NotFoundError,
    PrunedError,
)
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import ASK_S, FACE
from trustfabric.http.parse import (
    Body,
    Query,
    SmallObject,
    expected_version,
    in_utc,
    path_id,
    read_body,
)
from trustfabric.http.reply import page, reply
from trustfabric.http.sse import Channel, follow, last_position
from trustfabric.http.tokens import Role
from trustfabric.http.views import View, history_view, posture_view, trust_event_view

routes = web.RouteTableDef()

_FILTERS = ("server_id", "lifecycle_state", "attestation_status", "stale")


@routes.get("/api/trust/registry")
async def list_registry(request: web.Request) -> web.Response:
    face = request.app[FACE]
    query = Query(request, *_FILTERS, "at", "limit", "cursor")
    wanted, limit = _filter(request, query), query.limit()
    at = query.moment("at")
    read = trust.list_postures if at is None else trust_past.list_past

    async with face.database.reading() as conn:
        await _check_kept(conn, at)
        rows = await read(
            conn, wanted, at or face.now(), after=query.cursor() or 0, limit=limit
        )
    return page(
        request,
        [posture_view(row, at or face.now()) for row in rows],
        count=len(rows),
        limit=limit,
        last=rows[-1].instance_id if rows else 0,
    )


@routes.get("/api/trust/lifecycle")
async def get_lifecycle(request: web.Request) -> web.Response:
    query = Query(request, "format")
    match query.text("format"):
        case None | "json":
            return reply(lifecycle.document())
        case "mermaid":
            return web.Response(
                text=lifecycle.mermaid(), content_type="text/vnd.mermaid"
            )
        case _:
            raise MalformedError("format: not json or mermaid")


@routes.get("/api/trust/registry/stream", allow_head=False)
async def stream_registry(request: web.Request) -> web.StreamResponse:
    face = request.app[FACE]
    query = Query(request, *_FILTERS, "snapshot", "include", "last_event_id")
    wanted = _filter(request, query)

    provenance = _includes_provenance(query)

    async def snapshot(
        conn: Connection, *, after: int, limit: int
    ) -> list[tuple[int, View]]:
        rows = await trust.list_postures(
            conn, wanted, face.now(), after=after, limit=limit
        )
        views = [posture_view(row, face.now(), provenance=provenance) for row in rows]
        return [(row.instance_id, view) for row, view in zip(rows, views, strict=True)]

    channel = Channel(
        stream=Stream.TRUST,
        accepts=_Accepts(wanted),
        read=trust_events.events_after,
        view=_EventView(face.now, provenance=provenance),
        snapshot=snapshot if query.flag("snapshot") else None,
    )
    return await follow(request, channel, last_position(request, query))


@routes.get(r"/api/trust/registry/{id:\d+}")
async def get_registry(request: web.Request) -> web.Response:
    query = Query(request, "at")
    face = request.app[FACE]
    at = query.moment("at")
    posture = await _posture(request, InstanceId(path_id(request)), at)
    view = posture_view(posture, at or face.now())
    # A row of the past is nothing to base a write on: it has no ETag.
    return reply(view, version=posture.version if at is None else None)


@routes.get(r"/api/trust/registry/{id:\d+}/history")
async def get_history(request: web.Request) -> web.Response:
    face = request.app[FACE]
    query = Query(request, "limit", "cursor")
    limit = query.limit(default=25, maximum=face.limits.history_max)
    instance_id = InstanceId(path_id(request))

    posture = await _posture(request, instance_id)
    async with face.database.reading() as conn:
        events = await trust_events.list_history(
            conn,
            request[PRINCIPAL].owner,
            instance_id,
            before=query.cursor() or 2**62,
            limit=limit,
        )
    body = {
        "server_id": posture.server_id,
        "server_name": posture.server_name,
        "instance_id": posture.instance_name,
        "vm_instance_id": instance_id,
        "events": [history_view(event) for event in events],
    }
    last = events[-1].history_id if events else 0
    return page(request, body, count=len(events), limit=limit, last=last)


class Transition(Body):
    attestation_status: AttestationStatus
    lifecycle_state: Lifecycle
    remediation_state: str | None = Field(None, max_length=64)
    remediation_attempts: int | None = Field(None, ge=0, le=2**31 - 1)
    freshness_deadline: datetime | None = None
    provenance_ref: str | None = Field(None, max_length=200)
    provenance: SmallObject | None = None
    transition_reason: str | None = Field(None, min_length=1, max_length=500)
    metadata: SmallObject = Field(default_factory=dict)
    expected_version: int | None = Field(None, ge=1, le=2**62)
    override: bool = False


@routes.post(r"/api/trust/registry/{id:\d+}/transition")
async def apply_transition(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    face = request.app[FACE]
    body = await read_body(request, Transition)
    instance_id = InstanceId(path_id(request))
    wish = Wish(
        lifecycle=body.lifecycle_state,
        status=body.attestation_status,
        actor=principal.actor,
        is_admin=principal.role is Role.ADMIN,
        override=body.override,
        reason=body.transition_reason,
        tag=_tag(body.remediation_state),
        attempts=body.remediation_attempts,
        deadline=in_utc("freshness_deadline", body.freshness_deadline),
        provenance_ref=body.provenance_ref,
        provenance=body.provenance,
        metadata=body.metadata,
    )

    row = await _apply(request, instance_id, wish, body.expected_version)
    return reply(posture_view(row, face.now()), version=row.version)


class Release(Body):
    reason: str = Field(min_length=1, max_length=500)
    expected_version: int | None = Field(None, ge=1, le=2**62)


@routes.post(r"/api/trust/registry/{id:\d+}/release")
async def release(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    face = request.app[FACE]
    body = await read_body(request, Release)
    instance_id = InstanceId(path_id(request))
    before = await _posture(request, instance_id)
    wish = Wish(
        lifecycle=Lifecycle.SUSPECT,
        status=before.attestation_status,
        actor=principal.actor,
        is_admin=principal.role is Role.ADMIN,
        reason=body.reason,
    )

    row = await _apply(request, instance_id, wish, body.expected_version)
    return reply(posture_view(row, face.now()), version=row.version)


async def _apply(
    request: web.Request, instance_id: InstanceId, wish: Wish, version: int | None
) -> Snapshot:
    """Return the row as this change left it; others may have changed it since."""
    principal, face = request[PRINCIPAL], request.app[FACE]
    ends_repair = wish.override or wish.lifecycle is Lifecycle.QUARANTINED
    cancel = CancelActiveRun(
        by=principal.actor, reason=wish.reason or "manual", now=face.now()
    )
    change = ApplyChange(
        instance_id=instance_id,
        change=wish,
        owner_id=principal.owner,
        expected_version=expected_version(request, version),
        requires_version=True,
        companions=(cancel,) if ends_repair else (),
    )
    try:
        applied = await face.trust.ask(change, within_s=ASK_S)
    except ConflictError as error:
        # Whoever was refused needs what they didn't know: the row, and the way on.
        now_is = await _posture(request, instance_id)
        error.facts = {
            **error.facts,
            "current": posture_view(now_is, face.now()),
            "allowed": by_hand(now_is.lifecycle),
        }
        raise
    if wish.lifecycle is Lifecycle.SUSPECT and not wish.override:
        face.attestation.tell(Attest(instance_id, "release"))
    return applied.after


async def _posture(
    request: web.Request, instance_id: InstanceId, at: datetime | None = None
) -> Snapshot:
    owner_id, database = request[PRINCIPAL].owner, request.app[FACE].database
    if at is None:
        posture = await database.glance(
            lambda conn: trust.get_posture(conn, owner_id, instance_id)
        )
    else:
        async with database.reading() as conn:
            await _check_kept(conn, at)
            posture = await trust_past.get_past(conn, owner_id, instance_id, at)
    if posture is None:
        raise NotFoundError(f"no instance {instance_id}")
    return posture


async def _check_kept(conn: Connection, at: datetime | None) -> None:
    """Refuse a time of which rows may be missing. PrunedError names the oldest."""
    horizon = None if at is None else await retention.read_horizon(conn, Stream.TRUST)
    if horizon is not None and at is not None and at < horizon.known_from:
        known_from = horizon.known_from.isoformat()
        raise PrunedError(
            f"at: history is kept from {known_from} on", horizon=known_from
        )


def _filter(request: web.Request, query: Query) -> trust.PostureFilter:
    server_id = query.integer("server_id", minimum=1)
    return trust.PostureFilter(
        owner_id=request[PRINCIPAL].owner,
        server_id=None if server_id is None else ServerId(server_id),
        lifecycle=query.choice("lifecycle_state", Lifecycle),
        status=query.choice("attestation_status", AttestationStatus),
        stale=query.flag("stale"),
    )


@dataclass(frozen=True, slots=True)
class _Accepts:
    """Match on the previous or the current value, so that leaving is seen.

    Whether evidence was stale is a matter of when it happened: an event that is sent
    again later has to meet the same clients.
    """

    wanted: trust.PostureFilter

    @property
    def about(self) -> About | None:
        return about(server_id=self.wanted.server_id, owner_id=self.wanted.owner_id)

    def __call__(self, event: Event) -> bool:
        assert isinstance(event, TrustEvent)
        wanted = self.wanted
        return (
            wanted.owner_id in (None, event.owner_id)
            and wanted.server_id in (None, event.server_id)
            and wanted.lifecycle in (None, event.lifecycle, event.previous_lifecycle)
            and wanted.status in (None, event.status, event.previous_status)
            and self._matches_stale(event)
        )

    def _matches_stale(self, event: TrustEvent) -> bool:
        stale = self.wanted.stale
        return stale in (None, is_stale(event.freshness_deadline, event.triggered_at))


@dataclass(frozen=True, slots=True)
class _EventView:
    now: Callable[[], datetime]
    provenance: bool

    def __call__(self, event: Event) -> View:
        assert isinstance(event, TrustEvent)
        return trust_event_view(event, self.now(), provenance=self.provenance)


def _includes_provenance(query: Query) -> bool:
    match query.text("include"):
        case None:
            return False
        case "provenance":
            return True
        case _:
            raise MalformedError("include: only provenance can be included")


def _tag(text: str | None) -> Tag | None:
    if text is None:
        return None
    try:
        return Tag.read(text)
    except ValueError:
        words = ", ".join(Tag)
        raise InvalidError(f"remediation_state: not one of {words}") from None
