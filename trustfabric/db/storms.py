"""Storm control's questions, and its incidents.

Counted are living instances by their newest move into quarantine that a verdict or a
person made: the end of a run that did not help tells nothing new. The partial index
`history_quarantines` makes that a scan of the window, however long the history is.
"""

import math
from datetime import datetime
from typing import LiteralString

from psycopg.rows import dict_row

from trustfabric.db.session import Connection
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.storms import (
    Census,
    Count,
    Hit,
    Member,
    StormLimits,
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


_COUNT_SQL: LiteralString = _FALLEN + "SELECT count(*) FROM fallen"


async def count_fallen(
    conn: Connection, owner_id: OwnerId | None, since: datetime
) -> int:
    """Return how many of an owner's VMs, or of all, have fallen since then."""
    cursor = await conn.execute(_COUNT_SQL, {"owner_id": owner_id, "since": since})
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
