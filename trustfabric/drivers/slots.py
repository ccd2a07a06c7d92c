"""A bounded number of calls in flight, first come first served."""

import asyncio
from collections import deque
from collections.abc import Sequence


class Slots:
    """Like a semaphore with numbered places, but who waits can be sent away."""

    def __init__(self, numbers: Sequence[int]) -> None:
        """Lend `numbers`; the first is the one that is used most."""
        self._free = list(reversed(numbers))
        self._waiting: deque[asyncio.Future[int]] = deque()

    async def take(self) -> int:
        """Wait for a slot; raises what `fail` is given."""
        if self._free:
            return self._free.pop()
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give(turn.result())
            raise

    def give(self, number: int) -> None:
        """Pass a slot on."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(number)
                return
        self._free.append(number)

    def fail(self, error: Exception) -> None:
        """Send away everybody who waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)
