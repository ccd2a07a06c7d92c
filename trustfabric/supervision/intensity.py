"""Restart intensity: too many restarts in too short a time."""

from bisect import bisect_right


class Intensity:
    """Allows `limit` restarts in any window of `within_s` seconds."""

    __slots__ = ("_limit", "_times", "_within_s")

    def __init__(self, limit: int, within_s: float) -> None:
        self._limit = limit
        self._within_s = within_s
        self._times: list[float] = []

    def allows(self, now: float) -> bool:
        """Record a restart at `now`; False if it is one too many."""
        times, begin = self._times, now - self._within_s
        if times and times[0] <= begin:
            del times[: bisect_right(times, begin)]
        times.append(now)
        return len(times) <= self._limit
