"""A database that was dumped in one cluster and restored in another."""

import pytest

from tests.fix_fabric import ASK_S, Fabric, a_fabric, count
from trustfabric.actors.streams import Follow, Stream, Subscription, everything
from trustfabric.db.migrate import migrate
from trustfabric.db.session import Database
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.trust import Signal

pytestmark = [pytest.mark.db, pytest.mark.slow]

AHEAD = 1_000_000_000
"""So many more transactions the other cluster had made."""


async def dumped_elsewhere(database: Database) -> None:
    """Leave what a restored dump does: the numbers of where it came from."""
    later = f"(xid::text::bigint + {AHEAD})::text::xid8"
    async with database.writing() as conn:
        for table in ("runtime_vm_trust_history", "runtime_vm_remediation_events"):
            await conn.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
            await conn.execute(f"UPDATE {table} SET xid = {later}".encode())
            await conn.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())
        await conn.execute(f"UPDATE listener_positions SET xid = {later}".encode())


async def test_what_happens_after_a_restore_is_heard(
    database: Database, database_url: str
) -> None:
    async with a_fabric(database, database_url) as before:
        instance = await before.instance()
        await before.change(instance, Signal.UNKNOWN_VERDICT)
    await dumped_elsewhere(database)

    assert await migrate(database_url) == ()

    async with a_fabric(database, database_url) as after:
        heard = Subscription(Stream.TRUST, everything, 100)
        await after.broadcaster.ask(Follow(heard), within_s=ASK_S)
        await after.change(instance, Signal.TRUSTED_VERDICT)
        await heard.wait()
        newest = heard.take()[-1]
        assert isinstance(newest, TrustEvent)
        assert newest.version == 3
        history = await after.history(instance)
    assert [event.version for event in history] == [1, 2, 3]
    assert [one.position for one in history] == sorted(one.position for one in history)


async def test_what_is_written_once_stays_so_afterwards(
    fabric: Fabric, database: Database, database_url: str
) -> None:
    await fabric.instance()
    await dumped_elsewhere(database)
    await migrate(database_url)

    guards = await count(
        database, "SELECT count(*) FROM pg_trigger WHERE tgenabled = 'D'"
    )

    assert guards == 0


async def test_a_database_at_home_is_left_alone(
    fabric: Fabric, database: Database, database_url: str
) -> None:
    instance = await fabric.instance()
    before = [event.position for event in await fabric.history(instance)]

    await migrate(database_url)

    assert [event.position for event in await fabric.history(instance)] == before
