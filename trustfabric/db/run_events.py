"""The log and the status events of runs: append-only, numbered 1, 2, 3 … per run.

Numbers have no gaps because `append` is called under the run's row lock
(`runs.lock_run`), and what it writes is the stream's data as it will ever be.
"""

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

import orjson
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.accelerators import list_accelerators
from trustfabric.db.positions import AFTER, rows_after
from trustfabric.db.session import Connection
from trustfabric.domain.events import Position, RemediationEvent
from trustfabric.domain.executors import LogStream
from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId
from trustfabric.domain.run_events import LogLine, RunEvent, context
from trustfabric.domain.runs import Run

_APPEND_SQL: LiteralString = """
INSERT INTO runtime_vm_remediation_events
       (run_id, seq, kind, stream, message, payload, at)
SELECT %(run_id)s, last.seq + t.n, t.kind, t.stream, t.message,
       %(context)s::jsonb || jsonb_build_object(
           'event', t.event || jsonb_build_object('seq', last.seq + t.n)),
       t.at
  FROM (SELECT coalesce(max(seq), 0) AS seq
          FROM runtime_vm_remediation_events WHERE run_id = %(run_id)s) last,
       unnest(%(kind)s::text[], %(stream)s::text[], %(message)s::text[],
              %(event)s::jsonb[], %(at)s::timestamptz[])
       WITH ORDINALITY AS t(kind, stream, message, event, at, n)
 ORDER BY t.n
"""


async def append(conn: Connection, run: Run, events: Sequence[RunEvent]) -> None:
    """Add events to a run's log; the caller holds the lock on the run's row."""
    if not events:
        return
    accelerators = await list_accelerators(conn, run.instance_id)
    await conn.execute(
        _APPEND_SQL,
        {
            "run_id": run.id,
            "context": Jsonb(context(run, accelerators)),
            "kind": [event.kind for event in events],
            "stream": [event.stream for event in events],
            "message": [event.message for event in events],
            "event": [orjson.dumps(event.event).decode() for event in events],
            "at": [event.at for event in events],
        },
    )


_LOG_SQL: LiteralString = """
SELECT e.seq, e.stream, e.message, e.at
  FROM runtime_vm_remediation_events e
  JOIN runtime_vm_remediation_runs r ON r.id = e.run_id
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
 WHERE e.run_id = %(run_id)s AND e.kind = 'log' AND e.seq > %(after)s
   AND e.seq <= %(through)s
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
 ORDER BY e.seq
 LIMIT %(limit)s
"""

LAST_SEQ = 2**62


async def list_log(
    conn: Connection,
    owner_id: OwnerId | None,
    run_id: RunId,
    *,
    after: int = 0,
    through: int = LAST_SEQ,
    limit: int | None = 1000,
) -> list[LogLine]:
    """Return a run's log lines in order, from beyond `after` up to `through`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LOG_SQL,
            {
                "run_id": run_id,
                "owner_id": owner_id,
                "after": after,
                "through": through,
                "limit": limit,
            },
        )
        return [
            LogLine(
                seq=row["seq"],
                stream=LogStream(row["stream"]),
                message=row["message"],
                at=row["at"],
            )
            for row in await cursor.fetchall()
        ]


_COUNT_SQL: LiteralString = """
SELECT count(*) FROM runtime_vm_remediation_events
 WHERE run_id = %(run_id)s AND kind = 'log'
"""


async def count_log(conn: Connection, run_id: RunId) -> int:
    """Return how many log lines a run has."""
    cursor = await conn.execute(_COUNT_SQL, {"run_id": run_id})
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


_EVENTS_SQL: LiteralString = (
    """
SELECT e.id, e.xid::text AS xid, e.run_id, r.runtime_vm_instance_id AS instance_id,
       i.server_id, s.owner_id, e.seq, e.kind, e.stream, e.message, e.payload, e.at
  FROM runtime_vm_remediation_events e
  JOIN runtime_vm_remediation_runs r ON r.id = e.run_id
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
"""
    + AFTER
)


async def events_after(
    conn: Connection, position: Position, *, upto: Position | None = None, limit: int
) -> list[RemediationEvent]:
    """Return what was committed after `position`, in order, none ever skipped."""
    rows = await rows_after(conn, _EVENTS_SQL, position, upto=upto, limit=limit)
    return [_event(row) for row in rows]


def _event(row: Mapping[str, Any]) -> RemediationEvent:
    return RemediationEvent(
        position=Position(int(row["xid"]), row["id"]),
        run_id=RunId(row["run_id"]),
        instance_id=InstanceId(row["instance_id"]),
        server_id=ServerId(row["server_id"]),
        owner_id=OwnerId(row["owner_id"]),
        seq=row["seq"],
        kind=row["kind"],
        stream=row["stream"],
        message=row["message"],
        payload=row["payload"],
        at=row["at"],
    )
