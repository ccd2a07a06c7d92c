"""Runtimes: each start is a new epoch, so that an older one can be told apart."""

from trustfabric.db import runtimes
from trustfabric.db.session import Database


async def test_each_start_of_a_runtime_is_a_new_epoch(database: Database) -> None:
    async with database.writing() as conn:
        epochs = [await runtimes.join(conn, "here", "host", pid) for pid in (1, 2, 3)]
        other = await runtimes.join(conn, "there", "host", 4)

    assert epochs == [1, 2, 3]
    assert other == 1


async def test_the_database_answers(database: Database) -> None:
    async with database.reading() as conn:
        await runtimes.ping(conn)
