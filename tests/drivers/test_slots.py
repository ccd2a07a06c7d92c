import asyncio
from itertools import count

import pytest

from trustfabric.drivers.slots import Slots


async def test_who_came_first_goes_first() -> None:
    slots, went = Slots([0], count(1)), list[int]()

    async def go(number: int) -> None:
        slot = await slots.take()
        went.append(number)
        await asyncio.sleep(0)
        slots.give(slot)

    await asyncio.gather(*(go(number) for number in range(5)))

    assert went == [0, 1, 2, 3, 4]


async def test_no_more_than_the_slots_are_taken() -> None:
    slots = Slots([0, 1], count(2))
    await slots.take()
    await slots.take()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slots.take(), 0.01)


async def test_a_cancelled_wait_loses_no_slot() -> None:
    slots = Slots([0], count(1))
    await slots.take()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)

    slots.give(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await asyncio.wait_for(slots.take(), 10)


async def test_who_waits_is_sent_away() -> None:
    slots = Slots([0], count(1))
    await slots.take()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)

    slots.fail(ConnectionError("down"))

    with pytest.raises(ConnectionError):
        await waiting


async def test_one_in_place_of_a_slot_that_does_not_come_back() -> None:
    slots = Slots([0], count(1))
    await slots.take()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)

    slots.replace(0)

    assert await waiting == 1


async def test_what_comes_back_late_replaces_the_next() -> None:
    slots = Slots([0], count(1))
    await slots.take()
    slots.replace(0)
    assert await slots.take() == 1

    slots.give(0)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slots.take(), 0.01)
    slots.replace(1)
    assert await slots.take() == 0
