"""Storm control: when so many fall at once that automation has to stand back.

Rule (contract §7): at least `minimum` and more than `percent` of the living VMs of an
owner, or of the fleet, were quarantined within the window. Beside it an absolute
`number`, for fleets in which a share is a crowd. Owners are judged first; the fleet's
breaker opens where what is left over trips it, or where several owners trip at once,
and then instead of theirs: one storm, one incident.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from trustfabric.domain.holds import HoldScope
from trustfabric.domain.ids import IncidentId, InstanceId, OwnerId

SHOWN = 12
"""Traits kept of an incident; the first ones tell, the rest is noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StormLimits:
    """From where on automatic runs are held."""

    minimum: int = 5
    percent: float = 20.0
    number: int | None = None
    """Quarantines that are too many whatever their share; None: no such limit."""
    window: timedelta = timedelta(minutes=10)

    def view(self) -> Mapping[str, Any]:
        return {
            "minimum": self.minimum,
            "percent": self.percent,
            "number": self.number,
            "window_seconds": self.window.total_seconds(),
        }


class Cause(StrEnum):
    SHARE = "share"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Count:
    """How many of how many were quarantined since counting began."""

    quarantined: int
    living: int
    """May be cut off where it is certainly too many for `percent` to be passed."""

    def passes(self, limits: StormLimits) -> Cause | None:
        """Return which limit is passed; None: none is."""
        if self.quarantined < limits.minimum:
            return None
        if self.quarantined * 100 > limits.percent * self.living:
            return Cause.SHARE
        if limits.number is not None and self.quarantined >= limits.number:
            return Cause.NUMBER
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What the window shows of one owner."""

    owner_id: OwnerId
    count: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """All that storm control decides on, read at one moment."""

    hits: Sequence[Hit]
    living: int
    """In the fleet; cut off like an owner's."""
    open_owners: frozenset[OwnerId] = frozenset()
    """Owners whose breaker is open."""
    fleet_is_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """A breaker that has to open."""

    scope: HoldScope
    owner_id: OwnerId | None
    cause: Cause
    count: Count


def judge(census: Census, limits: StormLimits) -> list[Trip]:
    """Return the breakers to open now; none while the fleet's is open."""
    if census.fleet_is_open:
        return []
    tripped = [
        Trip(
            scope=HoldScope.OWNER,
            owner_id=hit.owner_id,
            cause=cause,
            count=hit.count,
        )
        for hit in census.hits
        if hit.owner_id not in census.open_owners
        and (cause := hit.count.passes(limits)) is not None
    ]
    apart = census.open_owners | {trip.owner_id for trip in tripped}
    total = Count(sum(hit.count.quarantined for hit in census.hits), census.living)
    rest = Count(
        sum(hit.count.quarantined for hit in census.hits if hit.owner_id not in apart),
        census.living,
    )
    several = bool(tripped) and len(apart) > 1
    cause = total.passes(limits) if several else rest.passes(limits)
    if cause is None:
        return tripped
    return [Trip(scope=HoldScope.ALL, owner_id=None, cause=cause, count=total)]


@dataclass(frozen=True, slots=True)
class Member:
    """One living VM: whether it is among the affected, and what it is."""

    instance_id: InstanceId
    affected: bool
    traits: Mapping[str, str]
    """Trait → value: image, host, tier, … as far as they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """A value that affected VMs have, counted among them and among the others."""

    trait: str
    value: str
    affected: int
    affected_total: int
    rest: int
    rest_total: int

    @property
    def telling(self) -> float:
        """How much more common it is among the affected: from -1 to 1."""
        others = self.rest / self.rest_total if self.rest_total else 0.0
        return self.affected / self.affected_total - others

    def view(self) -> Mapping[str, Any]:
        return {
            "trait": self.trait,
            "value": self.value,
            "affected": self.affected,
            "affected_total": self.affected_total,
            "rest": self.rest,
            "rest_total": self.rest_total,
            "telling": round(self.telling, 3),
        }


_ORDER = (
    "image",
    "measurement",
    "firmware",
    "policy",
    "host",
    "tier",
    "driver",
    "code",
    "owner",
    "runtime",
)
"""Between equally telling traits the one that is likelier the cause goes first."""


def in_common(members: Sequence[Member]) -> list[Trait]:
    """Return what sets the affected apart, the most telling first.

    A trait that half of the affected lack, or that the others have as often, says
    nothing of them together; where nobody else lives, what all share is told.
    """
    hit = [one for one in members if one.affected]
    rest = [one for one in members if not one.affected]
    here, there = _tally(hit), _tally(rest)
    found = [
        Trait(
            trait=trait,
            value=value,
            affected=number,
            affected_total=len(hit),
            rest=there[trait, value],
            rest_total=len(rest),
        )
        for (trait, value), number in here.items()
        if 2 * number > len(hit)
    ]
    telling = [one for one in found if one.telling > 0]
    return sorted(telling, key=_rank)[:SHOWN]


def _tally(members: Collection[Member]) -> Counter[tuple[str, str]]:
    return Counter(item for one in members for item in one.traits.items())


def _rank(one: Trait) -> tuple[float, int, str]:
    place = _ORDER.index(one.trait) if one.trait in _ORDER else len(_ORDER)
    return -one.telling, place, one.value


def sentence(incident: "Incident") -> str:
    """Say in one line what happened, naming what the affected have in common."""
    seconds = int(float(incident.limits.get("window_seconds", 0)))
    where = "the fleet" if incident.owner_id is None else f"owner {incident.owner_id}"
    told = (
        f"{incident.quarantined} of {incident.living} living VMs of {where} were "
        f"quarantined within {seconds} s"
    )
    first = incident.common[0] if incident.common else None
    if first is None:
        return f"{told}; they have nothing in common that the others lack"
    return (
        f"{told}; {first['affected']} of {first['affected_total']} have "
        f"{first['trait']} {first['value']}, of the others "
        f"{first['rest']} of {first['rest_total']}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One opening of a breaker."""

    id: IncidentId
    scope: HoldScope
    owner_id: OwnerId | None
    cause: Cause
    quarantined: int
    living: int
    limits: Mapping[str, Any]
    common: Sequence[Mapping[str, Any]]
    affected: Sequence[InstanceId]
    """A bounded sample, by id."""
    counted_since: datetime
    opened_at: datetime
    opened_by: str
    updated_at: datetime
    released_at: datetime | None = None
    released_by: str | None = None
    release_reason: str | None = None

    @property
    def is_open(self) -> bool:
        return self.released_at is None
