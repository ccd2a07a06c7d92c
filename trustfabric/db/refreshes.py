"""Refreshes of certifications: what there is to do, and the queue that it stands in."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg.rows import dict_row

from trustfabric.db.evaluations import NEWEST_INSTANCE, read_job
from trustfabric.db.session import Connection
from trustfabric.domain.evaluations import (
    Certification,
    CertificationId,
    JobId,
    JobStatus,
)
from trustfabric.domain.ids import AttestationId, ChallengeId, InstanceId, ServerId
from trustfabric.domain.refreshes import (
    Action,
    Case,
    Claim,
    End,
    Enqueue,
    Requeue,
    Verdict,
)
from trustfabric.domain.trust import AttestationStatus

# Only what is trusted is challenged for this: a suspect one is being challenged as it
# is, and what is distrusted is not refreshed.
_HERE: LiteralString = """
    (i.terminated_at IS NULL AND i.desired_state = 'running'
     AND i.power_state = 'running' AND i.runtime_owner = %(runtime)s
     AND r.lifecycle_state = 'restored')
"""

# Of a refresh that waits, any trusted verdict since it was due is the answer; of one
# that was claimed, whatever came of a later challenge.
_ANSWERS: LiteralString = """
      FROM attestation_challenges q
      JOIN runtime_vm_attestations a ON a.id = q.attestation_id
     WHERE q.runtime_vm_instance_id = i.id AND q.accelerator_id IS NULL
       AND CASE j.status
           WHEN 'claimed' THEN q.id > j.asked_after
           ELSE q.issued_at > j.not_before AND a.verification_status = 'trusted'
                AND r.lifecycle_state = 'restored' END
"""

_OF_SERVERS_SQL: LiteralString = (
    "SELECT c.id FROM evaluation_certifications c"
    + NEWEST_INSTANCE
    + """
 WHERE c.id > %(after)s AND c.server_id = ANY(%(servers)s)
   AND CASE
       WHEN s.deleted_at IS NOT NULL THEN j.id IS NOT NULL
       WHEN c.blocked_reason IS NOT NULL THEN
            j.id IS NOT NULL OR c.next_refresh_at <= %(now)s
            OR i.terminated_at IS NOT NULL
            OR (r.lifecycle_state IN ('suspect', 'restored')
                AND r.attestation_status <> 'untrusted')
       ELSE j.id IS NULL AND (
                c.next_refresh_at <= %(due_before)s
                OR c.next_refresh_at IS NULL AND c.version = 1)
            OR r.attestation_status = 'untrusted'
            OR r.lifecycle_state IN ('quarantined', 'remediating')
            OR j.status = 'queued' AND coalesce(j.not_before <= %(now)s, true) AND"""
    + _HERE
    + """
            OR j.status = 'claimed' AND j.lease_expires_at <= %(now)s
            OR j.id IS NOT NULL AND EXISTS (SELECT 1"""
    + _ANSWERS
    + """)
            OR j.id IS NOT NULL AND EXISTS (
                SELECT 1 FROM runtime_vm_remediation_runs a
                 WHERE a.runtime_vm_instance_id = i.id
                   AND a.status IN ('pending', 'running'))
       END
 ORDER BY c.id
 LIMIT %(limit)s
"""
)


# The same of all servers, from where each kind of work shows: no scan of the fleet.
# A past failure, which only the gate sees, is met when a refresh would be claimed.
_EVERYWHERE_SQL: LiteralString = (
    """
WITH found AS (
    SELECT c.id FROM evaluation_refresh_jobs w
      JOIN evaluation_certifications c ON c.id = w.certification_id"""
    + NEWEST_INSTANCE
    + """
     WHERE w.status = 'queued' AND w.not_before <= %(now)s AND j.id = w.id
       AND c.blocked_reason IS NULL
       AND (s.deleted_at IS NOT NULL OR"""
    + _HERE
    + """
            OR EXISTS (SELECT 1"""
    + _ANSWERS
    + """))
  UNION ALL
    SELECT c.id FROM evaluation_refresh_jobs w
      JOIN evaluation_certifications c ON c.id = w.certification_id"""
    + NEWEST_INSTANCE
    + """
     WHERE w.status = 'claimed' AND j.id = w.id
       AND (w.lease_expires_at <= %(now)s OR s.deleted_at IS NOT NULL
            OR EXISTS (SELECT 1"""
    + _ANSWERS
    + """))
  UNION ALL
    SELECT c.id FROM evaluation_certifications c"""
    + NEWEST_INSTANCE
    + """
     WHERE c.blocked_reason IS NOT NULL AND s.deleted_at IS NULL
       AND (j.id IS NOT NULL OR c.next_refresh_at <= %(now)s
            OR i.terminated_at IS NOT NULL
            OR (r.lifecycle_state IN ('suspect', 'restored')
                AND r.attestation_status <> 'untrusted'
                AND NOT EXISTS (
                    SELECT 1 FROM trust_holds o
                     WHERE o.released_at IS NULL AND o.incident_id IS NULL
                       AND (o.until IS NULL OR o.until > %(now)s)
                       AND (o.scope = 'all' OR o.owner_id = s.owner_id
                            OR o.runtime_vm_instance_id = i.id))))
  UNION ALL
    SELECT c.id FROM evaluation_certifications c
      JOIN servers s ON s.id = c.server_id
     WHERE c.blocked_reason IS NULL AND s.deleted_at IS NULL
       AND (c.next_refresh_at <= %(due_before)s
            OR c.next_refresh_at IS NULL AND c.version = 1)
       AND NOT EXISTS (
           SELECT 1 FROM evaluation_refresh_jobs j
            WHERE j.certification_id = c.id AND j.status IN ('queued', 'claimed'))
  UNION ALL
    SELECT c.id
      FROM runtime_vm_trust_registry r
      JOIN runtime_vm_instances i ON i.id = r.runtime_vm_instance_id
      JOIN servers s ON s.id = i.server_id AND s.deleted_at IS NULL
      JOIN evaluation_certifications c ON c.server_id = s.id
     WHERE (r.lifecycle_state IN ('quarantined', 'remediating')
            OR r.attestation_status = 'untrusted')
       AND c.blocked_reason IS NULL
       AND coalesce(s.released_at > i.terminated_at, false) IS FALSE
       AND NOT EXISTS (SELECT 1 FROM runtime_vm_instances n
                        WHERE n.server_id = i.server_id AND n.id > i.id)
  UNION ALL
    SELECT c.id
      FROM runtime_vm_remediation_runs a
      JOIN runtime_vm_instances i ON i.id = a.runtime_vm_instance_id
      JOIN evaluation_certifications c ON c.server_id = i.server_id
      JOIN evaluation_refresh_jobs j
        ON j.certification_id = c.id AND j.status IN ('queued', 'claimed')
     WHERE a.status IN ('pending', 'running') AND c.blocked_reason IS NULL
  UNION ALL
    SELECT c.id FROM evaluation_refresh_jobs w
      JOIN evaluation_certifications c ON c.id = w.certification_id"""
    + NEWEST_INSTANCE
    + """
     WHERE EXISTS (SELECT 1 FROM trust_holds
                    WHERE released_at IS NULL AND incident_id IS NULL)
       AND w.status IN ('queued', 'claimed') AND j.id = w.id
       AND c.blocked_reason IS NULL
       AND EXISTS (
           SELECT 1 FROM trust_holds o
            WHERE o.released_at IS NULL AND o.incident_id IS NULL
              AND (o.until IS NULL OR o.until > %(now)s)
              AND (o.scope = 'all' OR o.owner_id = s.owner_id
                   OR o.runtime_vm_instance_id = i.id))
)
SELECT DISTINCT id FROM found WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Which certifications are looked through, a page at a time."""

    runtime: str
    look_ahead: timedelta
    servers: Collection[ServerId] | None = None
    """Only theirs; None: all."""
    after: int = 0
    """Where the last page ended."""
    limit: int


async def list_candidates(
    conn: Connection, search: Search, now: datetime
) -> list[CertificationId]:
    """Return certifications about which there may be something to do, by id."""
    given = {
        "runtime": search.runtime,
        "now": now,
        "due_before": now + search.look_ahead,
        "after": search.after,
        "limit": search.limit,
    }
    if search.servers is None:
        cursor = await conn.execute(_EVERYWHERE_SQL, given)
    else:
        given["servers"] = sorted(search.servers)
        cursor = await conn.execute(_OF_SERVERS_SQL, given)
    return [CertificationId(row[0]) for row in await cursor.fetchall()]


_CASE_SQL: LiteralString = (
    """
SELECT s.deleted_at IS NOT NULL AS is_gone,
       r.attestation_status, r.remediation_attempts,
       CASE WHEN"""
    + _HERE
    + """THEN i.id END AS challengeable,
       j.id AS job_id, j.status AS job_status, j.attempts, j.not_before,
       j.lease_expires_at, v.*
  FROM evaluation_certifications c"""
    + NEWEST_INSTANCE
    + """
  LEFT JOIN LATERAL (
       SELECT a.id AS attestation_id, q.id AS challenge_id,
              q.runtime_vm_instance_id AS instance_id, a.attestation_kind,
              a.verification_status, q.outcome, q.issued_at,
              coalesce(q.used_at, q.issued_at) AS verified_at,
              a.freshness_expires_at, encode(q.nonce_digest, 'hex') AS nonce_sha256,
              encode(sha256(a.raw_quote), 'hex') AS evidence_sha256,
              a.verification_notes"""
    + _ANSWERS
    + """
        ORDER BY q.id DESC LIMIT 1) v ON true
 WHERE c.id = %(id)s
"""
)


async def read_case(
    conn: Connection, certification: Certification, runtime: str
) -> Case:
    """Read what the next step of a locked certification depends on, but the veto."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_CASE_SQL, {"id": certification.id, "runtime": runtime})
        row = await cursor.fetchone()
    assert row is not None
    status = row["attestation_status"]
    runs_here = row["challengeable"]
    return Case(
        certification=certification,
        job=read_job(row),
        verdict=_verdict(row),
        trust_status=None if status is None else AttestationStatus(status),
        trust_attempts=row["remediation_attempts"] or 0,
        challengeable=None if runs_here is None else InstanceId(runs_here),
        is_gone=row["is_gone"],
    )


_ENQUEUE_SQL: LiteralString = """
INSERT INTO evaluation_refresh_jobs
       (certification_id, not_before, created_at, updated_at)
VALUES (%(certification_id)s, %(not_before)s, %(now)s, %(now)s)
"""

_CLAIM_SQL: LiteralString = """
UPDATE evaluation_refresh_jobs
   SET status = 'claimed', attempts = attempts + 1, lease_owner = %(runtime)s,
       lease_epoch = lease_epoch + 1, lease_expires_at = %(until)s,
       updated_at = %(now)s, asked_after = coalesce((
           SELECT max(q.id) FROM attestation_challenges q
            WHERE q.runtime_vm_instance_id = %(instance_id)s), 0)
 WHERE id = (SELECT id FROM evaluation_refresh_jobs
              WHERE certification_id = %(certification_id)s AND status = 'queued'
                FOR UPDATE SKIP LOCKED)
"""

_REQUEUE_SQL: LiteralString = """
UPDATE evaluation_refresh_jobs
   SET status = 'queued', not_before = %(not_before)s, last_error = %(error)s,
       lease_owner = NULL, lease_expires_at = NULL, updated_at = %(now)s
 WHERE certification_id = %(certification_id)s AND status = 'claimed'
"""

KEPT = 50
"""Refreshes of one certification that are over; the oldest go."""

_END_SQL: LiteralString = """
WITH old AS (
    DELETE FROM evaluation_refresh_jobs
     WHERE certification_id = %(certification_id)s
       AND status NOT IN ('queued', 'claimed') AND id <= (
           SELECT id FROM evaluation_refresh_jobs
            WHERE certification_id = %(certification_id)s
              AND status NOT IN ('queued', 'claimed')
            ORDER BY id DESC OFFSET %(kept)s - 1 LIMIT 1)
)
UPDATE evaluation_refresh_jobs
   SET status = %(status)s, last_error = coalesce(%(error)s, last_error),
       lease_owner = NULL, lease_expires_at = NULL, finished_at = %(now)s,
       updated_at = %(now)s
 WHERE certification_id = %(certification_id)s AND status IN ('queued', 'claimed')
"""


async def act(
    conn: Connection,
    certification_id: CertificationId,
    action: Action,
    runtime: str,
    now: datetime,
) -> bool:
    """Do to the refresh of a locked certification what was decided; False: nothing."""
    given: dict[str, Any] = {"certification_id": certification_id, "now": now}
    statement: LiteralString
    match action:
        case Enqueue(not_before):
            statement, given["not_before"] = _ENQUEUE_SQL, not_before
        case Claim(instance_id, until):
            statement, given["until"] = _CLAIM_SQL, until
            given |= {"runtime": runtime, "instance_id": instance_id}
        case Requeue(not_before, error):
            statement, given["not_before"] = _REQUEUE_SQL, not_before
            given["error"] = error
        case End(status, error):
            statement, given["status"] = _END_SQL, status
            given |= {"error": error, "kept": KEPT}
    return (await conn.execute(statement, given)).rowcount == 1


_POSTPONE_SQL: LiteralString = """
UPDATE evaluation_refresh_jobs
   SET not_before = %(not_before)s, updated_at = %(now)s
 WHERE certification_id = %(id)s AND status = 'queued'
"""


async def move_queued(
    conn: Connection,
    certification_id: CertificationId,
    not_before: datetime,
    now: datetime,
) -> None:
    """Let a refresh that is still queued come at another time."""
    await conn.execute(
        _POSTPONE_SQL, {"id": certification_id, "not_before": not_before, "now": now}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """One refresh as the lineage tells it."""

    id: JobId
    status: JobStatus
    attempts: int
    last_error: str | None
    created_at: datetime
    finished_at: datetime | None


_REFRESHES_SQL: LiteralString = """
SELECT id, status, attempts, last_error, created_at, finished_at
  FROM evaluation_refresh_jobs
 WHERE certification_id = %(id)s
 ORDER BY id DESC
 LIMIT %(limit)s
"""


async def list_refreshes(
    conn: Connection, certification_id: CertificationId, *, limit: int = 10
) -> list[Refresh]:
    """Return a certification's newest refreshes, newest first."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_REFRESHES_SQL, {"id": certification_id, "limit": limit})
        return [
            Refresh(**{**row, "status": JobStatus(row["status"])})
            for row in await cursor.fetchall()
        ]


def _verdict(row: Mapping[str, Any]) -> Verdict | None:
    if row["attestation_id"] is None:
        return None
    return Verdict(
        attestation_id=AttestationId(row["attestation_id"]),
        challenge_id=ChallengeId(row["challenge_id"]),
        instance_id=InstanceId(row["instance_id"]),
        kind=row["attestation_kind"],
        status=AttestationStatus(row["verification_status"]),
        code=row["outcome"],
        issued_at=row["issued_at"],
        verified_at=row["verified_at"],
        fresh_until=row["freshness_expires_at"],
        nonce_sha256=row["nonce_sha256"],
        evidence_sha256=row["evidence_sha256"],
        notes=tuple(row["verification_notes"]),
    )
