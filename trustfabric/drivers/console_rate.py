"""How much of a console is taken a second: a guest may print without end."""

from collections.abc import Callable
from typing import Final

CAP_PER_S: Final = 1 << 20
BURST: Final = 4 << 20
LINE: Final = 64
"""Bytes that a line counts for beside its own: what it costs to keep an empty one."""


class RateCap:
    """Lets so many bytes a second through, after a burst; the rest is dropped."""

    def __init__(
        self,
        clock: Callable[[], float],
        per_s: int = CAP_PER_S,
        burst: int = BURST,
    ) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._left = float(burst)
        self._at = clock()
        self._dropped = 0

    def pass_on(self, data: bytes) -> tuple[int, bytes]:
        """Return how many bytes were dropped before, and what may pass of `data`."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        part = _worth(data, int(self._left))
        dropped = self._dropped if part else 0
        self._left -= _cost(part)
        self._dropped += len(data) - len(part) - dropped
        return dropped, part


def _cost(data: bytes) -> int:
    return len(data) + LINE * data.count(b"\n")


def _worth(data: bytes, left: int) -> bytes:
    """Return the part of `data` that costs no more than `left`."""
    if _cost(data) <= left:
        return data
    end = 0
    while (stop := data.find(b"\n", end) + 1) and stop - end + LINE <= left:
        left -= stop - end + LINE
        end = stop
    line = (stop or len(data) + 1) - 1 - end
    return data[: end + min(line, left)]
