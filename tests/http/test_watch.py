"""A limit that is put off again and again, on one timer."""

import asyncio
from collections.abc import Awaitable, Callable

from trustfabric.http.watch import Watch
from trustfabric.supervision.simulation import VirtualLoop

LIMIT_S = 10.0


def called_at(do: Callable[[Watch], Awaitable[None]]) -> list[float]:
    """Return when a watch calls that has this done to it; on a clock of its own."""

    async def watched() -> list[float]:
        loop = asyncio.get_running_loop()
        calls: list[float] = []
        await do(Watch(LIMIT_S, lambda: calls.append(round(loop.time(), 6))))
        await asyncio.sleep(10 * LIMIT_S)
        return calls

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(watched())


def test_it_calls_once_after_the_last_start() -> None:
    async def put_off(watch: Watch) -> None:
        watch.start()
        await asyncio.sleep(4)
        watch.start()
        await asyncio.sleep(9)
        watch.start()

    assert called_at(put_off) == [4 + 9 + LIMIT_S]


def test_a_stopped_one_is_silent_until_its_next_start() -> None:
    async def stop(watch: Watch) -> None:
        watch.start()
        watch.stop()

    async def start_again(watch: Watch) -> None:
        await stop(watch)
        await asyncio.sleep(2 * LIMIT_S)
        watch.start()

    assert called_at(stop) == []
    assert called_at(start_again) == [2 * LIMIT_S + LIMIT_S]


def test_one_that_called_can_be_started_again() -> None:
    async def twice(watch: Watch) -> None:
        watch.start()
        await asyncio.sleep(2 * LIMIT_S)
        watch.start()

    assert called_at(twice) == [LIMIT_S, 2 * LIMIT_S + LIMIT_S]


def test_a_closed_one_never_calls() -> None:
    async def close(watch: Watch) -> None:
        watch.start()
        watch.close()

    assert called_at(close) == []
