"""Rests between the passes of what merely follows: the busier, the longer.

A pass sees to all that gathered meanwhile, so a rest costs the last ones a moment and
saves everybody the passes between. What happens alone is seen to at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

RESTS = 24
"""A pass is followed by a rest so many times as long: 4 % of the time is taken."""

LONGEST_S = 0.25

STUCK_S = 1.0
"""A pass this long waited for something that is not to be had by resting."""


class Pace:
    """When the next pass may begin."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._next_at = monotonic()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Note how long the pass in this block takes."""
        begun = self._monotonic()
        try:
            yield
        finally:
            ended = self._monotonic()
            if (took_s := ended - begun) < STUCK_S:
                self._next_at = ended + min(LONGEST_S, RESTS * took_s)

    def rest_s(self) -> float:
        """Return how long there is still to wait."""
        return max(0.0, self._next_at - self._monotonic())
