"""A database that was restored from a dump: its positions are another cluster's.

The numbers of transactions are a cluster's own (postgres.md §2f). Rows that bear one
which is still to come here would be held back as not yet readable, and the streams
would stand still behind positions that nobody reaches.
"""

from typing import Final, LiteralString

from trustfabric.db.session import Connection

_STREAMED: Final[tuple[LiteralString, ...]] = (
    "runtime_vm_trust_history",
    "runtime_vm_remediation_events",
    "trust_hold_events",
)

_FUTURE: LiteralString = "xid >= pg_snapshot_xmax(pg_current_snapshot())"
_PAST: LiteralString = """
    (pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1)::text::xid8
"""


async def take_over(conn: Connection) -> bool:
    """Give what another cluster numbered a number that has passed here.

    Return whether there was any. Its order stays: that of the ids. Whoever read the
    streams before is told `reset`, as their positions are unknown here.
    """
    if not await _is_restored(conn):
        return False
    async with conn.transaction():
        for table in _STREAMED:
            # What is written once stays as it is, but for this.
            await conn.execute("ALTER TABLE " + table + " DISABLE TRIGGER USER")
            await conn.execute(
                "UPDATE " + table + " SET xid = " + _PAST + " WHERE " + _FUTURE
            )
            await conn.execute("ALTER TABLE " + table + " ENABLE TRIGGER USER")
        await conn.execute("DELETE FROM listener_positions WHERE " + _FUTURE)
        await conn.execute(
            "UPDATE retention_horizons SET xid = " + _PAST + " WHERE " + _FUTURE
        )
    return True


async def _is_restored(conn: Connection) -> bool:
    for table in (*_STREAMED, "listener_positions", "retention_horizons"):
        found = await conn.execute(
            "SELECT 1 FROM " + table + " WHERE " + _FUTURE + " LIMIT 1"
        )
        if await found.fetchone() is not None:
            return True
    return False
