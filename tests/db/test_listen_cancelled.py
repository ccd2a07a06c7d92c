"""A listener that is ended at any moment of its opening leaves no connection open."""

import asyncio
import gc
import warnings
from collections.abc import Coroutine
from typing import Any

import pytest

from trustfabric.db.listen import REMEDIATION_CHANNEL, TRUST_CHANNEL, Wakeups
from trustfabric.db.session import Database

CHANNELS = (TRUST_CHANNEL, REMEDIATION_CHANNEL)


async def ended_after(turns: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Cancel it after so many turns of the loop; tell whether it had ended by then."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
        if task.done():
            await (await task).close()
            return True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return False


@pytest.mark.slow
async def test_whenever_its_opening_is_cancelled_its_connection_is_closed(
    database_url: str,
) -> None:
    turns = 0
    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always", ResourceWarning)
        while not await ended_after(turns, Wakeups.open(database_url, CHANNELS)):
            turns += 1 + turns // 50
        gc.collect()

    assert turns > 10
    assert [str(each.message) for each in left_open] == []


@pytest.mark.slow
async def test_whenever_its_waiting_is_cancelled_it_can_be_closed(
    database: Database, database_url: str
) -> None:
    with warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always", ResourceWarning)
        for turns in range(60):
            wakeups = await Wakeups.open(database_url, CHANNELS)
            waiting = asyncio.ensure_future(wakeups.wait(0.001))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            await wakeups.close()
            del wakeups
        gc.collect()

    assert [str(each.message) for each in left_open] == []
