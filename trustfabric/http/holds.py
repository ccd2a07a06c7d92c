"""Holds, incidents and the breaker over HTTP, and the stream of what befalls them."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from aiohttp import web
from pydantic import Field

from trustfabric.actors.holds import PlaceHold, ReleaseBreaker, ReleaseHold
from trustfabric.actors.streams import Event, Stream
from trustfabric.db import hold_events, holds, incidents, storms
from trustfabric.domain.events import HeldEvent
from trustfabric.domain.holds import (
    LONGEST,
    Hold,
    HoldOrder,
    HoldScope,
    HoldState,
)
from trustfabric.domain.ids import HoldId, IncidentId, InstanceId, OwnerId
from trustfabric.domain.storms import Incident, sentence
from trustfabric.errors import InvalidError, NotFoundError
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import ASK_S, FACE
from trustfabric.http.parse import Body, Query, in_utc, path_id, read_body
from trustfabric.http.reply import page, reply
from trustfabric.http.sse import Channel, follow, last_position
from trustfabric.http.tokens import Role
from trustfabric.http.views import View

routes = web.RouteTableDef()

_HOLDS = "/api/trust/holds"
_HOLD = _HOLDS + r"/{id:\d+}"
_INCIDENTS = "/api/trust/incidents"
_BREAKER = "/api/trust/remediation/breaker"


# --- holds ----------------------------------------------------------------------


@routes.get(_HOLDS)
async def list_holds(request: web.Request) -> web.Response:
    face = request.app[FACE]
    query = Query(
        request, "state", "scope", "runtime_vm_instance_id", "limit", "cursor"
    )
    limit = query.limit()
    instance_id = query.integer("runtime_vm_instance_id", minimum=1)
    wanted = holds.HoldFilter(
        viewer=request[PRINCIPAL].owner,
        scope=query.choice("scope", HoldScope),
        instance_id=None if instance_id is None else InstanceId(instance_id),
        state=query.choice("state", HoldState),
    )

    async with face.database.reading() as conn:
        rows = await holds.list_holds(
            conn, wanted, face.now(), before=query.cursor() or 2**62, limit=limit
        )
    return page(
        request,
        [hold_view(row, face.now()) for row in rows],
        count=len(rows),
        limit=limit,
        last=rows[-1].id if rows else 0,
    )


class NewHold(Body):
    scope: HoldScope
    runtime_vm_instance_id: int | None = Field(None, ge=1, le=2**62)
    instance_id: int | None = Field(None, ge=1, le=2**62)
    """The same, as streams call it."""
    owner_id: int | None = Field(None, ge=1, le=2**62)
    reason: str = Field(min_length=1, max_length=500)
    until: datetime | None = None
    for_seconds: float | None = Field(None, gt=0, le=LONGEST.total_seconds())
    """The same, counted from now on."""


@routes.post(_HOLDS)
async def place_hold(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    face = request.app[FACE]
    body = await read_body(request, NewHold)
    instance_id = body.runtime_vm_instance_id or body.instance_id
    if body.instance_id not in (None, instance_id):
        raise InvalidError("instance_id: differs from runtime_vm_instance_id")
    order = HoldOrder(
        scope=body.scope,
        instance_id=None if instance_id is None else InstanceId(instance_id),
        owner_id=None if body.owner_id is None else OwnerId(body.owner_id),
        reason=body.reason,
        until=_end(body, face.now()),
        by=principal.actor,
        caller=principal.user_id,
        is_admin=principal.role is Role.ADMIN,
    )

    hold, is_new = await face.holds.ask(
        PlaceHold(order, principal.owner), within_s=ASK_S
    )
    return reply(
        hold_view(hold, face.now()),
        status=201 if is_new else 200,
        location=f"{_HOLDS}/{hold.id}",
    )


def _end(body: NewHold, now: datetime) -> datetime | None:
    if body.for_seconds is None:
        return in_utc("until", body.until)
    if body.until is not None:
        raise InvalidError("for_seconds: not together with until")
    return now + timedelta(seconds=body.for_seconds)


@routes.get(_HOLDS + "/stream", allow_head=False)
async def stream_holds(request: web.Request) -> web.StreamResponse:
    query = Query(request, "last_event_id")
    channel = Channel(
        stream=Stream.HOLDS,
        accepts=_Accepts(request[PRINCIPAL].owner),
        read=hold_events.events_after,
        view=event_view,
    )
    return await follow(request, channel, last_position(request, query))


@routes.get(_HOLD)
async def get_hold(request: web.Request) -> web.Response:
    Query(request)
    face = request.app[FACE]
    hold_id = HoldId(path_id(request))
    async with face.database.reading() as conn:
        hold = await holds.get_hold(conn, request[PRINCIPAL].owner, hold_id)
        if hold is None:
            raise NotFoundError(f"no hold {hold_id}")
        events = await hold_events.list_events(conn, hold_id)
    told = [
        {"event": one.kind, "actor": one.actor, "at": one.at, **one.payload}
        for one in events
    ]
    return reply({**hold_view(hold, face.now()), "events": told})


@routes.delete(_HOLD)
async def release_hold(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    query = Query(request, "reason")
    reason = query.text("reason")
    await request.app[FACE].holds.ask(
        ReleaseHold(
            hold_id=HoldId(path_id(request)),
            viewer=principal.owner,
            by=principal.actor,
            is_admin=principal.role is Role.ADMIN,
            reason=reason[:500] if reason else None,
        ),
        within_s=ASK_S,
    )
    return web.Response(status=204)


# --- incidents and the breaker ----------------------------------------------------


@routes.get(_INCIDENTS)
async def list_incidents(request: web.Request) -> web.Response:
    query = Query(request, "open", "limit", "cursor")
    limit, viewer = query.limit(), request[PRINCIPAL].owner
    async with request.app[FACE].database.reading() as conn:
        rows = await incidents.list_incidents(
            conn,
            viewer,
            is_open=query.flag("open"),
            before=query.cursor() or 2**62,
            limit=limit,
        )
    return page(
        request,
        [incident_view(row, viewer) for row in rows],
        count=len(rows),
        limit=limit,
        last=rows[-1].id if rows else 0,
    )


@routes.get(_INCIDENTS + r"/{id:\d+}")
async def get_incident(request: web.Request) -> web.Response:
    Query(request)
    viewer, incident_id = request[PRINCIPAL].owner, IncidentId(path_id(request))
    async with request.app[FACE].database.reading() as conn:
        found = await incidents.get_incident(conn, viewer, incident_id)
    if found is None:
        raise NotFoundError(f"no incident {incident_id}")
    return reply(incident_view(found, viewer))


@routes.get(_BREAKER)
async def get_breaker(request: web.Request) -> web.Response:
    Query(request)
    face, viewer = request.app[FACE], request[PRINCIPAL].owner
    async with face.database.reading() as conn:
        census = await storms.read_census(conn, face.now(), face.storm_limits)
        opened = await incidents.list_incidents(conn, viewer, is_open=True)
    counted = (
        sum(hit.count.quarantined for hit in census.hits)
        if viewer is None
        else sum(h.count.quarantined for h in census.hits if h.owner_id == viewer)
    )
    return reply(
        {
            "state": "open" if opened else "closed",
            "open": bool(opened),
            "limits": face.storm_limits.view(),
            "quarantined_in_window": counted,
            "incidents": [incident_view(row, viewer) for row in opened],
        }
    )


class BreakerRelease(Body):
    reason: str = Field(min_length=1, max_length=500)
    incident_id: int | None = Field(None, ge=1, le=2**62)
    owner_id: int | None = Field(None, ge=1, le=2**62)


@routes.post(_BREAKER + "/release")
async def release_breaker(request: web.Request) -> web.Response:
    principal = require(request, Role.ADMIN)
    face = request.app[FACE]
    body = await read_body(request, BreakerRelease)
    order = incidents.BreakerRelease(
        by=principal.actor,
        reason=body.reason,
        incident_id=None if body.incident_id is None else IncidentId(body.incident_id),
        owner_id=None if body.owner_id is None else OwnerId(body.owner_id),
    )

    released = await face.holds.ask(ReleaseBreaker(order), within_s=ASK_S)
    async with face.database.reading() as conn:
        left = await incidents.list_incidents(conn, None, is_open=True)
    return reply(
        {
            "released": [incident_view(one, None) for one in released],
            "state": "open" if left else "closed",
            "open": bool(left),
            "incidents": [incident_view(one, None) for one in left],
        }
    )


# --- views ------------------------------------------------------------------------


def hold_view(hold: Hold, now: datetime) -> View:
    """Show a hold; `state` is computed at reading."""
    return {
        "id": hold.id,
        "scope": hold.scope,
        "runtime_vm_instance_id": hold.instance_id,
        "owner_id": hold.owner_id,
        "reason": hold.reason,
        "by": hold.by,
        "until": hold.until,
        "state": hold.state(now),
        "kind": "breaker" if hold.is_breakers else "person",
        "incident_id": hold.incident_id,
        "needs_admin": hold.needs_admin,
        "created_at": hold.created_at,
        "released_at": hold.released_at,
        "released_by": hold.released_by,
        "release_reason": hold.release_reason,
    }


def incident_view(incident: Incident, viewer: OwnerId | None) -> View:
    """Show an incident; of the fleet's, tenants see that it is and no one's numbers."""
    view = {
        "id": incident.id,
        "scope": incident.scope,
        "owner_id": incident.owner_id,
        "state": "open" if incident.is_open else "released",
        "cause": incident.cause,
        "limits": incident.limits,
        "counted_since": incident.counted_since,
        "opened_at": incident.opened_at,
        "updated_at": incident.updated_at,
        "released_at": incident.released_at,
        "released_by": incident.released_by,
        "release_reason": incident.release_reason,
    }
    if viewer is not None and incident.owner_id != viewer:
        told = "too many of the fleet's VMs were quarantined at once"
        return {**view, "summary": told}
    return {
        **view,
        "summary": sentence(incident),
        "quarantined": incident.quarantined,
        "living": incident.living,
        "common": incident.common,
        "affected": incident.affected,
        "opened_by": incident.opened_by,
    }


def event_view(event: Event) -> View:
    """Show what happened to a hold, as its stream tells it."""
    assert isinstance(event, HeldEvent)
    told = event.event
    return {
        "event": told.kind,
        "hold_id": told.hold_id,
        "incident_id": told.incident_id,
        "actor": told.actor,
        "at": told.at,
        **told.payload,
    }


@dataclass(frozen=True, slots=True)
class _Accepts:
    viewer: OwnerId | None

    def __call__(self, event: Event) -> bool:
        assert isinstance(event, HeldEvent)
        return self.viewer is None or event.event.owner_id in (None, self.viewer)
