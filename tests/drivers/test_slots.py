import asyncio

import pytest

from trustfabric.drivers.slots import Slots


async def test_who_came_first_goes_first() -> None:
    slots, went = Slots([0]), list[int]()

    async def go(number: int) -> None:
        slot = await slots.take()
        went.append(number)
        await asyncio.sleep(0)
        slots.give(slot)

    await asyncio.gather(*(go(number) for number in range(5)))

    assert went == [0, 1, 2, 3, 4]


async def test_no_more_than_the_slots_are_taken() -> None:
    slots = Slots([0, 1])
    await slots.take()
    await slots.take()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slots.take(), 0.01)


async def test_a_cancelled_wait_loses_no_slot() -> None:
    slots = Slots([0])
    await slots.take()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)

    slots.give(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await asyncio.wait_for(slots.take(), 10)


async def test_who_waits_is_sent_away() -> None:
    slots = Slots([0])
    await slots.take()
    waiting = asyncio.create_task(slots.take())
    await asyncio.sleep(0)

    slots.fail(ConnectionError("down"))

    with pytest.raises(ConnectionError):
        await waiting
