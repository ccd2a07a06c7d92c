"""Incidents: one opening of a breaker each, with the hold that goes with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db import hold_events, holds, storms
from trustfabric.db.session import Connection
from trustfabric.domain.holds import BREAKER, HoldEventKind, HoldScope
from trustfabric.domain.ids import HoldId, IncidentId, InstanceId, OwnerId
from trustfabric.domain.storms import (
    Cause,
    Incident,
    Member,
    StormLimits,
    Trip,
    in_common,
    sentence,
)

AFFECTED = 100
"""Affected VMs that an incident names at most."""

_LIVING_SQL: LiteralString = """
SELECT count(*) FROM servers s
  JOIN runtime_vm_instances i ON i.server_id = s.id AND i.terminated_at IS NULL
 WHERE %(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s
"""

_OPEN_SQL: LiteralString = """
INSERT INTO remediation_incidents
       (scope, owner_id, cause, quarantined, living, limits, common, affected,
        counted_since, opened_at, opened_by, updated_at)
VALUES (%(scope)s, %(owner_id)s, %(cause)s, %(quarantined)s, %(living)s, %(limits)s,
        %(common)s, %(affected)s, %(since)s, %(now)s, %(by)s, %(now)s)
ON CONFLICT DO NOTHING
RETURNING id
"""


async def open_incident(
    conn: Connection, trip: Trip, limits: StormLimits, now: datetime, by: str
) -> Incident | None:
    """Open a breaker: its incident, its hold and their event; None where it is open.

    The unique index decides between runtimes; `by` is the one that was first.
    """
    since = now - limits.window
    living = await (
        await conn.execute(_LIVING_SQL, {"owner_id": trip.owner_id})
    ).fetchone()
    assert living is not None
    members = await storms.list_members(conn, trip.owner_id, since)
    await holds.take_turn(conn)
    cursor = await conn.execute(
        _OPEN_SQL,
        {
            "scope": trip.scope,
            "owner_id": trip.owner_id,
            "cause": trip.cause,
            "quarantined": trip.count.quarantined,
            "living": living[0],
            "limits": Jsonb(dict(limits.view())),
            "common": Jsonb(_common(members)),
            "affected": _affected(members),
            "since": since,
            "now": now,
            "by": by,
        },
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    incident = await get_incident(conn, None, IncidentId(row[0]))
    assert incident is not None
    hold = await holds.insert_hold(
        conn,
        {
            "scope": trip.scope,
            "instance_id": None,
            "owner_id": trip.owner_id,
            "reason": f"breaker: incident {incident.id}",
            "by": BREAKER,
            "until": None,
            "needs_admin": True,
            "incident_id": incident.id,
            "now": now,
        },
    )
    told = (
        sentence(incident)
        if trip.owner_id is not None
        else "automatic runs of the whole fleet are held"
    )
    await hold_events.tell(conn, hold, HoldEventKind.BREAKER_OPENED, BREAKER, told, now)
    return incident


def _common(members: Sequence[Member]) -> list[Mapping[str, Any]]:
    return [dict(one.view()) for one in in_common(members)]


def _affected(members: Sequence[Member]) -> list[InstanceId]:
    return [one.instance_id for one in members if one.affected][:AFFECTED]


_GROW_SQL: LiteralString = """
UPDATE remediation_incidents
   SET quarantined = %(quarantined)s, living = greatest(living, %(quarantined)s),
       common = %(common)s, affected = %(affected)s, updated_at = %(now)s
 WHERE id = %(id)s AND released_at IS NULL AND quarantined < %(quarantined)s
"""


async def grow_incident(conn: Connection, incident: Incident, now: datetime) -> bool:
    """Count again what an open incident is about; whether there is more of it."""
    what = incident.owner_id, incident.counted_since
    fallen = await storms.count_fallen(conn, *what)
    if fallen <= incident.quarantined:
        return False
    members = await storms.list_members(conn, *what)
    cursor = await conn.execute(
        _GROW_SQL,
        {
            "id": incident.id,
            "quarantined": fallen,
            "common": Jsonb(_common(members)),
            "affected": _affected(members),
            "now": now,
        },
    )
    return cursor.rowcount > 0


_INCIDENT_SQL: LiteralString = """
SELECT n.id, n.scope, n.owner_id, n.cause, n.quarantined, n.living, n.limits,
       n.common, n.affected, n.counted_since, n.opened_at, n.opened_by, n.updated_at,
       n.released_at, n.released_by, n.release_reason
  FROM remediation_incidents n
 WHERE (%(viewer)s::bigint IS NULL OR n.owner_id IS NULL OR n.owner_id = %(viewer)s)
"""

_GET_SQL: LiteralString = _INCIDENT_SQL + " AND n.id = %(id)s"

_LIST_SQL: LiteralString = (
    _INCIDENT_SQL
    + """
   AND (%(is_open)s::boolean IS NULL OR (n.released_at IS NULL) = %(is_open)s)
   AND n.id < %(before)s
 ORDER BY n.id DESC
 LIMIT %(limit)s
"""
)


async def get_incident(
    conn: Connection, viewer: OwnerId | None, incident_id: IncidentId
) -> Incident | None:
    """Return one incident; None where it isn't, or isn't this viewer's to see."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_GET_SQL, {"viewer": viewer, "id": incident_id})
        row = await cursor.fetchone()
    return None if row is None else _incident(row)


async def list_incidents(
    conn: Connection,
    viewer: OwnerId | None,
    *,
    is_open: bool | None = None,
    before: int = 2**62,
    limit: int = 100,
) -> list[Incident]:
    """Return incidents, newest first: the viewer's own, and the fleet's."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL,
            {"viewer": viewer, "is_open": is_open, "before": before, "limit": limit},
            prepare=False,  # planned for the filters that are given
        )
        return [_incident(row) for row in await cursor.fetchall()]


_RELEASE_SQL: LiteralString = """
WITH released AS (
    UPDATE remediation_incidents
       SET released_at = %(now)s, released_by = %(by)s, release_reason = %(reason)s,
           updated_at = %(now)s
     WHERE released_at IS NULL AND (%(id)s::bigint IS NULL OR id = %(id)s)
       AND (%(owner_id)s::bigint IS NULL OR owner_id = %(owner_id)s)
 RETURNING id
)
UPDATE trust_holds o
   SET released_at = %(now)s, released_by = %(by)s, release_reason = %(reason)s
  FROM released r
 WHERE o.incident_id = r.id AND o.released_at IS NULL
RETURNING o.id, r.id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRelease:
    """Which open incidents a person lets go: one, an owner's, or all."""

    by: str
    reason: str
    incident_id: IncidentId | None = None
    owner_id: OwnerId | None = None


async def release_incidents(
    conn: Connection, order: BreakerRelease, now: datetime
) -> list[Incident]:
    """Release what is open of what is meant; empty where nothing is."""
    await holds.take_turn(conn)
    cursor = await conn.execute(
        _RELEASE_SQL,
        {
            "now": now,
            "by": order.by,
            "reason": order.reason,
            "id": order.incident_id,
            "owner_id": order.owner_id,
        },
    )
    released = []
    for hold_id, incident_id in sorted(await cursor.fetchall()):
        hold = await holds.get_hold(conn, None, HoldId(hold_id))
        incident = await get_incident(conn, None, incident_id)
        assert hold is not None
        assert incident is not None
        kind = HoldEventKind.BREAKER_RELEASED
        await hold_events.tell(conn, hold, kind, order.by, order.reason, now)
        released.append(incident)
    return released


def _incident(row: Mapping[str, Any]) -> Incident:
    return Incident(**dict(_typed(row)))


def _typed(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        match name:
            case "scope":
                yield name, HoldScope(value)
            case "cause":
                yield name, Cause(value)
            case _:
                yield name, value
