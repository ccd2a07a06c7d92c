"""Certifications: the statements, and the rows as values.

Whoever writes a certification, or its refresh (refreshes.py), holds its row lock, in
every runtime on the database, and decides on what it reads under that lock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.evaluations import (
    Certification,
    CertificationId,
    CertificationStatus,
    Job,
    JobId,
    JobStatus,
)
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import AttestationStatus, Lifecycle

Row = Mapping[str, Any]

_COLUMNS: LiteralString = """
    c.id, c.server_id, c.artifact_id, c.tier, c.policy_requirement,
    c.manifest_digest, c.status, c.evidence, c.evidence_source, c.evidence_lineage,
    c.valid_from, c.valid_until, c.refresh_cadence_seconds, c.next_refresh_at,
    c.governance_notes, c.blocked_reason, c.last_attestation_status,
    c.fallback_launched_at, c.remediation_attempts, c.version, c.created_at,
    c.updated_at
"""

NEWEST_INSTANCE: LiteralString = """
  JOIN servers s ON s.id = c.server_id
  LEFT JOIN LATERAL (
       SELECT n.* FROM runtime_vm_instances n
        WHERE n.server_id = s.id ORDER BY n.id DESC LIMIT 1) i ON true
  LEFT JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = i.id
  LEFT JOIN evaluation_refresh_jobs j
         ON j.certification_id = c.id AND j.status IN ('queued', 'claimed')
"""

_LOCK_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """
  FROM evaluation_certifications c
  JOIN servers s ON s.id = c.server_id
 WHERE c.id = %(id)s
   AND (%(owner_id)s::bigint IS NULL
        OR s.owner_id = %(owner_id)s AND s.deleted_at IS NULL)
   FOR NO KEY UPDATE OF c
"""
)
_LOCK_FREE_SQL: LiteralString = _LOCK_SQL + " SKIP LOCKED"


async def lock(
    conn: Connection,
    certification_id: CertificationId,
    owner_id: OwnerId | None = None,
    *,
    skip: bool = False,
) -> Certification | None:
    """Lock a certification; None where it isn't, or isn't this owner's.

    `skip`: None as well where somebody else has it in hand, rather than wait.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _LOCK_FREE_SQL if skip else _LOCK_SQL,
            {"id": certification_id, "owner_id": owner_id},
        )
        row = await cursor.fetchone()
    return None if row is None else _certification(row)


_SAVE_SQL: LiteralString = (
    """
UPDATE evaluation_certifications c
   SET status = %(status)s, evidence = %(evidence)s,
       evidence_source = %(source)s, evidence_lineage = %(lineage)s,
       valid_from = %(valid_from)s, valid_until = %(valid_until)s,
       refresh_cadence_seconds = %(cadence_s)s, next_refresh_at = %(next_refresh)s,
       governance_notes = %(notes)s, blocked_reason = %(blocked)s,
       last_attestation_status = %(attested)s, fallback_launched_at = %(fallback)s,
       remediation_attempts = %(attempts)s, version = c.version + 1,
       updated_at = %(now)s
 WHERE c.id = %(id)s
RETURNING"""
    + _COLUMNS
)


async def save(conn: Connection, after: Certification, now: datetime) -> Certification:
    """Write a locked certification as it is now, one version on."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _SAVE_SQL,
            {
                "id": after.id,
                "status": after.status,
                "evidence": _json(after.evidence),
                "source": _json(after.evidence_source),
                "lineage": _json(after.evidence_lineage),
                "valid_from": after.valid_from,
                "valid_until": after.valid_until,
                "cadence_s": after.cadence_s,
                "next_refresh": after.next_refresh_at,
                "notes": after.governance_notes,
                "blocked": after.blocked_reason,
                "attested": after.last_attestation_status,
                "fallback": after.fallback_launched_at,
                "attempts": after.remediation_attempts,
                "now": now,
            },
        )
        row = await cursor.fetchone()
    assert row is not None  # its row is locked
    return _certification(row)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificationFilter:
    """What a list is narrowed to; None means any."""

    owner_id: OwnerId | None = None
    server_id: ServerId | None = None
    status: CertificationStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A certification with the trust of its server's newest instance."""

    certification: Certification
    instance_id: InstanceId | None
    attestation_status: AttestationStatus | None
    lifecycle: Lifecycle | None
    attempts: int
    freshness_deadline: datetime | None
    provenance_ref: str | None
    job: Job | None


_STANDING_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + """,
       i.id AS instance_id, r.attestation_status, r.lifecycle_state,
       coalesce(r.remediation_attempts, c.remediation_attempts) AS trust_attempts,
       r.freshness_deadline, r.provenance_ref, j.id AS job_id,
       j.status AS job_status, j.attempts, j.not_before, j.lease_expires_at
  FROM evaluation_certifications c"""
    + NEWEST_INSTANCE
    + """
 WHERE s.deleted_at IS NULL
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
   AND (%(server_id)s::bigint IS NULL OR c.server_id = %(server_id)s)
   AND (%(status)s::text IS NULL OR c.status = %(status)s)
   AND (%(id)s::bigint IS NULL OR c.id = %(id)s)
   AND c.id > %(after)s
 ORDER BY c.id
 LIMIT %(limit)s
"""
)


async def list_standings(
    conn: Connection,
    wanted: CertificationFilter,
    *,
    only: CertificationId | None = None,
    after: int = 0,
    limit: int = 100,
) -> list[Standing]:
    """Return certifications of living servers by id, from beyond `after`."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _STANDING_SQL,
            {
                "owner_id": wanted.owner_id,
                "server_id": wanted.server_id,
                "status": wanted.status,
                "id": only,
                "after": after,
                "limit": limit,
            },
        )
        return [_standing(row) for row in await cursor.fetchall()]


async def get_standing(
    conn: Connection, owner_id: OwnerId | None, certification_id: CertificationId
) -> Standing | None:
    """Return one certification; None where it isn't, or isn't this owner's."""
    wanted = CertificationFilter(owner_id=owner_id)
    found = await list_standings(conn, wanted, only=certification_id, limit=1)
    return found[0] if found else None


def _certification(row: Row) -> Certification:
    attested = row["last_attestation_status"]
    return Certification(
        id=CertificationId(row["id"]),
        server_id=ServerId(row["server_id"]),
        artifact_id=row["artifact_id"],
        tier=row["tier"],
        policy_requirement=row["policy_requirement"],
        manifest_digest=row["manifest_digest"],
        status=CertificationStatus(row["status"]),
        evidence=row["evidence"],
        evidence_source=row["evidence_source"],
        evidence_lineage=row["evidence_lineage"],
        valid_from=row["valid_from"],
        valid_until=row["valid_until"],
        cadence_s=row["refresh_cadence_seconds"],
        next_refresh_at=row["next_refresh_at"],
        governance_notes=row["governance_notes"],
        blocked_reason=row["blocked_reason"],
        last_attestation_status=None
        if attested is None
        else AttestationStatus(attested),
        fallback_launched_at=row["fallback_launched_at"],
        remediation_attempts=row["remediation_attempts"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def read_job(row: Row) -> Job | None:
    """Read `job_id`, `job_status` and so on of a row; None where it names none."""
    if row["job_id"] is None:
        return None
    return Job(
        id=JobId(row["job_id"]),
        status=JobStatus(row["job_status"]),
        attempts=row["attempts"],
        not_before=row["not_before"],
        lease_expires_at=row["lease_expires_at"],
    )


def _standing(row: Row) -> Standing:
    instance, status = row["instance_id"], row["attestation_status"]
    lifecycle = row["lifecycle_state"]
    return Standing(
        certification=_certification(row),
        instance_id=None if instance is None else InstanceId(instance),
        attestation_status=None if status is None else AttestationStatus(status),
        lifecycle=None if lifecycle is None else Lifecycle(lifecycle),
        attempts=row["trust_attempts"],
        freshness_deadline=row["freshness_deadline"],
        provenance_ref=row["provenance_ref"],
        job=read_job(row),
    )


def _json(value: Any) -> Jsonb | None:
    return None if value is None else Jsonb(value)
