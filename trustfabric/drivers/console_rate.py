"""How much of a console is taken a second: a guest may print without end."""

from collections.abc import Callable
from typing import Final

CAP_PER_S: Final = 1 << 20
BURST: Final = 4 << 20


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
        part = data[: int(self._left)]
        dropped = self._dropped if part else 0
        self._left -= len(part)
        self._dropped += len(data) - len(part) - dropped
        return dropped, part
