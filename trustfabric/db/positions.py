"""Positions in the streams' tables: reading on from one, and remembering it.

Rows are read in the order of (xid, id) and only below the snapshot's horizon: a row
that commits late is then held back, never skipped.
"""

from typing import Any, LiteralString

from psycopg.rows import dict_row

from trustfabric.db.session import Connection
from trustfabric.domain.events import Position

AFTER: LiteralString = """
 WHERE (e.xid, e.id) > (%(xid)s::text::xid8, %(id)s)
   AND (e.xid, e.id) <= (%(upto_xid)s::text::xid8, %(upto_id)s)
   AND e.xid < pg_snapshot_xmin(pg_current_snapshot())
 ORDER BY e.xid, e.id
 LIMIT %(limit)s
"""
"""Of the table read as `e`. A transaction still open could yet commit an older row than
those that can be seen (postgres.md §2f)."""


async def rows_after(
    conn: Connection,
    sql: LiteralString,
    position: Position,
    *,
    upto: Position | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Return the rows of a statement that ends in `AFTER`."""
    last = upto or Position.LAST
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            sql,
            {
                "xid": str(position.xid),
                "id": position.id,
                "upto_xid": str(last.xid),
                "upto_id": last.id,
                "limit": limit,
            },
        )
        return await cursor.fetchall()


_READ_SQL: LiteralString = """
    SELECT xid::text, id FROM listener_positions WHERE name = %(name)s
"""


async def read_position(conn: Connection, name: str) -> Position | None:
    """Return up to where the reader called `name` has read; None: it is new."""
    row = await (await conn.execute(_READ_SQL, {"name": name})).fetchone()
    return None if row is None else Position(int(row[0]), row[1])


_ADVANCE_SQL: LiteralString = """
    INSERT INTO listener_positions AS kept (name, xid, id)
    VALUES (%(name)s, %(xid)s::xid8, %(id)s)
        ON CONFLICT (name) DO UPDATE
       SET xid = excluded.xid, id = excluded.id, updated_at = now()
     WHERE (kept.xid, kept.id) < (excluded.xid, excluded.id)
"""


async def advance_position(conn: Connection, name: str, position: Position) -> None:
    """Remember that `name` has read up to `position`; never goes back."""
    await conn.execute(
        _ADVANCE_SQL, {"name": name, "xid": str(position.xid), "id": position.id}
    )


_HORIZON_SQL: LiteralString = """
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text
"""


async def read_horizon(conn: Connection) -> Position:
    """Return the position from which everything not yet readable follows.

    Where a reader starts that wants only what is new: it misses nothing that is
    being written now.
    """
    row = await (await conn.execute(_HORIZON_SQL)).fetchone()
    assert row is not None
    return Position(int(row[0]), 0)
