"""Refreshes of certifications: when, what stops them, and what a verdict makes of them.

`step` looks at one certification as it stands and names the next thing to do about
it, or nothing. It is asked until it names nothing, so whoever comes later, after a
crash or in another runtime, goes on from what is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from trustfabric.domain.evaluations import (
    Certification,
    CertificationStatus,
    Job,
    JobStatus,
    with_note,
)
from trustfabric.domain.ids import AttestationId, ChallengeId, InstanceId
from trustfabric.domain.placement import BLOCKING_LIFECYCLES, Decision, Situation
from trustfabric.domain.times import rfc3339
from trustfabric.domain.trust import AttestationStatus

VETO = "policy_hook:remediation_gate="

JITTER = 0.1
"""Up to this part of the cadence a refresh comes early, so that a fleet spreads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What answers a refresh: of the challenge that it issued, or of one as late."""

    attestation_id: AttestationId
    challenge_id: ChallengeId
    instance_id: InstanceId
    kind: str
    status: AttestationStatus
    code: str | None
    issued_at: datetime
    verified_at: datetime
    fresh_until: datetime | None
    nonce_sha256: str
    evidence_sha256: str | None
    notes: tuple[str, ...]

    def evidence(self) -> dict[str, Any]:
        """Return what the certification keeps as its evidence."""
        return {
            "attestation_id": self.attestation_id,
            "kind": self.kind,
            "status": self.status,
            "code": self.code,
            "verified_at": rfc3339(self.verified_at),
            "fresh_until": self.fresh_until and rfc3339(self.fresh_until),
            "evidence_sha256": self.evidence_sha256,
            "notes": list(self.notes),
        }

    def lineage(self, job: Job) -> dict[str, Any]:
        """Return where that evidence came from, step by step."""
        return {
            "refresh_job_id": job.id,
            "attempt": job.attempts,
            "vm_instance_id": self.instance_id,
            "challenge_id": self.challenge_id,
            "nonce_sha256": self.nonce_sha256,
            "issued_at": rfc3339(self.issued_at),
            "verified_at": rfc3339(self.verified_at),
            "attestation_id": self.attestation_id,
            "provenance_ref": f"attestation:{self.kind}:{self.attestation_id}",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One certification and all that its next step depends on."""

    certification: Certification
    job: Job | None
    verdict: Verdict | None = None
    veto: str | None = None
    """Why its server may not be certified now; None: nothing stands against it."""
    trust_status: AttestationStatus | None = None
    trust_attempts: int = 0
    challengeable: InstanceId | None = None
    """Its running, trusted VM, where this runtime looks after it."""
    is_gone: bool = False
    """Its server was deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshSettings:
    """How certifications are refreshed."""

    cadence: timedelta
    """Of those that state none of their own, and of the checks of blocked ones."""
    look_ahead: timedelta
    lease: timedelta
    """How long a challenge may take before it is asked anew."""
    attempts: int = 3
    backoff: timedelta = timedelta(seconds=15)
    """Doubled with each attempt that reached no verdict."""

    def cadence_of(self, certification: Certification) -> timedelta:
        if certification.cadence_s is None:
            return self.cadence
        return timedelta(seconds=certification.cadence_s)


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Put a refresh on its way."""

    not_before: datetime


@dataclass(frozen=True, slots=True)
class Claim:
    """Take the queued refresh under a lease and challenge the VM."""

    instance_id: InstanceId
    until: datetime


@dataclass(frozen=True, slots=True)
class Requeue:
    """Let the claimed refresh wait for another attempt."""

    not_before: datetime
    error: str


@dataclass(frozen=True, slots=True)
class End:
    """The refresh is over."""

    status: JobStatus
    error: str | None = None


Action: TypeAlias = Enqueue | Claim | Requeue | End


@dataclass(frozen=True, slots=True)
class Step:
    """The certification after it, and what happens to its refresh."""

    after: Certification
    action: Action | None = None


def veto_of(situation: Situation, decision: Decision) -> str | None:
    """Return why a server's certifications are not refreshed now, in one note.

    A cancelled run vetoes nothing, and neither does stale evidence or hardware: a
    refresh is what renews the one, and says nothing of the other.
    """
    if not decision.allowed:
        for note in decision.notes:
            if note.startswith(VETO) and not note.endswith(":cancelled"):
                return note
    trust = situation.trust
    if trust is None or _was_let_go(situation):
        return None
    if trust.status is AttestationStatus.UNTRUSTED:
        return f"trust:attestation:{trust.status}"
    if trust.lifecycle in BLOCKING_LIFECYCLES:
        return f"trust:lifecycle:{trust.lifecycle}"
    return None


def _was_let_go(situation: Situation) -> bool:
    """Whether the distrusted instance is gone, and a person released its server."""
    ended, released = situation.terminated_at, situation.released_at
    return ended is not None and released is not None and released > ended


@dataclass(frozen=True, slots=True)
class Moment:
    """When a step is decided, and by which settings."""

    now: datetime
    settings: RefreshSettings
    jitter: float
    """In 0 … 1: how much of `JITTER` counts."""

    def next_refresh(self, certification: Certification) -> datetime | None:
        """Return when it is due once more; None: not by the clock."""
        if certification.next_refresh_at is None:
            return None
        cadence = self.settings.cadence_of(certification)
        return self.now + cadence * (1 - JITTER * self.jitter)


def step(case: Case, at: Moment) -> Step | None:
    """Return the next thing to do, or None where all is as it should be."""
    if case.is_gone:
        return _cancelled(case, "its server was deleted")
    if case.verdict is not None and case.job is not None:
        return _concluded(case, case.job, case.verdict, at)
    if case.veto is not None:
        return _blocked(case, case.veto, at)
    if case.certification.blocked_reason is not None:
        return _resumed(case, at.now)
    return _moved_on(case, at)


def _moved_on(case: Case, at: Moment) -> Step | None:
    if case.job is None:
        return _enqueued(case.certification, at)
    if case.job.status is JobStatus.CLAIMED:
        return _if_lost(case.certification, case.job, at)
    return _claimed(case, case.job, at)


def _cancelled(case: Case, why: str) -> Step | None:
    if case.job is None:
        return None
    return Step(case.certification, End(JobStatus.CANCELLED, why))


def _concluded(case: Case, job: Job, verdict: Verdict, at: Moment) -> Step:
    before = case.certification
    seen = replace(
        before,
        last_attestation_status=verdict.status,
        remediation_attempts=case.trust_attempts,
    )
    if verdict.status not in {AttestationStatus.TRUSTED, AttestationStatus.UNTRUSTED}:
        return _tried(seen, job, at, f"no verdict: {verdict.code or verdict.status}")
    accepted = verdict.status is AttestationStatus.TRUSTED
    cadence = at.settings.cadence_of(before)
    after = replace(
        seen,
        status=CertificationStatus.PASS if accepted else CertificationStatus.FAIL,
        evidence=verdict.evidence(),
        evidence_lineage=_with_lineage(before.evidence_lineage, verdict.lineage(job)),
        valid_from=verdict.issued_at if accepted else before.valid_from,
        # One refresh may be missed before a certification runs out.
        valid_until=verdict.issued_at + 2 * cadence if accepted else at.now,
        next_refresh_at=at.next_refresh(before),
    )
    return Step(after, End(JobStatus.DONE))


def _with_lineage(before: Any, attestation: Mapping[str, Any]) -> dict[str, Any]:
    """Put the newest attestation beside what people noted; never over it."""
    kept = before if isinstance(before, dict) else {}
    if before is not None and not isinstance(before, dict):
        kept = {"noted": before}
    return {**kept, "attestation": dict(attestation)}


def _tried(certification: Certification, job: Job, at: Moment, error: str) -> Step:
    if job.attempts < at.settings.attempts:
        wait = at.settings.backoff * 2 ** max(0, job.attempts - 1)
        return Step(certification, Requeue(at.now + wait, error))
    after = replace(certification, next_refresh_at=at.next_refresh(certification))
    return Step(after, End(JobStatus.FAILED, error))


def _blocked(case: Case, veto: str, at: Moment) -> Step | None:
    before, now = case.certification, at.now
    is_new = before.blocked_reason is None
    after = replace(
        before,
        blocked_reason=veto,
        fallback_launched_at=before.fallback_launched_at or now,
    )
    if before.blocked_reason != veto:
        after = replace(
            after,
            governance_notes=with_note(
                before.governance_notes, f"refresh blocked: {veto}", now
            ),
            status=_status_under(case),
            last_attestation_status=case.trust_status or before.last_attestation_status,
            remediation_attempts=case.trust_attempts,
        )
    due = before.next_refresh_at
    if before.is_unplanned or (due is not None and (is_new or due <= now)):
        after = replace(after, next_refresh_at=now + at.settings.cadence)
    if case.job is not None:
        return Step(after, End(JobStatus.CANCELLED, veto))
    return None if after == before else Step(after)


def _status_under(case: Case) -> CertificationStatus:
    # `pass` is never said of what is known to be untrusted.
    if case.trust_status is AttestationStatus.UNTRUSTED:
        return CertificationStatus.FAIL
    return case.certification.status


def _resumed(case: Case, now: datetime) -> Step:
    before = case.certification
    after = replace(
        before,
        blocked_reason=None,
        fallback_launched_at=None,
        governance_notes=with_note(before.governance_notes, "refresh resumed", now),
        # Overdue since then: the verdict that restored it is evidence enough.
        next_refresh_at=before.next_refresh_at and (before.fallback_launched_at or now),
        last_attestation_status=case.trust_status or before.last_attestation_status,
        remediation_attempts=case.trust_attempts,
    )
    return Step(after)


def _enqueued(before: Certification, at: Moment) -> Step | None:
    # Due since it was made, so that the verdict of its VM's first boot will do.
    made = min(before.created_at, at.now)
    due = made if before.is_unplanned else before.next_refresh_at
    if due is None or due > at.now + at.settings.look_ahead:
        return None
    return Step(replace(before, next_refresh_at=due), Enqueue(due))


def _if_lost(certification: Certification, job: Job, at: Moment) -> Step | None:
    if job.lease_expires_at is not None and job.lease_expires_at > at.now:
        return None
    return _tried(certification, job, at, "no verdict in time")


def _claimed(case: Case, job: Job, at: Moment) -> Step | None:
    too_early = job.not_before is not None and job.not_before > at.now
    if too_early or case.challengeable is None:
        return None
    claim = Claim(case.challengeable, at.now + at.settings.lease)
    return Step(case.certification, claim)
