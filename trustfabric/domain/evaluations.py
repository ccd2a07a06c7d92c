"""Certifications of servers: what is kept of each, and what people change of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NewType

from trustfabric.domain.ids import ServerId
from trustfabric.domain.times import rfc3339
from trustfabric.domain.trust import AttestationStatus

CertificationId = NewType("CertificationId", int)
JobId = NewType("JobId", int)

NOTES_LIMIT = 500
"""Of one note, in characters."""

NOTES_KEPT = 20
"""Of the scheduler's own notes; the oldest goes first, what people wrote stays."""

_MARK = " scheduler: "


class CertificationStatus(StrEnum):
    """What the newest evidence says of a certification."""

    PENDING = "pending"
    PASS = "pass"  # noqa: S105
    FAIL = "fail"


class JobStatus(StrEnum):
    """Where a refresh stands."""

    QUEUED = "queued"
    CLAIMED = "claimed"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certification:
    """One row of `evaluation_certifications`."""

    id: CertificationId
    server_id: ServerId
    artifact_id: str | None
    tier: str
    policy_requirement: str
    manifest_digest: str | None
    status: CertificationStatus
    evidence: Any
    evidence_source: Any
    evidence_lineage: Any
    valid_from: datetime | None
    valid_until: datetime | None
    cadence_s: int | None
    """None: the configured cadence."""
    next_refresh_at: datetime | None
    """None: it is not refreshed by the clock."""
    governance_notes: str | None
    blocked_reason: str | None
    """What the last note on a block said; None: refreshes go on."""
    last_attestation_status: AttestationStatus | None
    fallback_launched_at: datetime | None
    remediation_attempts: int
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def is_unplanned(self) -> bool:
        """Nobody has said yet when it is due: it is new, so now."""
        return self.next_refresh_at is None and self.version == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The refresh that is on its way: queued or claimed."""

    id: JobId
    status: JobStatus
    attempts: int
    not_before: datetime | None
    lease_expires_at: datetime | None


def with_note(before: str | None, text: str, now: datetime) -> str:
    """Add a line of the scheduler's; its oldest goes where there are too many."""
    line = f"{rfc3339(now)}{_MARK}{text}"[:NOTES_LIMIT]
    lines = [*(before.splitlines() if before else ()), line]
    own = [at for at, each in enumerate(lines) if _MARK in each]
    dropped = set(own[:-NOTES_KEPT])
    return "\n".join(each for at, each in enumerate(lines) if at not in dropped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What people change of a certification: only the fields named in `values`.

    The names are `Certification`'s, one of `EDITABLE`; None clears.
    """

    values: Mapping[str, Any]


EDITABLE = frozenset(
    {
        "cadence_s",
        "next_refresh_at",
        "governance_notes",
        "evidence_source",
        "evidence_lineage",
    }
)


def edited(before: Certification, edit: Edit, now: datetime) -> Certification:
    """Return the certification after an edit; a shorter cadence counts from now on."""
    assert edit.values.keys() <= EDITABLE
    after = replace(before, **edit.values)
    if "next_refresh_at" in edit.values:
        # Who says "never" of a new one has said when: it is not to be planned any more.
        return (
            replace(after, version=before.version + 1) if after.is_unplanned else after
        )
    due = now if before.is_unplanned else after.next_refresh_at
    if due is not None and edit.values.get("cadence_s") is not None:
        due = min(due, now + timedelta(seconds=edit.values["cadence_s"]))
    return replace(after, next_refresh_at=due)
