"""Who follows a stream, by what they want of it: an event meets only those it may suit.

Followers that want the same share the work of choosing, and are handed the same events.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from trustfabric.domain.events import HeldEvent, RemediationEvent, TrustEvent

Event: TypeAlias = TrustEvent | RemediationEvent | HeldEvent
Accepts: TypeAlias = Callable[[Event], bool]
"""Which events a follower wants. Those with equal ones share the work of choosing; one
that has an `about` is asked only of events that have this value."""
About: TypeAlias = tuple[str, int]
"""A field of events that never changes for what they tell of, and its value."""

FIELDS = ("run_id", "instance_id", "server_id", "owner_id")
"""What followers can be about."""


class Stream(StrEnum):
    """What can be followed."""

    TRUST = "trust"
    REMEDIATION = "remediation"
    HOLDS = "hold"


class Follower(Protocol):
    """Someone who wants a stream's events."""

    @property
    def stream(self) -> Stream:
        """Which stream."""
        ...

    @property
    def accepts(self) -> Accepts:
        """Which of its events are wanted."""
        ...

    def offer(self, events: Sequence[Event]) -> bool:
        """Take what is accepted, without waiting; False: forget this follower."""
        ...


def about(**wanted: int | None) -> About | None:
    """Return the first of `FIELDS` that is narrowed to a value."""
    for name in FIELDS:
        value = wanted.get(name)
        if value is not None:
            return name, value
    return None


@dataclass(slots=True, eq=False)
class _Group:
    """Followers that want the same."""

    accepts: Accepts
    followers: dict[Follower, None] = field(default_factory=dict)


class Followers:
    """The followers of one stream."""

    def __init__(self) -> None:
        self._groups: dict[About | None, dict[Accepts, _Group]] = {}

    def __iter__(self) -> Iterator[Follower]:
        for groups in self._groups.values():
            for group in groups.values():
                yield from group.followers

    def add(self, follower: Follower) -> bool:
        """Return whether it is new here."""
        accepts = follower.accepts
        groups = self._groups.setdefault(_about(accepts), {})
        group = groups.get(accepts)
        if group is None:
            group = groups[accepts] = _Group(accepts)
        is_new = follower not in group.followers
        group.followers[follower] = None
        return is_new

    def remove(self, follower: Follower) -> None:
        """Harmless where it is gone already."""
        accepts = follower.accepts
        key = _about(accepts)
        groups = self._groups.get(key, {})
        group = groups.get(accepts)
        if group is None:
            return
        group.followers.pop(follower, None)
        if not group.followers:
            del groups[accepts]
            if not groups:
                del self._groups[key]

    def offer(self, events: Iterable[Event]) -> None:
        """Offer each what it accepts; who wants no more is forgotten."""
        chosen: dict[_Group, list[Event]] = {}
        for event in events:
            for group in self._asked(event):
                if group.accepts(event):
                    chosen.setdefault(group, []).append(event)
        gone: list[Follower] = []
        for group, wanted in chosen.items():
            together = tuple(wanted)
            gone += [one for one in group.followers if not one.offer(together)]
        for follower in gone:
            self.remove(follower)

    def _asked(self, event: Event) -> Iterator[_Group]:
        """Yield the groups that the event may suit."""
        yield from self._groups.get(None, _NOBODY).values()
        for name in FIELDS:
            value: int | None = getattr(event, name, None)
            if value is not None:
                yield from self._groups.get((name, value), _NOBODY).values()


_NOBODY: dict[Accepts, _Group] = {}


def _about(accepts: Accepts) -> About | None:
    return getattr(accepts, "about", None)
