"""Storm control's questions, and its incidents.

Counted are living instances by their newest move into quarantine that a verdict or a
person made: the end of a run that did not help tells nothing new. The partial index
`history_quarantines` makes that a scan of the window, however long the history is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db import holds
from trustfabric.db.session import Connection
from trustfabric.domain.holds import BREAKER, HoldEventKind, HoldScope
from trustfabric.domain.ids import HoldId, IncidentId, InstanceId, OwnerId
from trustfabric.domain.storms import (
    Cause,
    Census,
    Count,
    Hit,
    Incident,
    Member,
    StormLimits,
    Trip,
    in_common,
    sentence,
)

SAMPLE = 2000
"""Affected VMs, and others, that an incident's traits are counted over at most."""
AFFECTED = 100
"""Affected VMs that an incident names at most."""

_FALLEN: LiteralString = """
WITH released AS (
    SELECT owner_id, max(released_at) AS at FROM remediation_incidents
     WHERE released_at > %(since)s GROUP BY 1
), moved AS (
    SELECT h.runtime_vm_instance_id AS id, max(h.triggered_at) AS at
      FROM runtime_vm_trust_history h
     WHERE h.triggered_at > coalesce(
           (SELECT at FROM released WHERE owner_id IS NULL), %(since)s)
       AND h.current_lifecycle_state = 'quarantined'
       AND h.previous_lifecycle_state IS DISTINCT FROM 'quarantined'
       AND NOT coalesce(h.metadata ? 'run_id', false)
       AND h.remediation_state <> 'remediation:unverified'
     GROUP BY 1
), fallen AS MATERIALIZED (
    SELECT i.id, s.owner_id
      FROM moved m
      JOIN runtime_vm_instances i ON i.id = m.id AND i.terminated_at IS NULL
      JOIN servers s ON s.id = i.server_id
      LEFT JOIN released l ON l.owner_id = s.owner_id
     WHERE (l.at IS NULL OR m.at > l.at)
       AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
)
"""
"""What a person has let go, with the owner's breaker or the fleet's, counts no more."""

_CENSUS_SQL: LiteralString = (
    _FALLEN
    + """
SELECT t.owner_id, t.quarantined,
       EXISTS (SELECT 1 FROM remediation_incidents n
                WHERE n.owner_id = t.owner_id AND n.released_at IS NULL) AS is_open,
       CASE WHEN t.quarantined < %(minimum)s THEN 0 ELSE (
            SELECT count(*) FROM (
                SELECT 1 FROM servers s
                  JOIN runtime_vm_instances i
                    ON i.server_id = s.id AND i.terminated_at IS NULL
                 WHERE s.owner_id = t.owner_id
                 LIMIT ceil(t.quarantined * 100 / %(percent)s::numeric)::bigint + 1) l)
       END AS living
  FROM (SELECT owner_id, count(*) AS quarantined FROM fallen GROUP BY 1) t
"""
)

_FLEET_SQL: LiteralString = """
SELECT EXISTS (SELECT 1 FROM remediation_incidents
                WHERE owner_id IS NULL AND released_at IS NULL),
       (SELECT count(*) FROM (
            SELECT 1 FROM runtime_vm_instances WHERE terminated_at IS NULL
             LIMIT %(enough)s) l)
"""


_NEWS_SQL: LiteralString = """
SELECT pg_snapshot_xmin(pg_current_snapshot())::text,
       EXISTS (SELECT 1 FROM runtime_vm_trust_history h
                WHERE h.xid >= %(horizon)s::text::xid8
                  AND h.current_lifecycle_state = 'quarantined'
                  AND h.previous_lifecycle_state IS DISTINCT FROM 'quarantined')
"""


async def read_news(conn: Connection, horizon: str) -> tuple[str, bool]:
    """Return the present horizon, and whether anything fell since an earlier one.

    What is committed after a look has a transaction at or beyond its horizon, so
    nothing is missed; most looks end here, at the cost of what was written since.
    """
    row = await (await conn.execute(_NEWS_SQL, {"horizon": horizon})).fetchone()
    assert row is not None
    return row[0], row[1]


async def read_census(conn: Connection, now: datetime, limits: StormLimits) -> Census:
    """Read what the breakers are judged by; call it in one consistent view."""
    facts = {
        "owner_id": None,
        "since": now - limits.window,
        "minimum": limits.minimum,
        "percent": limits.percent,
    }
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_CENSUS_SQL, facts)
        rows = await cursor.fetchall()
    total = sum(row["quarantined"] for row in rows)
    enough = math.ceil(total * 100 / limits.percent) + 1
    fleet = await (await conn.execute(_FLEET_SQL, {"enough": enough})).fetchone()
    assert fleet is not None
    return Census(
        hits=[
            Hit(
                owner_id=OwnerId(row["owner_id"]),
                count=Count(row["quarantined"], row["living"]),
            )
            for row in rows
        ],
        living=fleet[1],
        open_owners=frozenset(row["owner_id"] for row in rows if row["is_open"]),
        fleet_is_open=fleet[0],
    )


_MEMBERS_SQL: LiteralString = (
    _FALLEN
    + """
, member AS (
   (SELECT f.id, true AS affected FROM fallen f ORDER BY f.id LIMIT %(sample)s)
    UNION ALL
   (SELECT i.id, false FROM servers s
      JOIN runtime_vm_instances i ON i.server_id = s.id AND i.terminated_at IS NULL
     WHERE (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
       AND NOT EXISTS (SELECT 1 FROM fallen f WHERE f.id = i.id)
     LIMIT %(sample)s)
)
SELECT m.id, m.affected, i.image, i.hypervisor_endpoint AS host,
       i.runtime_owner AS runtime, i.isolation_tier AS tier, i.driver,
       s.owner_id::text AS owner,
       (p.policy ->> 'id') || coalesce('@' || (p.policy ->> 'version'), '') AS policy,
       r.provenance ->> 'code' AS code,
       coalesce(c.claims ->> 'measurement', c.claims ->> 'mrtd',
                c.claims -> 'hardware' ->> 'measurement',
                c.claims -> 'hardware' ->> 'mrtd',
                'pcrs:' || left(md5((c.claims -> 'pcrs')::text), 16)) AS measurement,
       coalesce(c.claims ->> 'firmware_version', c.claims ->> 'reported_tcb',
                c.claims -> 'hardware' ->> 'reported_tcb') AS firmware
  FROM member m
  JOIN runtime_vm_instances i ON i.id = m.id
  JOIN servers s ON s.id = i.server_id
  LEFT JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = m.id
 CROSS JOIN LATERAL (SELECT r.provenance -> 'policy' AS policy) p
 CROSS JOIN LATERAL (SELECT r.provenance -> 'claims' AS claims) c
 ORDER BY m.id
"""
)

_TRAITS = (
    "image",
    "host",
    "runtime",
    "tier",
    "driver",
    "policy",
    "code",
    "measurement",
    "firmware",
)


async def list_members(
    conn: Connection, owner_id: OwnerId | None, since: datetime
) -> list[Member]:
    """Return affected VMs and others, with what they are; bounded samples of both."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _MEMBERS_SQL, {"owner_id": owner_id, "since": since, "sample": SAMPLE}
        )
        rows = await cursor.fetchall()
    told = _TRAITS if owner_id is not None else (*_TRAITS, "owner")
    return [
        Member(
            InstanceId(row["id"]),
            row["affected"],
            {name: row[name][:200] for name in told if row[name]},
        )
        for row in rows
    ]


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
    await holds.take_turn(conn)
    since = now - limits.window
    living = await (
        await conn.execute(_LIVING_SQL, {"owner_id": trip.owner_id})
    ).fetchone()
    assert living is not None
    members = await list_members(conn, trip.owner_id, since)
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
    told = sentence(incident) if trip.owner_id is not None else "the fleet's is open"
    await holds.tell(conn, hold, HoldEventKind.BREAKER_OPENED, BREAKER, told, now)
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

_COUNT_SQL: LiteralString = _FALLEN + "SELECT count(*) FROM fallen"


async def grow_incident(conn: Connection, incident: Incident, now: datetime) -> bool:
    """Count again what an open incident is about; whether there is more of it."""
    facts = {"owner_id": incident.owner_id, "since": incident.counted_since}
    row = await (await conn.execute(_COUNT_SQL, facts)).fetchone()
    assert row is not None
    if row[0] <= incident.quarantined:
        return False
    members = await list_members(conn, incident.owner_id, incident.counted_since)
    cursor = await conn.execute(
        _GROW_SQL,
        {
            "id": incident.id,
            "quarantined": row[0],
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
        await holds.tell(conn, hold, kind, order.by, order.reason, now)
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
