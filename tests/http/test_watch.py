"""A limit that is put off again and again, on one timer."""

import asyncio

from trustfabric.http.watch import Watch

LIMIT_S = 0.05


async def test_it_calls_once_after_the_last_start() -> None:
    loop, called = asyncio.get_running_loop(), asyncio.Event()
    watch = Watch(LIMIT_S, called.set)
    watch.start()
    await asyncio.sleep(LIMIT_S / 2)
    watch.start()
    put_off = loop.time()

    async with asyncio.timeout(2):
        await called.wait()

    assert loop.time() >= put_off + LIMIT_S * 0.99


async def test_a_stopped_one_is_silent_until_its_next_start() -> None:
    called = asyncio.Event()
    watch = Watch(LIMIT_S, called.set)
    watch.start()
    watch.stop()
    await asyncio.sleep(2 * LIMIT_S)
    assert not called.is_set()

    watch.start()
    async with asyncio.timeout(2):
        await called.wait()


async def test_a_closed_one_never_calls() -> None:
    called = asyncio.Event()
    watch = Watch(LIMIT_S, called.set)
    watch.start()
    watch.close()

    await asyncio.sleep(2 * LIMIT_S)

    assert not called.is_set()
