"""Intelligence: how far a server's capabilities can be relied on, as a sum of terms.

Every term that counts is a line, `<what> <points>`; the lines add up to the score,
the clamp included (contract §4, docs/scoring.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from trustfabric.domain.accelerators import PASSING_POSTURES
from trustfabric.domain.failures import FailureClass, classification_of
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.times import rfc3339
from trustfabric.domain.trust import AttestationStatus, Lifecycle, is_stale

BASE = 85
LOWEST, HIGHEST = 0, 100
HEALTHY, WARNING = 80, 60
ATTEMPT, ATTEMPTS_COUNTED = -3, 3
STALE, WINDOW, WINDOWS_COUNTED = -10, -1, 10
ACCELERATOR = -10
CERTIFICATION_FAILED, CERTIFICATION_EXPIRED = -10, -5
RUNTIME = "runtime"
"""The capability that every server has."""

NAME_LIMIT, NAMES_LIMIT = 200, 64
NOTE_LIMIT = 480

_STATUS: Mapping[AttestationStatus, int] = {
    AttestationStatus.UNTRUSTED: -40,
    AttestationStatus.UNKNOWN: -10,
}
_LIFECYCLE: Mapping[Lifecycle, int] = {
    Lifecycle.QUARANTINED: -25,
    Lifecycle.REMEDIATING: -15,
    Lifecycle.SUSPECT: -5,
}
_FAILURE: Mapping[FailureClass, int] = {
    FailureClass.STRUCTURAL: -10,
    FailureClass.TRANSIENT: -5,
}


class Health(StrEnum):
    """A score in one word."""

    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"

    @classmethod
    def of(cls, score: int) -> "Health":
        if score >= HEALTHY:
            return cls.HEALTHY
        return cls.WARNING if score >= WARNING else cls.CRITICAL


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustFacts:
    """The registry row of the instance that counts."""

    instance_id: InstanceId
    status: AttestationStatus
    lifecycle: Lifecycle
    attempts: int
    freshness_deadline: datetime | None
    provenance_ref: str | None
    version: int


@dataclass(frozen=True, slots=True)
class CertificationFacts:
    id: int
    status: str
    valid_until: datetime | None
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that the scores of one server depend on, read in one statement."""

    server_id: ServerId
    capabilities: Sequence[str]
    backend: str | None = None
    tier: str | None = None
    trust: TrustFacts | None = None
    """None: nothing runs, and nothing distrusted was left behind."""
    accelerators: Mapping[str, str] | None = None
    """Each one's posture."""
    certifications: Sequence[CertificationFacts] = ()
    failure: str | None = None
    """Why the newest run failed, where no trusted verdict came after it."""
    gone: bool = False
    """The server was deleted: it has no scores."""


@dataclass(frozen=True, slots=True)
class Term:
    """One line of a score."""

    text: str
    points: int

    def __str__(self) -> str:
        return f"{self.text[:NOTE_LIMIT]} {self.points:+d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What is told of each capability of a server."""

    score: int
    status: Health
    confidence: float
    notes: tuple[str, ...]
    evidence: Mapping[str, Any]


def capabilities_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the capabilities that a server's config lists, and `runtime`, in order."""
    listed = config.get("capabilities")
    names = listed if isinstance(listed, list) else []
    texts = (name for name in names if isinstance(name, str) and name)
    unique = dict.fromkeys(text[:NAME_LIMIT] for text in texts if text != RUNTIME)
    return (*list(unique)[:NAMES_LIMIT], RUNTIME)


def terms(inputs: Inputs, now: datetime, window: timedelta) -> list[Term]:
    """Return every term that counts, the base first, the clamp last.

    `window` is how long evidence is fresh.
    """
    found = [
        Term("base", BASE),
        *_trust_terms(inputs.trust, now, window),
        *_accelerator_terms(inputs),
        *_certification_terms(inputs, now),
        *_policy_terms(inputs),
    ]
    total = sum(term.points for term in found)
    clamped = min(HIGHEST, max(LOWEST, total))
    if clamped != total:
        found.append(Term("clamp", clamped - total))
    return found


def score(inputs: Inputs, now: datetime, window: timedelta) -> Score:
    """Score a server as it is now."""
    counted = terms(inputs, now, window)
    points = sum(term.points for term in counted)
    return Score(
        score=points,
        status=Health.of(points),
        confidence=_confidence(inputs.trust, now),
        notes=tuple(map(str, counted)),
        evidence=_evidence(inputs, now),
    )


def changes_at(inputs: Inputs, now: datetime, window: timedelta) -> datetime | None:
    """Return when the score becomes another though nothing happens; None: never."""
    moments = [
        one.valid_until
        for one in inputs.certifications
        if one.status == "pass" and one.valid_until is not None
    ]
    deadline = None if inputs.trust is None else inputs.trust.freshness_deadline
    if deadline is not None:
        missed = _missed(deadline, now, window)
        if not is_stale(deadline, now):
            moments.append(deadline)
        elif missed < WINDOWS_COUNTED:
            moments.append(deadline + (missed + 1) * window)
    return min((moment for moment in moments if moment > now), default=None)


def _trust_terms(
    trust: TrustFacts | None, now: datetime, window: timedelta
) -> Iterator[Term]:
    if trust is None:
        return
    if trust.status in _STATUS:
        yield Term(f"attestation:{trust.status}", _STATUS[trust.status])
    if trust.lifecycle in _LIFECYCLE:
        yield Term(f"lifecycle:{trust.lifecycle}", _LIFECYCLE[trust.lifecycle])
    if trust.attempts > 0:
        counted = min(trust.attempts, ATTEMPTS_COUNTED)
        yield Term(f"remediation-attempts:{trust.attempts}", ATTEMPT * counted)
    deadline = trust.freshness_deadline
    if deadline is not None and is_stale(deadline, now):
        yield Term(f"freshness:expired:{rfc3339(deadline)}", STALE)
        missed = _missed(deadline, now, window)
        if missed > 0:
            counted = min(missed, WINDOWS_COUNTED)
            yield Term(f"freshness:windows-missed:{counted}", WINDOW * counted)


def _accelerator_terms(inputs: Inputs) -> Iterator[Term]:
    blocking = [
        f"{name}={posture}"
        for name, posture in sorted((inputs.accelerators or {}).items())
        if posture not in PASSING_POSTURES
    ]
    if blocking:
        yield Term(f"accelerators:{','.join(blocking)}", ACCELERATOR)


def _certification_terms(inputs: Inputs, now: datetime) -> Iterator[Term]:
    failed = [one.id for one in inputs.certifications if one.status == "fail"]
    expired = [one.id for one in inputs.certifications if _has_expired(one, now)]
    if failed:
        yield Term(f"certification:fail:{failed[0]}", CERTIFICATION_FAILED)
    elif expired:
        yield Term(f"certification:expired:{expired[0]}", CERTIFICATION_EXPIRED)


def _has_expired(certification: CertificationFacts, now: datetime) -> bool:
    return certification.status == "pass" and is_stale(certification.valid_until, now)


def _policy_terms(inputs: Inputs) -> Iterator[Term]:
    if inputs.failure is None:
        return
    kind = classification_of(inputs.failure)
    if kind in _FAILURE:
        yield Term(f"policy:failure:{inputs.failure}:{kind}", _FAILURE[kind])


def _missed(deadline: datetime, now: datetime, window: timedelta) -> int:
    """Return how many full freshness windows went by since the deadline."""
    return max(0, (now - deadline) // window)


def _confidence(trust: TrustFacts | None, now: datetime) -> float:
    """Return how much of the score rests on evidence that holds now."""
    if trust is None:
        return 0.25
    decided = {AttestationStatus.TRUSTED, AttestationStatus.UNTRUSTED}
    fresh = trust.status in decided and not is_stale(trust.freshness_deadline, now)
    return 1.0 if fresh else 0.5


def _evidence(inputs: Inputs, now: datetime) -> dict[str, Any]:
    trust = inputs.trust
    deadline = None if trust is None else trust.freshness_deadline
    return {
        "vm_instance_id": trust and trust.instance_id,
        "registry_version": trust and trust.version,
        "attestation_status": trust and trust.status,
        "lifecycle_state": trust and trust.lifecycle,
        "remediation_attempts": 0 if trust is None else trust.attempts,
        "freshness_deadline": deadline and rfc3339(deadline),
        "stale": is_stale(deadline, now),
        "provenance_ref": trust and trust.provenance_ref,
        "accelerators": dict(inputs.accelerators or {}),
        "certifications": [
            {"id": one.id, "status": one.status, "version": one.version}
            for one in inputs.certifications
        ],
        "failure_reason": inputs.failure,
    }
