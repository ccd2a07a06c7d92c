"""The lifecycle of trust: which signal moves an instance where, and what it keeps.

Everything that decides a move is in this file. `TRANSITIONS` is the lifecycle as
data (contract §2); a pair that is not in it is refused with IllegalTransitionError.
`advance` never looks at a clock and never claims more trust than it was given
evidence for: only TRUSTED_VERDICT and an admin's OVERRIDDEN set status `trusted`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from trustfabric.domain.ids import AttestationId, InstanceId, OwnerId, RunId, ServerId
from trustfabric.errors import IllegalTransitionError

REASON_LIMIT = 500
"""Characters kept of a transition reason (contract §1, "Texts are capped")."""

PROVENANCE_REF_LIMIT = 200


class AttestationStatus(StrEnum):
    """What the newest evidence says."""

    PENDING = "pending"
    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"
    UNKNOWN = "unknown"


class Lifecycle(StrEnum):
    """How far an instance can be trusted, and what is being done about it."""

    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    REMEDIATING = "remediating"
    RESTORED = "restored"


class Tag(StrEnum):
    """`remediation_state`: where remediation stands, always with its prefix."""

    NONE = "remediation:none"
    MONITOR = "remediation:monitor"
    INVESTIGATE = "remediation:investigate"
    PENDING_APPROVAL = "remediation:pending-approval"
    AWAITING_EXECUTOR = "remediation:awaiting-executor"
    AUTOMATION_RUNNING = "remediation:automation-running"
    AUTOMATION_COMPLETE = "remediation:automation-complete"
    AUTOMATION_FAILED = "remediation:automation-failed"
    TRANSIENT_FAILURE = "remediation:transient-failure"
    EXECUTOR_UNAVAILABLE = "remediation:executor-unavailable"
    POLICY_DENIED = "remediation:policy-denied"
    PLAYBOOK_BUG = "remediation:playbook-bug"
    AUTOMATION_CANCELLED = "remediation:automation-cancelled"
    APPROVAL_REJECTED = "remediation:approval-rejected"
    ATTEMPTS_EXHAUSTED = "remediation:attempts-exhausted"
    NO_PLAYBOOK = "remediation:no-playbook"
    UNVERIFIED = "remediation:unverified"
    HELD = "remediation:held"

    @classmethod
    def read(cls, text: str) -> "Tag":
        """Read a tag with or without its prefix; ValueError for an unknown one."""
        text = text.strip().lower()
        return cls(text if text.startswith("remediation:") else f"remediation:{text}")


class Signal(StrEnum):
    """What happened; the only thing that can move a lifecycle."""

    TRUSTED_VERDICT = "trusted-verdict"
    UNTRUSTED_VERDICT = "untrusted-verdict"
    UNKNOWN_VERDICT = "unknown-verdict"
    BOOTED = "booted"
    CRASHED = "crashed"
    VANISHED = "vanished"
    EXPIRED = "expired"
    RUN_STAGED = "run-staged"
    RUN_APPROVED = "run-approved"
    RUN_STARTED = "run-started"
    RUN_RESUMED = "run-resumed"
    RUN_RETRYING = "run-retrying"
    RUN_COMPLETED = "run-completed"
    RUN_ENDED = "run-ended"
    UNVERIFIED = "unverified"
    ANNOTATED = "annotated"
    QUARANTINED_BY_HAND = "quarantined-by-hand"
    RELEASED = "released"
    OVERRIDDEN = "overridden"


_S = Signal
_L = Lifecycle

STAYS: frozenset[Signal] = frozenset(
    {
        _S.TRUSTED_VERDICT,
        _S.UNTRUSTED_VERDICT,
        _S.UNKNOWN_VERDICT,
        _S.BOOTED,
        _S.CRASHED,
        _S.VANISHED,
        _S.EXPIRED,
        _S.RUN_STAGED,
        _S.RUN_APPROVED,
        _S.RUN_RETRYING,
        _S.RUN_ENDED,
        _S.ANNOTATED,
    }
)
"""Legal in every state; where TRANSITIONS names no target they move nothing."""

TRANSITIONS: Mapping[Lifecycle, Mapping[Signal, Lifecycle]] = {
    _L.SUSPECT: {
        _S.TRUSTED_VERDICT: _L.RESTORED,
        _S.UNTRUSTED_VERDICT: _L.QUARANTINED,
        _S.RUN_STARTED: _L.REMEDIATING,
        _S.RUN_RESUMED: _L.REMEDIATING,
        _S.QUARANTINED_BY_HAND: _L.QUARANTINED,
        _S.OVERRIDDEN: _L.RESTORED,
    },
    _L.QUARANTINED: {
        _S.RUN_STAGED: _L.REMEDIATING,
        _S.RUN_STARTED: _L.REMEDIATING,
        _S.RUN_RESUMED: _L.REMEDIATING,
        _S.RELEASED: _L.SUSPECT,
        _S.QUARANTINED_BY_HAND: _L.QUARANTINED,
        _S.OVERRIDDEN: _L.RESTORED,
    },
    _L.REMEDIATING: {
        _S.TRUSTED_VERDICT: _L.RESTORED,
        _S.UNTRUSTED_VERDICT: _L.QUARANTINED,
        _S.RUN_STARTED: _L.REMEDIATING,
        _S.RUN_RESUMED: _L.REMEDIATING,
        _S.RUN_COMPLETED: _L.REMEDIATING,
        _S.RUN_ENDED: _L.QUARANTINED,
        _S.UNVERIFIED: _L.QUARANTINED,
        _S.QUARANTINED_BY_HAND: _L.QUARANTINED,
        _S.OVERRIDDEN: _L.RESTORED,
    },
    _L.RESTORED: {
        _S.UNTRUSTED_VERDICT: _L.QUARANTINED,
        _S.BOOTED: _L.SUSPECT,
        _S.CRASHED: _L.SUSPECT,
        _S.VANISHED: _L.SUSPECT,
        _S.EXPIRED: _L.SUSPECT,
        _S.RUN_STARTED: _L.REMEDIATING,
        _S.RUN_RESUMED: _L.REMEDIATING,
        _S.QUARANTINED_BY_HAND: _L.QUARANTINED,
        _S.OVERRIDDEN: _L.RESTORED,
    },
}

_VERDICTS = frozenset({_S.TRUSTED_VERDICT, _S.UNTRUSTED_VERDICT, _S.UNKNOWN_VERDICT})
_POWER = frozenset({_S.BOOTED, _S.CRASHED, _S.VANISHED, _S.EXPIRED})

_TAGS: Mapping[Signal, Tag] = {
    _S.TRUSTED_VERDICT: Tag.NONE,
    _S.UNTRUSTED_VERDICT: Tag.INVESTIGATE,
    _S.UNKNOWN_VERDICT: Tag.MONITOR,
    _S.RUN_APPROVED: Tag.AWAITING_EXECUTOR,
    _S.RUN_STARTED: Tag.AUTOMATION_RUNNING,
    _S.RUN_RESUMED: Tag.AUTOMATION_RUNNING,
    _S.RUN_COMPLETED: Tag.AUTOMATION_COMPLETE,
    _S.UNVERIFIED: Tag.UNVERIFIED,
    _S.RELEASED: Tag.MONITOR,
    _S.OVERRIDDEN: Tag.NONE,
}
"""The tag that a signal leaves where its Change names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One row of the trust registry, with the names its instance is known by."""

    instance_id: InstanceId
    instance_name: str
    server_id: ServerId
    server_name: str
    owner_id: OwnerId
    attestation_status: AttestationStatus
    lifecycle: Lifecycle
    remediation_state: Tag
    remediation_attempts: int
    freshness_deadline: datetime | None
    provenance_ref: str | None
    provenance: Mapping[str, Any] | None
    version: int
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a decision needs to know beside the row, read in the same statement."""

    active_run: RunId | None
    last_run_ended_at: datetime | None
    running: bool
    """Whether the instance's desired state is to run (decay applies only then)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A signal and what it brings; a field left None changes nothing."""

    signal: Signal
    actor: str
    """Who did it: `user:7`, `actor:scheduler`, `run:42`."""
    reason: str
    tag: Tag | None = None
    status: AttestationStatus | None = None
    """Of a quarantine by hand; nothing else takes it from here, trust least of all."""
    attempts: int | None = None
    deadline: datetime | None = None
    provenance_ref: str | None = None
    provenance: Mapping[str, Any] | None = None
    attestation_id: AttestationId | None = None
    challenge_issued_at: datetime | None = None
    """Of a verdict: freshness and "after the run ended" count from here."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def is_stale(deadline: datetime | None, now: datetime) -> bool:
    """Whether evidence with this deadline has run out: deadline ≤ now, everywhere."""
    return deadline is not None and deadline <= now


def advance(before: Snapshot, facts: Facts, change: Change, now: datetime) -> Snapshot:
    """Return the row after `change`, or `before` itself where nothing happens.

    Raise IllegalTransitionError where the lifecycle has no such move.
    """
    if change.signal is _S.EXPIRED and not (
        facts.running and is_stale(before.freshness_deadline, now)
    ):
        return before
    after = _Row(before, facts, change).after(now)
    if change.signal in _POWER and after == replace(
        before, version=after.version, updated_at=now
    ):
        return before
    return after


def asks_facts(before: Snapshot, change: Change) -> bool:
    """Whether `advance` looks at more than the row and the change."""
    return change.signal is _S.EXPIRED or before.lifecycle is Lifecycle.REMEDIATING


@dataclass(frozen=True, slots=True)
class _Row:
    """One application of a change: where it leads, and each column's new value."""

    before: Snapshot
    facts: Facts
    change: Change

    def after(self, now: datetime) -> Snapshot:
        before, moves_to = self.before, self._target()
        ref, provenance = self._provenance()
        # Not `replace`: for each change of a fleet, that would take twice as long.
        return Snapshot(
            instance_id=before.instance_id,
            instance_name=before.instance_name,
            server_id=before.server_id,
            server_name=before.server_name,
            owner_id=before.owner_id,
            attestation_status=self._status(),
            lifecycle=moves_to or before.lifecycle,
            remediation_state=self._tag(moves_to),
            remediation_attempts=self._attempts(),
            freshness_deadline=self._deadline(),
            provenance_ref=ref or before.provenance_ref,
            provenance=provenance or before.provenance,
            version=before.version + 1,
            updated_at=now,
        )

    def _target(self) -> Lifecycle | None:
        """Return the state moved to, None where the change moves nothing."""
        signal, current = self.change.signal, self.before.lifecycle
        target = TRANSITIONS[current].get(signal)
        if target is None:
            if signal in STAYS:
                return None
            raise IllegalTransitionError(
                f"instance {self.before.instance_id}: {signal} while {current}",
                current_lifecycle_state=current,
            )
        if (
            current is Lifecycle.REMEDIATING
            and signal in _VERDICTS
            and not self._answers_the_run()
        ):
            return None
        return target

    def _answers_the_run(self) -> bool:
        """Whether a verdict's challenge was issued after the run it judges ended."""
        ended, issued = self.facts.last_run_ended_at, self.change.challenge_issued_at
        if self.facts.active_run is not None or issued is None:
            return False
        return ended is None or issued > ended

    def _status(self) -> AttestationStatus:
        current = self.before.attestation_status
        match self.change.signal:
            case Signal.TRUSTED_VERDICT | Signal.OVERRIDDEN:
                return AttestationStatus.TRUSTED
            case Signal.UNTRUSTED_VERDICT:
                return AttestationStatus.UNTRUSTED
            case Signal.UNKNOWN_VERDICT:
                # Silence never clears a failure, and never a standing verdict.
                pending = current is AttestationStatus.PENDING
                return AttestationStatus.UNKNOWN if pending else current
            case signal if signal in _POWER or signal is Signal.RELEASED:
                trusted = current is AttestationStatus.TRUSTED
                return AttestationStatus.UNKNOWN if trusted else current
            case Signal.QUARANTINED_BY_HAND:
                asked = self.change.status
                return current if asked in {None, AttestationStatus.TRUSTED} else asked
            case _:
                return current

    def _tag(self, moves_to: Lifecycle | None) -> Tag:
        current = self.before.remediation_state
        if self.change.tag is not None:
            return self.change.tag
        if self.change.signal in _VERDICTS and self._is_under_repair(moves_to):
            return current
        return _TAGS.get(self.change.signal, current)

    def _is_under_repair(self, moves_to: Lifecycle | None) -> bool:
        # What is being done about a distrusted instance outlives a verdict on it.
        return moves_to is None and self.before.lifecycle in {
            Lifecycle.QUARANTINED,
            Lifecycle.REMEDIATING,
        }

    def _provenance(self) -> tuple[str | None, Mapping[str, Any] | None]:
        """Return what the row rests on from here; None: on what it did."""
        unknown = self.change.signal is _S.UNKNOWN_VERDICT
        if unknown and self.before.attestation_status is AttestationStatus.TRUSTED:
            return None, None  # it still rests on the evidence that was believed
        return (
            _capped(self.change.provenance_ref, PROVENANCE_REF_LIMIT),
            self.change.provenance,
        )

    def _attempts(self) -> int:
        current = self.before.remediation_attempts
        match self.change.signal:
            case Signal.TRUSTED_VERDICT:
                return 0
            case Signal.RUN_STARTED:
                return current + 1
            case _:
                return current if self.change.attempts is None else self.change.attempts

    def _deadline(self) -> datetime | None:
        signal = self.change.signal
        if signal in _POWER or self._status() is not AttestationStatus.TRUSTED:
            return None
        return self.change.deadline or self.before.freshness_deadline


def _capped(text: str | None, limit: int) -> str | None:
    return text if text is None else text[:limit]
