"""The log and the status events of runs: append-only, numbered 1, 2, 3 … per run.

Numbers have no gaps because `append` is called under the locks of the runs' rows
(`runs.lock_runs`), and what it writes is the stream's data as it will ever be.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, LiteralString

import orjson
from psycopg.rows import dict_row

from trustfabric.db.accelerators import list_accelerators
from trustfabric.db.positions import AFTER, rows_after
from trustfabric.db.session import Connection
from trustfabric.db.trust import storable
from trustfabric.domain.events import Position, RemediationEvent
from trustfabric.domain.executors import LogStream
from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId
from trustfabric.domain.run_events import LogLine, RunEvent, context
from trustfabric.domain.runs import Run

_LAST_SQL: LiteralString = """
SELECT w.id, coalesce((SELECT max(e.seq) FROM runtime_vm_remediation_events e
                        WHERE e.run_id = w.id), 0)
  FROM unnest(%(ids)s::bigint[]) AS w (id)
"""

_APPEND_SQL: LiteralString = """
INSERT INTO runtime_vm_remediation_events
       (run_id, seq, kind, stream, message, payload, at)
SELECT t.run_id, t.seq, t.kind, t.stream, t.message, t.payload, t.at
  FROM json_to_recordset(%(batch)s::json)
       AS t(run_id bigint, seq bigint, kind text, stream text, message text,
            payload jsonb, at timestamptz)
 ORDER BY t.run_id, t.seq
"""


async def append(
    conn: Connection, batch: Iterable[tuple[Run, Sequence[RunEvent]]]
) -> dict[RunId, int]:
    """Add events to the logs of runs; return the last number of each of them.

    The caller holds the locks on the runs' rows. InvalidError where PostgreSQL can't
    hold an event.
    """
    told = list(batch)
    if not told:
        return {}
    last = await _last_numbers(conn, {run.id for run, _ in told})
    times = [one.at for _, events in told for one in events]
    if not times:
        return last
    accelerators = await list_accelerators(
        conn, {run.instance_id for run, _ in told}, max(times)
    )
    rows: list[Mapping[str, Any]] = []
    for run, events in told:
        about = context(run, accelerators.get(run.instance_id, ()))
        for seq, one in enumerate(events, last[run.id] + 1):
            rows.append(_row(run, seq, one, about))
        last[run.id] += len(events)
    with storable():
        text = orjson.dumps(rows).decode()
        await conn.execute(_APPEND_SQL, {"batch": text})
    return last


def _row(
    run: Run, seq: int, one: RunEvent, about: Mapping[str, Any]
) -> Mapping[str, Any]:
    return {
        "run_id": run.id,
        "seq": seq,
        "kind": one.kind,
        "stream": one.stream,
        "message": one.message,
        "payload": {**about, "event": {**one.event, "seq": seq}},
        "at": one.at,
    }


async def _last_numbers(conn: Connection, ids: Iterable[RunId]) -> dict[RunId, int]:
    cursor = await conn.execute(_LAST_SQL, {"ids": list(ids)})
    return {RunId(run_id): last for run_id, last in await cursor.fetchall()}


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


_WHOLE_SQL: LiteralString = """
SELECT e.run_id, e.seq, e.stream, e.message, e.at
  FROM unnest(%(ids)s::bigint[]) AS w (id)
  JOIN runtime_vm_remediation_events e ON e.run_id = w.id AND e.kind = 'log'
 ORDER BY e.run_id, e.seq
"""


async def read_logs(
    conn: Connection, ids: Iterable[RunId]
) -> dict[RunId, list[LogLine]]:
    """Return all log lines of each run, in order."""
    found: dict[RunId, list[LogLine]] = {run_id: [] for run_id in ids}
    cursor = await conn.execute(_WHOLE_SQL, {"ids": list(found)})
    for run_id, seq, stream, message, at in await cursor.fetchall():
        line = LogLine(seq=seq, stream=LogStream(stream), message=message, at=at)
        found[RunId(run_id)].append(line)
    return found


_COUNT_SQL: LiteralString = """
SELECT w.id, (SELECT count(*) FROM runtime_vm_remediation_events e
               WHERE e.run_id = w.id AND e.kind = 'log')
  FROM unnest(%(ids)s::bigint[]) AS w (id)
"""


async def count_log(conn: Connection, ids: Collection[RunId]) -> dict[RunId, int]:
    """Return how many log lines each run has."""
    if not ids:
        return {}
    cursor = await conn.execute(_COUNT_SQL, {"ids": list(ids)})
    return {RunId(run_id): count for run_id, count in await cursor.fetchall()}


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
