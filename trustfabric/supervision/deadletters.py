"""Mail that reached nobody: counted, sampled, never silent."""

from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime
from threading import Lock

from trustfabric.supervision.clock import Clock
from trustfabric.supervision.log import Log

log = Log(__name__)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    at: datetime
    path: str
    message: object
    reason: str


PATHS = 10_000
"""So many paths, with a reason each, are counted by themselves: those hit last.
Actors come and go by key, and each has a path of its own."""


class DeadLetters:
    """The totals are exact; of the letters themselves the newest are kept."""

    def __init__(self, clock: Clock, *, keep: int = 100, paths: int = PATHS) -> None:
        self._clock = clock
        self._lock = Lock()
        self._paths = paths
        self._counts: dict[tuple[str, str], int] = {}
        self._reasons: Counter[str] = Counter()
        self._sample: deque[DeadLetter] = deque(maxlen=keep)
        self.total = 0

    def add(self, path: str, message: object, reason: str) -> None:
        with self._lock:  # other threads' mail bounces on their threads
            self.total += 1
            self._reasons[reason] += 1
            seen = self._counts.pop((path, reason), 0) + 1
            self._counts[path, reason] = seen  # the last, as it was hit last
            if len(self._counts) > self._paths:
                del self._counts[next(iter(self._counts))]
            self._sample.append(DeadLetter(self._clock.now(), path, message, reason))
        if (
            seen & (seen - 1) == 0
        ):  # 1st, 2nd, 4th, 8th …: a flood does not flood the log
            log.warning(
                "actor.dead_letter",
                path=path,
                reason=reason,
                message=type(message).__name__,
                count=seen,
            )

    def by_path(self) -> dict[str, int]:
        """Count those of the paths that were hit last."""
        totals: Counter[str] = Counter()
        for (path, _), seen in list(self._counts.items()):
            totals[path] += seen
        return dict(totals)

    def by_reason(self) -> dict[str, int]:
        return dict(self._reasons)

    def recent(self, path: str | None = None) -> list[DeadLetter]:
        """Return the letters kept, oldest first; of one path if named."""
        return [letter for letter in list(self._sample) if path in (None, letter.path)]
