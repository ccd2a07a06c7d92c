"""Holds and what happened to them: the statements, and the rows as values.

Placing and releasing take the registry's turn: once a hold is answered, nothing is
staged or started past it, in any runtime.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Json

from trustfabric.db.hold_events import tell
from trustfabric.db.session import Connection
from trustfabric.domain.holds import (
    Hold,
    HoldEventKind,
    HoldOrder,
    HoldScope,
    HoldState,
)
from trustfabric.domain.ids import HoldId, IncidentId, InstanceId, OwnerId, RunId
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import HeldError, NotFoundError

_TURN_SQL: LiteralString = """
SELECT pg_advisory_xact_lock(hashtext('runtime_vm_trust_registry'))
"""


async def take_turn(conn: Connection) -> None:
    """Wait until no change of trust is under way; none begins before we commit."""
    await conn.execute(_TURN_SQL)


HOLD_SQL: LiteralString = """
SELECT o.id, o.scope, o.runtime_vm_instance_id AS instance_id, o.owner_id,
       coalesce(o.owner_id, s.owner_id) AS whose, o.reason, o.by, o.until,
       o.incident_id, o.needs_admin, o.created_at, o.released_at, o.released_by,
       o.release_reason
  FROM trust_holds o
  LEFT JOIN runtime_vm_instances i ON i.id = o.runtime_vm_instance_id
  LEFT JOIN servers s ON s.id = i.server_id
"""

_VISIBLE: LiteralString = """
       (%(viewer)s::bigint IS NULL OR o.scope = 'all'
        OR coalesce(o.owner_id, s.owner_id) = %(viewer)s)
"""

_LIST_SQL: LiteralString = (
    HOLD_SQL
    + " WHERE "
    + _VISIBLE
    + """
   AND (%(scope)s::text IS NULL OR o.scope = %(scope)s)
   AND (%(instance_id)s::bigint IS NULL OR o.runtime_vm_instance_id = %(instance_id)s)
   AND CASE %(state)s::text
       WHEN 'released' THEN o.released_at IS NOT NULL
       WHEN 'expired' THEN o.released_at IS NULL AND o.until <= %(now)s
       WHEN 'in-force' THEN o.released_at IS NULL
            AND (o.until IS NULL OR o.until > %(now)s)
       ELSE true END
   AND o.id < %(before)s
 ORDER BY o.id DESC
 LIMIT %(limit)s
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldFilter:
    """What a list of holds is narrowed to; None means any."""

    viewer: OwnerId | None = None
    scope: HoldScope | None = None
    instance_id: InstanceId | None = None
    state: HoldState | None = None


async def list_holds(
    conn: Connection,
    wanted: HoldFilter,
    now: datetime,
    *,
    before: int = 2**62,
    limit: int = 100,
) -> list[Hold]:
    """Return the holds that match, newest first, older than id `before`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL,
            {
                "viewer": wanted.viewer,
                "scope": wanted.scope,
                "instance_id": wanted.instance_id,
                "state": wanted.state,
                "now": now,
                "before": before,
                "limit": limit,
            },
            prepare=False,  # planned for the filters that are given
        )
        return [read_hold(row) for row in await cursor.fetchall()]


_GET_SQL: LiteralString = HOLD_SQL + " WHERE o.id = %(id)s AND " + _VISIBLE


async def get_hold(
    conn: Connection, viewer: OwnerId | None, hold_id: HoldId
) -> Hold | None:
    """Return one hold; None where it isn't, or isn't this viewer's to see."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_GET_SQL, {"id": hold_id, "viewer": viewer})
        row = await cursor.fetchone()
    return None if row is None else read_hold(row)


_COVERING_SQL: LiteralString = (
    HOLD_SQL
    + """
 WHERE o.released_at IS NULL AND (o.until IS NULL OR o.until > %(now)s)
   AND (o.scope = 'all' OR o.owner_id = %(owner_id)s
        OR o.runtime_vm_instance_id = %(instance_id)s)
 ORDER BY o.scope, o.id
 LIMIT 100
"""
)


async def list_covering(
    conn: Connection, owner_id: OwnerId, instance_id: InstanceId, now: datetime
) -> list[Hold]:
    """Return the holds in force over one instance, the breaker's as well."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _COVERING_SQL,
            {"owner_id": owner_id, "instance_id": instance_id, "now": now},
        )
        return [read_hold(row) for row in await cursor.fetchall()]


_TARGET_SQL: LiteralString = """
SELECT s.owner_id FROM runtime_vm_instances i
  JOIN servers s ON s.id = i.server_id
 WHERE i.id = %(instance_id)s AND i.terminated_at IS NULL
"""

_SAME_SQL: LiteralString = (
    HOLD_SQL
    + """
 WHERE o.released_at IS NULL AND o.until > %(now)s
   AND (o.until = %(until)s OR NOT %(ends_as_given)s)
   AND o.scope = %(scope)s AND o.incident_id IS NULL
   AND o.owner_id IS NOT DISTINCT FROM %(owner_id)s
   AND o.runtime_vm_instance_id IS NOT DISTINCT FROM %(instance_id)s
   AND o.by = %(by)s AND o.reason = %(reason)s
 LIMIT 1
"""
)

_INSERT_SQL: LiteralString = """
INSERT INTO trust_holds
       (scope, runtime_vm_instance_id, owner_id, reason, by, until, needs_admin,
        incident_id, created_at)
VALUES (%(scope)s, %(instance_id)s, %(owner_id)s, %(reason)s, %(by)s, %(until)s,
        %(needs_admin)s, %(incident_id)s, %(now)s)
RETURNING id
"""


async def place_hold(
    conn: Connection, order: HoldOrder, viewer: OwnerId | None, now: datetime
) -> tuple[Hold, bool]:
    """Place a checked order; return it, and whether it is new.

    The same order again finds the hold that it made. NotFoundError for what isn't
    there, or isn't the caller's.
    """
    await take_turn(conn)
    facts = {
        "scope": order.scope,
        "instance_id": order.instance_id,
        "owner_id": order.owner_id,
        "reason": order.reason,
        "by": order.by,
        "until": order.until,
        "ends_as_given": order.ends_as_given,
        "needs_admin": order.is_admin,
        "incident_id": None,
        "now": now,
    }
    if order.instance_id is not None:
        cursor = await conn.execute(_TARGET_SQL, facts)
        target = await cursor.fetchone()
        if target is None or viewer not in (None, target[0]):
            raise NotFoundError(f"no instance {order.instance_id}")
    async with conn.cursor(row_factory=dict_row) as found:
        await found.execute(_SAME_SQL, facts)
        row = await found.fetchone()
    if row is not None:
        return read_hold(row), False
    hold = await insert_hold(conn, facts)
    await tell(conn, hold, HoldEventKind.HELD, order.by, order.reason, now)
    return hold, True


async def insert_hold(conn: Connection, facts: Mapping[str, Any]) -> Hold:
    """Insert a row of `trust_holds`; its event is the caller's to tell."""
    row = await (await conn.execute(_INSERT_SQL, facts)).fetchone()
    assert row is not None
    hold = await get_hold(conn, None, HoldId(row[0]))
    assert hold is not None
    return hold


_LOCK_SQL: LiteralString = "SELECT 1 FROM trust_holds WHERE id = %(id)s FOR UPDATE"

_RELEASE_SQL: LiteralString = """
UPDATE trust_holds
   SET released_at = %(now)s, released_by = %(by)s, release_reason = %(reason)s
 WHERE id = %(id)s AND released_at IS NULL
"""


async def lock_hold(conn: Connection, viewer: OwnerId | None, hold_id: HoldId) -> Hold:
    """Return a hold that nobody else changes meanwhile. NotFoundError."""
    await take_turn(conn)
    await conn.execute(_LOCK_SQL, {"id": hold_id})
    hold = await get_hold(conn, viewer, hold_id)
    if hold is None:
        raise NotFoundError(f"no hold {hold_id}")
    return hold


async def release_hold(
    conn: Connection, hold: Hold, by: str, reason: str | None, now: datetime
) -> Hold:
    """Release a locked hold that is in force; one that has ended stays as it is."""
    if hold.state(now) is not HoldState.IN_FORCE:
        return hold
    await conn.execute(
        _RELEASE_SQL, {"id": hold.id, "by": by, "reason": reason, "now": now}
    )
    after = await get_hold(conn, None, hold.id)
    assert after is not None
    await tell(conn, after, HoldEventKind.RELEASED, by, reason or "released", now)
    return after


_EXPIRE_SQL: LiteralString = """
UPDATE trust_holds h
   SET expired_at = %(now)s
  FROM (SELECT id FROM trust_holds
         WHERE released_at IS NULL AND expired_at IS NULL AND until <= %(now)s
         ORDER BY until LIMIT %(limit)s
           FOR UPDATE SKIP LOCKED) mine
 WHERE h.id = mine.id
RETURNING h.id
"""


async def tell_expired(conn: Connection, now: datetime, *, limit: int) -> int:
    """Tell once, of all runtimes, of the holds whose time has passed; how many."""
    cursor = await conn.execute(_EXPIRE_SQL, {"now": now, "limit": limit})
    for (hold_id,) in await cursor.fetchall():
        hold = await get_hold(conn, None, HoldId(hold_id))
        assert hold is not None
        await tell(conn, hold, HoldEventKind.EXPIRED, "actor:holds", "expired", now)
    return cursor.rowcount


_NEXT_SQL: LiteralString = """
SELECT min(until) FROM trust_holds
 WHERE released_at IS NULL AND expired_at IS NULL AND until IS NOT NULL
"""


async def next_expiry(conn: Connection) -> datetime | None:
    """Return when the next hold ends of itself."""
    row = await (await conn.execute(_NEXT_SQL)).fetchone()
    return None if row is None else row[0]


_HELD_SQL: LiteralString = """
SELECT w.instance_id, held.scope, held.id
  FROM json_to_recordset(%(asked)s::json)
       AS w(instance_id bigint, owner_id bigint, run_id bigint, now timestamptz)
 CROSS JOIN LATERAL (
       SELECT o.scope, o.id FROM trust_holds o
        WHERE o.released_at IS NULL AND (o.until IS NULL OR o.until > w.now)
          AND (o.scope = 'all' OR o.owner_id = w.owner_id
               OR o.runtime_vm_instance_id = w.instance_id)
          AND (o.incident_id IS NULL OR NOT EXISTS (
               SELECT 1 FROM runtime_vm_remediation_runs r
                WHERE r.id = w.run_id AND (r.requested_by <> 'actor:dispatcher'
                      OR r.approval_decided_at >= o.created_at)))
        ORDER BY o.scope, o.id
        LIMIT 1) held
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """Whether an instance is held from what is about to be done."""

    before: Snapshot
    now: datetime
    run_id: RunId | None = None
    """The run that would start; None: one that nobody asked for would be staged. The
    breaker lets go on what a person requested, or approved after it opened."""


async def find_held(
    conn: Connection, batch: Iterable[Asked]
) -> dict[InstanceId, HeldError]:
    """Return why instances are held; in the registry's turn, none is held after it."""
    asked = [
        {
            "instance_id": one.before.instance_id,
            "owner_id": one.before.owner_id,
            "run_id": one.run_id,
            "now": one.now,
        }
        for one in batch
    ]
    cursor = await conn.execute(_HELD_SQL, {"asked": Json(asked)})
    return {
        InstanceId(instance_id): HeldError(
            f"instance {instance_id} is held", scope=scope, hold_id=hold_id
        )
        for instance_id, scope, hold_id in await cursor.fetchall()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseIfHeld:
    """Companion: HeldError where the instance is held from having a run staged.

    In the registry's turn, so nothing slips past a hold that was answered.
    """

    now: datetime
    run_id: RunId | None = None

    async def write(self, conn: Connection, before: Snapshot) -> int | None:
        held = await find_held(conn, [Asked(before, self.now, self.run_id)])
        if held:
            raise held[before.instance_id]
        return None


def read_hold(row: Mapping[str, Any]) -> Hold:
    incident = row["incident_id"]
    return Hold(
        id=HoldId(row["id"]),
        scope=HoldScope(row["scope"]),
        instance_id=row["instance_id"],
        owner_id=row["owner_id"],
        whose=row["whose"],
        reason=row["reason"],
        by=row["by"],
        until=row["until"],
        incident_id=None if incident is None else IncidentId(incident),
        needs_admin=row["needs_admin"],
        created_at=row["created_at"],
        released_at=row["released_at"],
        released_by=row["released_by"],
        release_reason=row["release_reason"],
    )
