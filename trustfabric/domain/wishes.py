"""What a person may ask of the lifecycle by hand, and what becomes of the wish."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trustfabric.domain.trust import (
    AttestationStatus,
    Change,
    Lifecycle,
    Signal,
    Snapshot,
    Tag,
    is_stale,
)
from trustfabric.errors import ForbiddenError, IllegalTransitionError, InvalidError


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The state that a person asks for; `order` turns it into a Change or refuses."""

    lifecycle: Lifecycle
    status: AttestationStatus
    actor: str
    is_admin: bool
    override: bool = False
    reason: str | None = None
    tag: Tag | None = None
    attempts: int | None = None
    deadline: datetime | None = None
    provenance_ref: str | None = None
    provenance: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


_VERDICTS, _OVERRIDE = "attestation:", "operator-override"
"""What a provenance_ref says that is not a person's own."""


def order(before: Snapshot, wish: Wish, now: datetime) -> Change:
    """Turn what a person asks for into a Change.

    Raise IllegalTransitionError for a pair the lifecycle lacks, ForbiddenError for
    an override without the role, InvalidError for one that lacks something.
    """
    if wish.override:
        return _override(wish, now)
    signal = _wished_signal(before.lifecycle, wish)
    changes_status = wish.status is not before.attestation_status
    if changes_status and wish.status is AttestationStatus.TRUSTED:
        raise IllegalTransitionError(
            "only a verdict on evidence, or an admin's override, sets status trusted"
        )
    if changes_status and signal is Signal.ANNOTATED:
        raise IllegalTransitionError(
            f"{before.lifecycle}: a note leaves the status {before.attestation_status}"
        )
    if wish.deadline is not None and (
        before.freshness_deadline is None or wish.deadline > before.freshness_deadline
    ):
        raise IllegalTransitionError(
            "only a verdict on evidence, or an admin's override, extends freshness"
        )
    _check_provenance(before, wish)
    return Change(
        signal=signal,
        actor=wish.actor,
        reason=wish.reason or "manual",
        tag=wish.tag,
        status=wish.status,
        attempts=wish.attempts,
        deadline=wish.deadline,
        provenance_ref=wish.provenance_ref,
        provenance=wish.provenance,
        metadata=wish.metadata,
    )


def _check_provenance(before: Snapshot, wish: Wish) -> None:
    """Let nothing by hand pass for what evidence or an override said."""
    ref = wish.provenance_ref
    if ref is not None and _is_reserved(ref):
        raise IllegalTransitionError(
            f"provenance_ref: only a verdict on evidence begins with {_VERDICTS}, and "
            f"only an admin's override is {_OVERRIDE}"
        )
    said = before.provenance_ref
    if wish.provenance is not None and ref is None and said and _is_reserved(said):
        raise IllegalTransitionError(
            f"provenance: with {said} it would say what that did not; "
            "give it a provenance_ref of its own"
        )


def _is_reserved(ref: str) -> bool:
    return ref.strip().lower().startswith((_VERDICTS, _OVERRIDE))


def _wished_signal(current: Lifecycle, wish: Wish) -> Signal:
    match (current, wish.lifecycle):
        case (_, Lifecycle.QUARANTINED):
            return Signal.QUARANTINED_BY_HAND
        case (Lifecycle.QUARANTINED, Lifecycle.SUSPECT):
            if not wish.reason:
                raise InvalidError("transition_reason: a release needs a reason")
            return Signal.RELEASED
        case (same, target) if same is target:
            return Signal.ANNOTATED
        case _:
            raise IllegalTransitionError(
                f"{current} → {wish.lifecycle} is no move a person can make",
                current_lifecycle_state=current,
                allowed=sorted({Lifecycle.QUARANTINED, *by_hand(current)}),
            )


def by_hand(current: Lifecycle) -> tuple[Lifecycle, ...]:
    """Return the states that an operator may ask for from here."""
    if current is Lifecycle.QUARANTINED:
        return (Lifecycle.QUARANTINED, Lifecycle.SUSPECT)
    return (current, Lifecycle.QUARANTINED)


def _override(wish: Wish, now: datetime) -> Change:
    if not wish.is_admin:
        raise ForbiddenError("override: only role admin may override the lifecycle")
    if wish.lifecycle is not Lifecycle.RESTORED:
        raise InvalidError("override: only a restoration can be overridden")
    if not wish.reason or wish.deadline is None:
        raise InvalidError(
            "override: transition_reason and freshness_deadline are required"
        )
    if wish.status is not AttestationStatus.TRUSTED:
        raise InvalidError("attestation_status: an override sets it to trusted")
    if is_stale(wish.deadline, now):
        raise InvalidError("freshness_deadline: an override's is still to come")
    if wish.provenance_ref is not None or wish.provenance is not None:
        raise InvalidError(f"provenance: that of an override is {_OVERRIDE}")
    return Change(
        signal=Signal.OVERRIDDEN,
        actor=wish.actor,
        reason=wish.reason,
        tag=wish.tag,
        status=AttestationStatus.TRUSTED,
        attempts=wish.attempts,
        deadline=wish.deadline,
        provenance_ref=_OVERRIDE,
        provenance={"kind": _OVERRIDE, "by": wish.actor},
        metadata=wish.metadata,
    )
