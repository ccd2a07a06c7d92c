"""Holds: who keeps automation away from what, why, and until when.

A person's hold stops every launch and every start of a run in its scope. The
breaker's (it has an incident) stops only runs that nobody asked for: what a person
requested, or approved after it opened, goes on, and so do launches.
Whether one is in force is computed from its times wherever it is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from trustfabric.domain.ids import HoldId, IncidentId, InstanceId, OwnerId
from trustfabric.errors import ForbiddenError, InvalidError

BREAKER = "actor:breaker"
REASON_LIMIT = 500
LONGEST = timedelta(days=90)
"""A hold ends some day even where nobody remembers it."""
USUAL = timedelta(hours=24)
"""How long one lasts that was placed without an end."""


class HoldScope(StrEnum):
    INSTANCE = "instance"
    OWNER = "owner"
    ALL = "all"


class HoldState(StrEnum):
    IN_FORCE = "in-force"
    EXPIRED = "expired"
    RELEASED = "released"


class HoldEventKind(StrEnum):
    HELD = "held"
    RELEASED = "released"
    EXPIRED = "expired"
    BREAKER_OPENED = "breaker-opened"
    BREAKER_RELEASED = "breaker-released"

    @property
    def lets_go(self) -> bool:
        """Whether something may be due again that was held until now."""
        return self in {self.RELEASED, self.EXPIRED, self.BREAKER_RELEASED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One row of `trust_holds`."""

    id: HoldId
    scope: HoldScope
    instance_id: InstanceId | None
    owner_id: OwnerId | None
    """Of scope `owner`: whose servers are held."""
    whose: OwnerId | None
    """Whose it is to see: the owner, or the instance's; None: everybody's."""
    reason: str
    by: str
    until: datetime | None
    """None: until it is released; only the breaker's are."""
    incident_id: IncidentId | None
    needs_admin: bool
    created_at: datetime
    released_at: datetime | None = None
    released_by: str | None = None
    release_reason: str | None = None

    @property
    def is_breakers(self) -> bool:
        return self.incident_id is not None

    def state(self, now: datetime) -> HoldState:
        if self.released_at is not None:
            return HoldState.RELEASED
        if self.until is not None and self.until <= now:
            return HoldState.EXPIRED
        return HoldState.IN_FORCE


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOrder:
    """What a person asks for; `check_order` says whether they may."""

    scope: HoldScope
    instance_id: InstanceId | None = None
    owner_id: OwnerId | None = None
    reason: str
    until: datetime | None = None
    ends_as_given: bool = True
    """False: nobody said when it ends, so one that ends some other time is the same."""
    by: str
    caller: OwnerId
    is_admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldEvent:
    """What happened to a hold, as its stream tells it."""

    hold_id: HoldId
    incident_id: IncidentId | None
    kind: HoldEventKind
    owner_id: OwnerId | None
    """Whose it is to see; None: everybody's."""
    actor: str
    payload: Mapping[str, Any]
    at: datetime


def check_order(order: HoldOrder, now: datetime) -> HoldOrder:
    """Return the order with its end set, or refuse it naming the field."""
    if (order.scope is HoldScope.INSTANCE) != (order.instance_id is not None):
        raise InvalidError(
            "runtime_vm_instance_id: required with scope instance, and only there"
        )
    if order.owner_id is not None and order.scope is not HoldScope.OWNER:
        raise InvalidError("owner_id: only with scope owner")
    if order.scope is HoldScope.ALL and not order.is_admin:
        raise ForbiddenError("scope: only role admin holds everything")
    owner = order.owner_id
    if order.scope is HoldScope.OWNER:
        owner = order.caller if owner is None else owner
        if owner != order.caller and not order.is_admin:
            raise ForbiddenError("owner_id: only role admin holds what others own")
    until = now + USUAL if order.until is None else order.until
    if until <= now:
        raise InvalidError("until: is in the past")
    if until > now + LONGEST:
        raise InvalidError(f"until: more than {LONGEST.days} days from now")
    given = order.until is not None
    return replace(order, owner_id=owner, until=until, ends_as_given=given)


def check_release(hold: Hold, *, is_admin: bool) -> None:
    """Refuse the release of what this person may not release."""
    if hold.is_breakers:
        raise ForbiddenError(
            "this is the breaker's: an admin releases it with "
            "POST /api/trust/remediation/breaker/release"
        )
    if hold.needs_admin and not is_admin:
        raise ForbiddenError("an admin placed this hold: only an admin releases it")
