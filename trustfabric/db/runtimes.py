"""Which runtimes there are: each start of one is a new epoch."""

from typing import LiteralString

from trustfabric.db.session import Connection

_JOIN_SQL: LiteralString = """
INSERT INTO runtimes (runtime_id, epoch, host, pid)
VALUES (%(runtime_id)s, 1, %(host)s, %(pid)s)
ON CONFLICT (runtime_id) DO UPDATE
   SET epoch = runtimes.epoch + 1, host = excluded.host, pid = excluded.pid,
       started_at = now(), beat_at = now()
RETURNING epoch
"""


async def join(conn: Connection, runtime_id: str, host: str, pid: int) -> int:
    """Enter this start of the runtime; return its epoch, which fences older ones."""
    cursor = await conn.execute(
        _JOIN_SQL, {"runtime_id": runtime_id, "host": host, "pid": pid}
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


_PING_SQL: LiteralString = "SELECT 1"


async def ping(conn: Connection) -> None:
    """Have the database answer. UnavailableError where it doesn't."""
    await conn.execute(_PING_SQL)
