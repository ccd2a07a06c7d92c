"""Artifacts of runs: what an execution left behind.

The `execution-log` is the run's own log rows, rendered: they are append-only and in
the database, so that every runtime can serve it and nothing is kept twice. Files are
large objects of the database, for the same reason. What is recorded by its address
alone is kept elsewhere.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.run_events import list_log, read_logs
from trustfabric.db.session import Connection
from trustfabric.domain.executors import ProducedFile
from trustfabric.domain.ids import OwnerId, RunId
from trustfabric.domain.run_events import LogDigest, render_log
from trustfabric.domain.runs import Run
from trustfabric.errors import ConflictError, NotFoundError

EXECUTION_LOG = "execution-log"
LARGE_OBJECT = "large-object:"
RESERVED_URIS = ("run-log:", LARGE_OBJECT)
"""Addresses that only we give; what is at them, we serve."""
RUN_LIMIT = 100
RUN_BYTES = 32 << 20
"""Of one run, that many artifacts of that size together; the log is beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewArtifact:
    """An artifact before it has an id."""

    run_id: RunId
    artifact_type: str
    uri: str
    media_type: str
    sha256: str
    size: int
    recorded_by: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)
    """What is to be kept; its address is given by the database then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact(NewArtifact):
    """One row of the artifacts."""

    id: int
    created_at: datetime


async def digest_logs(
    conn: Connection, ids: Collection[RunId]
) -> dict[RunId, LogDigest]:
    """Read runs' logs as they stand."""
    if not ids:
        return {}
    return {
        run_id: LogDigest().after(lines, lines[-1].seq if lines else 0)
        for run_id, lines in (await read_logs(conn, ids)).items()
    }


def execution_log(run_id: RunId, log: LogDigest, *, recorded_by: str) -> NewArtifact:
    """Describe a run's log, ready to be recorded with the run's end."""
    return NewArtifact(
        run_id=run_id,
        artifact_type=EXECUTION_LOG,
        uri=f"run-log:{run_id}",
        media_type="text/plain; charset=utf-8",
        sha256=log.sha256,
        size=log.size,
        recorded_by=recorded_by,
        metadata={"lines": log.lines, "through_seq": log.through_seq},
    )


_INSERT_SQL: LiteralString = """
INSERT INTO runtime_vm_remediation_artifacts
       (run_id, artifact_type, uri, media_type, sha256, size, metadata, recorded_by)
SELECT t.run_id, t.artifact_type,
       CASE WHEN t.content IS NULL THEN t.uri
            ELSE 'large-object:' || lo_from_bytea(0, t.content) END,
       t.media_type, t.sha256, t.size, t.metadata, t.recorded_by
  FROM unnest(%(run_id)s::bigint[], %(artifact_type)s::text[], %(uri)s::text[],
              %(media_type)s::text[], %(sha256)s::text[], %(size)s::bigint[],
              %(metadata)s::jsonb[], %(recorded_by)s::text[], %(content)s::bytea[])
       WITH ORDINALITY AS t(run_id, artifact_type, uri, media_type, sha256, size,
                            metadata, recorded_by, content, n)
 ORDER BY t.n
RETURNING id
"""


async def insert_artifacts(
    conn: Connection, artifacts: Sequence[NewArtifact]
) -> list[int]:
    """Record artifacts; return their ids."""
    if not artifacts:
        return []
    cursor = await conn.execute(
        _INSERT_SQL,
        {
            "run_id": [one.run_id for one in artifacts],
            "artifact_type": [one.artifact_type for one in artifacts],
            "uri": [one.uri for one in artifacts],
            "media_type": [one.media_type for one in artifacts],
            "sha256": [one.sha256 for one in artifacts],
            "size": [one.size for one in artifacts],
            "metadata": [Jsonb(dict(one.metadata)) for one in artifacts],
            "recorded_by": [one.recorded_by for one in artifacts],
            "content": [one.content for one in artifacts],
        },
    )
    return [row[0] for row in await cursor.fetchall()]


_ROOM_SQL: LiteralString = """
SELECT count(*),
       coalesce(sum(size) FILTER (WHERE uri LIKE 'large-object:%%'), 0)
  FROM runtime_vm_remediation_artifacts
 WHERE run_id = %(run_id)s AND artifact_type <> 'execution-log'
"""


async def add_artifact(conn: Connection, artifact: NewArtifact) -> int:
    """Record one from outside; ConflictError where the run has enough of them.

    The caller holds the lock on the run's row.
    """
    cursor = await conn.execute(_ROOM_SQL, {"run_id": artifact.run_id})
    row = await cursor.fetchone()
    assert row is not None
    kept = 0 if artifact.content is None else artifact.size
    if row[0] >= RUN_LIMIT or row[1] + kept > RUN_BYTES:
        raise ConflictError(
            f"run {artifact.run_id} has artifacts enough: at most {RUN_LIMIT}, "
            f"of {RUN_BYTES} bytes together"
        )
    (made,) = await insert_artifacts(conn, [artifact])
    return made


_KEPT_SQL: LiteralString = """
SELECT EXISTS (
    SELECT 1 FROM runtime_vm_remediation_artifacts
     WHERE run_id = %(run_id)s AND artifact_type = %(artifact_type)s
       AND sha256 = %(sha256)s AND metadata = %(metadata)s)
"""


async def keep_files(conn: Connection, run: Run, files: Sequence[ProducedFile]) -> None:
    """Keep the files that an attempt left; those that are kept already stay.

    The caller holds the lock on the run's row.
    """
    for file in files:
        artifact = NewArtifact(
            run_id=run.id,
            artifact_type=file.artifact_type,
            uri=LARGE_OBJECT,
            media_type=file.media_type,
            sha256=hashlib.sha256(file.content).hexdigest(),
            size=len(file.content),
            recorded_by=f"run:{run.id}",
            metadata={"name": file.name, "attempt": run.attempt},
            content=file.content,
        )
        cursor = await conn.execute(
            _KEPT_SQL,
            {
                "run_id": run.id,
                "artifact_type": file.artifact_type,
                "sha256": artifact.sha256,
                "metadata": Jsonb(dict(artifact.metadata)),
            },
        )
        if (await cursor.fetchone()) != (True,):
            await insert_artifacts(conn, [artifact])


_SELECT_SQL: LiteralString = """
SELECT a.id, a.run_id, a.artifact_type, a.uri, a.media_type, a.sha256, a.size,
       a.metadata, a.recorded_by, a.created_at
  FROM runtime_vm_remediation_artifacts a
  JOIN runtime_vm_remediation_runs r ON r.id = a.run_id
  JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
 WHERE a.run_id = %(run_id)s
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
"""

_LIST_SQL: LiteralString = (
    _SELECT_SQL + " AND a.id > %(after)s ORDER BY a.id LIMIT %(limit)s"
)


async def list_artifacts(
    conn: Connection,
    owner_id: OwnerId | None,
    run_id: RunId,
    *,
    after: int = 0,
    limit: int = 100,
) -> list[Artifact]:
    """Return a run's artifacts by id, from beyond `after`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LIST_SQL,
            {"run_id": run_id, "owner_id": owner_id, "after": after, "limit": limit},
        )
        return [Artifact(**row) for row in await cursor.fetchall()]


_GET_SQL: LiteralString = _SELECT_SQL + " AND a.id = %(id)s"


async def get_artifact(
    conn: Connection, owner_id: OwnerId | None, run_id: RunId, artifact_id: int
) -> Artifact | None:
    """Return one artifact of a run; None where it isn't, or isn't this owner's."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _GET_SQL, {"run_id": run_id, "owner_id": owner_id, "id": artifact_id}
        )
        row = await cursor.fetchone()
    return None if row is None else Artifact(**row)


_CONTENT_SQL: LiteralString = "SELECT lo_get(%(oid)s::oid)"


async def read_artifact(conn: Connection, artifact: Artifact) -> bytes:
    """Return an artifact's content, as it was when its digest was taken."""
    if artifact.artifact_type == EXECUTION_LOG:
        through = int(artifact.metadata["through_seq"])
        return render_log(
            await list_log(conn, None, artifact.run_id, through=through, limit=None)
        )
    if not artifact.uri.startswith(LARGE_OBJECT):
        raise NotFoundError(f"artifact {artifact.id}: its content is not kept here")
    oid = int(artifact.uri.removeprefix(LARGE_OBJECT))
    row = await (await conn.execute(_CONTENT_SQL, {"oid": oid})).fetchone()
    assert row is not None
    return bytes(row[0])
