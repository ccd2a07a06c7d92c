"""The placement gate: may this server's VM be launched, and why not.

Notes come in the contract's order (§3). Nothing here lowers isolation to make a
launch pass, and what can't be known blocks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trustfabric.domain.accelerators import PASSING_POSTURES, posture_now
from trustfabric.domain.failures import classification_of
from trustfabric.domain.ids import HistoryId, RunId, ServerId
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.times import rfc3339
from trustfabric.domain.trust import AttestationStatus, Lifecycle, is_stale

BLOCKING_LIFECYCLES = frozenset({Lifecycle.QUARANTINED, Lifecycle.REMEDIATING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The newest instance's registry row, and the event that made it so."""

    status: AttestationStatus
    lifecycle: Lifecycle
    previous_lifecycle: Lifecycle | None
    remediation_state: str
    remediation_attempts: int
    freshness_deadline: datetime | None
    provenance_ref: str | None
    event_id: HistoryId
    reason: str


@dataclass(frozen=True, slots=True)
class ActiveRun:
    id: RunId
    status: str
    awaits_approval: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """The newest failed run, where no trusted verdict came after it."""

    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Accelerator:
    id: str
    posture: str
    reasons: tuple[str, ...]
    by_evidence: bool = False
    """It is asked for evidence of itself."""
    fresh: bool = False
    """That evidence is of the present boot, and has not run out."""


@dataclass(frozen=True, slots=True)
class HeldBy:
    """A person's hold in force: who placed it, and when it ends of itself."""

    scope: str
    by: str
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that the gate looks at, read in one statement."""

    server_id: ServerId
    trust: Trust | None
    """None: the server never had an instance."""
    running: bool = False
    terminated_at: datetime | None = None
    released_at: datetime | None = None
    active_run: ActiveRun | None = None
    failure: Failure | None = None
    holds: Sequence[str] = ()
    """Scopes of the holds in force."""
    held_by: Sequence[HeldBy] = ()
    """The same holds one by one."""
    accelerators: Sequence[Accelerator] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Which rows this is, by id and version: what a decision on it rests on."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The gate's answer; `notes` explain it either way."""

    allowed: bool
    notes: tuple[str, ...]
    stale: bool
    blocking: tuple[str, ...] = ()
    """Those of the notes that refuse; empty exactly where it is allowed."""

    @property
    def status(self) -> ServerStatus:
        """What a server whose launch is refused waits for."""
        if self.stale:
            return ServerStatus.PENDING_ATTESTATION
        return ServerStatus.PENDING_REMEDIATION


@dataclass(frozen=True, slots=True)
class _Note:
    text: str
    blocks: bool = False


def decide(
    situation: Situation, now: datetime, *, for_run: RunId | None = None
) -> Decision:
    """Say whether a launch may proceed.

    `for_run` is the run that asks for it: the instance's own active run repairs, so
    lifecycle, run and past failure don't stand in its way; holds and hardware do.
    """
    repairs = (
        for_run is not None
        and situation.active_run is not None
        and situation.active_run.id == for_run
    )
    notes = [
        *_trust_notes(situation, now, repairs=repairs),
        *_run_notes(situation, repairs=repairs),
        *_hold_notes(situation),
        *_accelerator_notes(situation, repairs=repairs),
    ]
    return Decision(
        allowed=not any(note.blocks for note in notes),
        notes=tuple(note.text for note in notes),
        stale=_is_stale(situation, now),
        blocking=tuple(note.text for note in notes if note.blocks),
    )


def kind_of(blocking: str) -> str:
    """Return what kind of note refuses, without its particulars: a closed set."""
    for prefix, (word, kept) in _KINDS.items():
        if blocking.startswith(prefix):
            parts = blocking.removeprefix(prefix).split(":")
            return word if kept is None else f"{word}:{parts[kept]}"
    return "other"


_KINDS: Mapping[str, tuple[str, int | None]] = {
    "trust:lifecycle:": ("lifecycle", 0),
    "trust:freshness-expired:": ("freshness-expired", None),
    "policy_hook:remediation_gate=active-run:": ("active-run", None),
    "policy_hook:remediation_gate=failure:": ("failure", 1),
    "policy_hook:remediation_gate=held:": ("held", 0),
    "policy_hook:accelerator_gate=": ("accelerator", None),
}
"""The word for each, and which of its parts is kept."""


def policy_notes(situation: Situation) -> tuple[str, ...]:
    """Return the policy engine's `vm:trust-*` notes on the latest trust event."""
    trust = situation.trust
    if trust is None:
        return ()
    notes = [
        f"vm:trust-event:{trust.event_id}:{trust.status}",
        f"vm:trust-reason:{trust.reason}",
        f"vm:trust-lifecycle:{trust.lifecycle}",
    ]
    if trust.previous_lifecycle is not None:
        notes.append(f"vm:trust-previous-lifecycle:{trust.previous_lifecycle}")
    notes.append(f"vm:trust-remediation-attempts:{trust.remediation_attempts}")
    if trust.freshness_deadline is not None:
        notes.append(f"vm:trust-freshness-deadline:{rfc3339(trust.freshness_deadline)}")
    if trust.provenance_ref is not None:
        notes.append(f"vm:trust-provenance:{trust.provenance_ref}")
    return tuple(notes)


def _trust_notes(
    situation: Situation, now: datetime, *, repairs: bool
) -> Iterator[_Note]:
    trust = situation.trust
    if trust is None:
        return
    yield _Note(f"trust:attestation:{trust.status}")
    yield _Note(
        f"trust:lifecycle:{trust.lifecycle}",
        blocks=_lifecycle_blocks(situation, trust) and not repairs,
    )
    if trust.freshness_deadline is not None:
        at = rfc3339(trust.freshness_deadline)
        if is_stale(trust.freshness_deadline, now):
            blocks = _is_stale(situation, now)
            yield _Note(f"trust:freshness-expired:{at}", blocks=blocks)
        else:
            yield _Note(f"trust:freshness-deadline:{at}")
    yield _Note(f"trust:remediation-state:{trust.remediation_state}")
    if trust.remediation_attempts > 0:
        yield _Note(f"trust:remediation-attempts:{trust.remediation_attempts}")
    if trust.provenance_ref is not None:
        yield _Note(f"trust:provenance:{trust.provenance_ref}")


def _lifecycle_blocks(situation: Situation, trust: Trust) -> bool:
    if trust.lifecycle not in BLOCKING_LIFECYCLES:
        return False
    ended, released = situation.terminated_at, situation.released_at
    return ended is None or released is None or released <= ended


def _is_stale(situation: Situation, now: datetime) -> bool:
    trust = situation.trust
    return (
        trust is not None
        and situation.running
        and is_stale(trust.freshness_deadline, now)
    )


def _run_notes(situation: Situation, *, repairs: bool) -> Iterator[_Note]:
    run, failure = situation.active_run, situation.failure
    if run is not None:
        yield _Note(
            f"policy_hook:remediation_gate=active-run:{run.id}:{run.status}",
            blocks=not repairs,
        )
        if run.awaits_approval:
            yield _Note(f"remediation:awaiting-approval:{run.id}")
    if failure is not None:
        kind = classification_of(failure.reason)
        # A released or re-made instance starts afresh; a living one does not.
        standing = situation.terminated_at is None and kind != "cancelled"
        yield _Note(
            f"policy_hook:remediation_gate=failure:{failure.reason}:{kind}",
            blocks=standing and not repairs,
        )
        yield _Note(
            f"remediation:last-failure-at:{failure.reason}:{rfc3339(failure.at)}"
        )


def _hold_notes(situation: Situation) -> Iterator[_Note]:
    for scope in situation.holds:
        yield _Note(f"policy_hook:remediation_gate=held:{scope}", blocks=True)
        for hold in situation.held_by:
            if hold.scope == scope:
                ends = "release" if hold.until is None else rfc3339(hold.until)
                yield _Note(f"remediation:held-by:{scope}:{hold.by}:until:{ends}")


def _accelerator_notes(situation: Situation, *, repairs: bool) -> Iterator[_Note]:
    # A repair may be what brings the evidence that is missing; not so a failure.
    running = situation.running and not repairs
    for accelerator in situation.accelerators:
        posture = posture_now(
            accelerator.posture,
            by_evidence=accelerator.by_evidence,
            fresh=accelerator.fresh,
            running=running,
        )
        if posture in PASSING_POSTURES:
            continue
        yield _Note(
            f"policy_hook:accelerator_gate={accelerator.id}:{posture}", blocks=True
        )
        yield from map(_Note, accelerator.reasons)
