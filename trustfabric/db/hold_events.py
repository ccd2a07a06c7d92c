"""What happened to holds: written once, told in order, kept.

A row's insert notifies `CHANNEL`, which the holds' stream and whoever waits for the
end of a hold are woken by.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.positions import AFTER, rows_after
from trustfabric.db.session import Connection
from trustfabric.domain.events import HeldEvent, Position
from trustfabric.domain.holds import Hold, HoldEvent, HoldEventKind
from trustfabric.domain.ids import HoldId
from trustfabric.domain.times import rfc3339

CHANNEL = "trust_hold"

_TELL_SQL: LiteralString = """
INSERT INTO trust_hold_events
       (hold_id, incident_id, kind, owner_id, actor, payload, at)
VALUES (%(hold_id)s, %(incident_id)s, %(kind)s, %(owner_id)s, %(actor)s,
        %(payload)s, %(now)s)
"""


async def tell(
    conn: Connection,
    hold: Hold,
    kind: HoldEventKind,
    actor: str,
    message: str,
    now: datetime,
) -> None:
    """Write down what happened to a hold; the trigger notifies."""
    payload = {
        "scope": hold.scope,
        "runtime_vm_instance_id": hold.instance_id,
        "owner_id": hold.owner_id,
        "reason": hold.reason,
        "by": hold.by,
        "until": None if hold.until is None else rfc3339(hold.until),
        "message": message,
    }
    await conn.execute(
        _TELL_SQL,
        {
            "hold_id": hold.id,
            "incident_id": hold.incident_id,
            "kind": kind,
            "owner_id": hold.whose,
            "actor": actor,
            "payload": Jsonb(payload),
            "now": now,
        },
    )


_AFTER_SQL: LiteralString = (
    """
SELECT e.id, e.xid::text AS xid, e.hold_id, e.incident_id, e.kind, e.owner_id,
       e.actor, e.payload, e.at
  FROM trust_hold_events e
"""
    + AFTER
)


async def events_after(
    conn: Connection, position: Position, *, upto: Position | None = None, limit: int
) -> list[HeldEvent]:
    """Return what was committed after `position`, in order, none ever skipped."""
    return [
        HeldEvent(position=Position(int(row["xid"]), row["id"]), event=_event(row))
        for row in await rows_after(conn, _AFTER_SQL, position, upto=upto, limit=limit)
    ]


_HISTORY_SQL: LiteralString = """
SELECT e.hold_id, e.incident_id, e.kind, e.owner_id, e.actor, e.payload, e.at
  FROM trust_hold_events e WHERE e.hold_id = %(id)s ORDER BY e.id LIMIT 100
"""


async def list_events(conn: Connection, hold_id: HoldId) -> list[HoldEvent]:
    """Return what happened to one hold, in order."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_HISTORY_SQL, {"id": hold_id})
        return [_event(row) for row in await cursor.fetchall()]


def _event(row: Mapping[str, Any]) -> HoldEvent:
    return HoldEvent(
        hold_id=row["hold_id"],
        incident_id=row["incident_id"],
        kind=HoldEventKind(row["kind"]),
        owner_id=row["owner_id"],
        actor=row["actor"],
        payload=row["payload"],
        at=row["at"],
    )
