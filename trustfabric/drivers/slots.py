"""A bounded number of calls in flight, first come first served."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence


class Slots:
    """Like a semaphore with numbered places, but who waits can be sent away."""

    def __init__(self, numbers: Sequence[int], more: Iterator[int]) -> None:
        """Lend `numbers`, of which the first is used most, and `more` for replaced."""
        self._free = list(reversed(numbers))
        self._more = more
        self._replaced: set[int] = set()
        self._spare: list[int] = []
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
        """Pass a slot on; one that was replaced is kept to replace the next."""
        if number in self._replaced:
            self._replaced.remove(number)
            self._spare.append(number)
        else:
            self._pass_on(number)

    def replace(self, number: int) -> None:
        """Lend another in place of one that may not come back for long."""
        self._replaced.add(number)
        self._pass_on(self._spare.pop() if self._spare else next(self._more))

    def fail(self, error: Exception) -> None:
        """Send away everybody who waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)

    def _pass_on(self, number: int) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(number)
                return
        self._free.append(number)
