"""Calls in flight over a link that one domain's silence must not use up.

A domain that leaves a call unanswered is asked nothing more until that call ends, but
for what ends the domain itself. An overdue call keeps its connection and its thread,
since nothing can take them away; others get another slot in place of its own.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from trustfabric.drivers.slots import Slots
from trustfabric.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class About:
    """What a call concerns."""

    domain: str | None = None
    """None: no domain alone."""
    ends: bool = False
    """It cuts the domain's power, which also ends what hangs there."""


NOTHING: Final = About()


class Lane:
    """The slots of one kind of calls."""

    def __init__(self, numbers: Sequence[int], more: Iterator[int], extra: int) -> None:
        """Lend `numbers`; while calls are overdue, up to `extra` of `more` as well.

        The second half of those is for calls that end a domain.
        """
        self._slots = Slots(numbers, more)
        self._extra = extra
        self._overdue: Counter[About] = Counter()

    async def take(self, doing: str, about: About) -> "Place":
        """Wait for a slot; UnavailableError at once where the domain is silent."""
        self._check(doing, about)
        number = await self._slots.take()
        try:
            self._check(doing, about)  # it may have fallen silent meanwhile
        except UnavailableError:
            self._slots.give(number)
            raise
        return Place(number, self, about)

    def fail(self, error: Exception) -> None:
        """Send away everybody who waits."""
        self._slots.fail(error)

    def replace(self, place: "Place") -> None:
        if self._overdue.total() < self._extra:
            self._slots.replace(place.number)
        self._overdue[place.about] += 1

    def give(self, place: "Place") -> None:
        if place.overdue:
            self._overdue[place.about] -= 1
        self._slots.give(place.number)

    def _check(self, doing: str, about: About) -> None:
        if about.domain is None:
            return
        if self._overdue[about]:
            raise UnavailableError(
                f"{doing}: an earlier call still has no answer", cause="deadline"
            )
        silent = self._overdue.total()
        if silent >= self._extra // 2 and not about.ends:
            raise UnavailableError(
                f"{doing}: not asked, as {silent} calls to others have no answer"
            )


class Place:
    """One slot, held by one call until that ends."""

    def __init__(self, number: int, lane: Lane, about: About) -> None:
        self.number = number
        self.about = about
        self.overdue = False
        self._lane = lane

    def note_overdue(self) -> None:
        """Let others go on while this call waits for its answer."""
        self._lane.replace(self)
        self.overdue = True

    def leave(self) -> None:
        self._lane.give(self)
