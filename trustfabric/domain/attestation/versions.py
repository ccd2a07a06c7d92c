"""Versions of policies and of reference values: their states, and whom they concern.

A new version is staged, in force once it is active, still believed (with a warning)
while it is deprecated, and never again once it is revoked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from trustfabric.domain.ids import OwnerId
from trustfabric.errors import ConflictError, InvalidError


class Noun(StrEnum):
    """What a versioned document is."""

    POLICIES = "policies"
    REFERENCES = "references"


class State(StrEnum):
    STAGED = "staged"
    ACTIVE = "active"
    DEPRECATED = "deprecated"
    REVOKED = "revoked"


_FROM: Mapping[State, frozenset[State]] = {
    State.STAGED: frozenset(),
    State.ACTIVE: frozenset({State.STAGED, State.DEPRECATED}),
    State.DEPRECATED: frozenset({State.ACTIVE, State.DEPRECATED}),
    State.REVOKED: frozenset({State.STAGED, State.ACTIVE, State.DEPRECATED}),
}
"""From where each state is reached; a revoked version stays revoked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whom a document concerns; what is None narrows nothing."""

    owner_id: OwnerId | None = None
    image: str | None = None
    tier: str | None = None

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """How specific it is: of two policies the one that ranks higher counts."""
        return (
            self.owner_id is not None,
            self.image is not None,
            self.tier is not None,
        )


EVERYBODY: Final = Scope()


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a policy or of a set of reference values."""

    id: int
    noun: Noun
    name: str
    number: int
    """1, 2, 3 … of its name; recorded with each verdict that it had a part in."""
    scope: Scope
    state: State
    deprecated_until: datetime | None
    document: Mapping[str, Any]
    note: str | None
    created_by: str
    version: int
    """Of the row, for optimistic writes."""
    created_at: datetime
    updated_at: datetime

    def in_force(self, now: datetime) -> bool:
        """Tell whether it is believed; deprecated past its date counts as not there."""
        match self.state:
            case State.ACTIVE:
                return True
            case State.DEPRECATED:
                return self.deprecated_until is not None and now < self.deprecated_until
            case _:
                return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A version before it has a number."""

    noun: Noun
    name: str
    scope: Scope
    document: Mapping[str, Any]
    note: str | None
    created_by: str


def moved(before: Version, state: State, until: datetime | None = None) -> Version:
    """Return a version in another state. ConflictError where there is no such move."""
    if before.state not in _FROM[state]:
        raise ConflictError(
            f"{before.noun} {before.name} version {before.number} is {before.state}: "
            f"it can't become {state}",
            state=before.state,
        )
    if state is State.DEPRECATED and until is None:
        raise InvalidError("until: a deprecation needs a date")
    return replace(
        before,
        state=state,
        deprecated_until=until if state is State.DEPRECATED else None,
    )
