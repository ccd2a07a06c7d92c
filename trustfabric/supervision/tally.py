"""What a runtime counts as it goes, so that nobody has to walk the tree for it."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from trustfabric.supervision.exits import ExitKind

LAG_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    bounds: tuple[float, ...]
    """Upper ends of all buckets but the last, which has none."""
    counts: tuple[int, ...]
    """Of each bucket alone."""
    total: float
    """The sum of all that was seen."""


class Lag:
    """How late the loop sees to what is due; written on one thread."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LAG_BOUNDS_S) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(LAG_BOUNDS_S, seconds)] += 1
        self._total += seconds

    def histogram(self) -> Histogram:
        return Histogram(
            bounds=LAG_BOUNDS_S, counts=tuple(self._counts), total=self._total
        )


class Tally:
    """Belongs to the loop's thread."""

    def __init__(self) -> None:
        self.up: defaultdict[type, int] = defaultdict(int)
        """Incarnations there are, by the class of the actor."""
        self.started = 0
        """Incarnations there have been."""
        self.restarts: Counter[ExitKind] = Counter()
        """Falls that were followed by a restart, by how it fell."""
        self.skipped = 0
        """Requests that were late, or whose asker had gone."""
        self.zombies = 0
        """Coroutines that would not end even when closed by force."""

    def came(self, kind: type) -> None:
        self.up[kind] += 1
        self.started += 1

    def went(self, kind: type) -> None:
        self.up[kind] -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A runtime's figures at one moment; the totals only ever grow."""

    up: Mapping[str, int]
    """Actors that are up, by the name of their class."""
    started: int
    restarts: Mapping[ExitKind, int]
    dead_letters: Mapping[str, int]
    """By reason."""
    skipped: int
    zombies: int
    held: int
    """Times that the loop was held for longer than the watchdog's limit."""
    lag: Histogram
    """Of the event loop, in seconds, as the watchdog samples it."""
