"""How much all slow readers together may leave lying: the slowest goes first."""

from typing import Protocol


class Holder(Protocol):
    """Who keeps something for a reader, and can let go of it."""

    def lag(self) -> None:
        """Keep nothing: the reader will find it elsewhere."""
        ...


class Room:
    """Counts what is held; past `limit` the fullest holders lag until it fits."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Holder, int] = {}
        self.total = 0

    def hold(self, holder: Holder, count: int) -> None:
        """Note that `holder` keeps `count` more; it may have to let go at once."""
        self._held[holder] = self._held.get(holder, 0) + count
        self.total += count
        while self.total > self._limit:
            fullest = max(self._held, key=self._held.__getitem__)
            self.release(fullest)
            fullest.lag()

    def release(self, holder: Holder) -> None:
        """Note that `holder` keeps nothing."""
        self.total -= self._held.pop(holder, 0)
