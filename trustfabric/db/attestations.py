"""Challenges, enrolled keys and verdicts: the statements, and the rows as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString
from uuid import UUID

import orjson
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.ids import AttestationId, ChallengeId, InstanceId
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import ConflictError

_ADD_KEY_SQL: LiteralString = """
INSERT INTO attestation_keys (runtime_vm_instance_id, kind, public_key, endorser)
VALUES (%(id)s, 'tpm', %(public_key)s, %(endorser)s)
ON CONFLICT DO NOTHING
"""


async def add_key(conn: Connection, instance_id: InstanceId, key: EnrolledKey) -> None:
    """Pin an attestation key to an instance."""
    await conn.execute(
        _ADD_KEY_SQL,
        {
            "id": instance_id,
            "public_key": orjson.dumps(key.document()),
            "endorser": key.endorser,
        },
    )


_LIST_KEYS_SQL: LiteralString = """
SELECT public_key FROM attestation_keys
 WHERE runtime_vm_instance_id = %(id)s AND revoked_at IS NULL
 ORDER BY id
"""


async def list_keys(conn: Connection, instance_id: InstanceId) -> list[EnrolledKey]:
    """Return the keys that may sign this instance's evidence."""
    cursor = await conn.execute(_LIST_KEYS_SQL, {"id": instance_id})
    return [
        EnrolledKey.from_document(orjson.loads(row[0]))
        for row in await cursor.fetchall()
    ]


_LOCK_KEYS_SQL: LiteralString = """
SELECT id FROM runtime_vm_instances WHERE id = %(id)s FOR NO KEY UPDATE
"""


async def lock_keys(conn: Connection, instance_id: InstanceId) -> list[EnrolledKey]:
    """Return the same, and let nobody else who asks so add one meanwhile."""
    await conn.execute(_LOCK_KEYS_SQL, {"id": instance_id})
    return await list_keys(conn, instance_id)


_ISSUE_SQL: LiteralString = """
INSERT INTO attestation_challenges
       (attestation_id, runtime_vm_instance_id, accelerator_id, kind, purpose, boot_id,
        nonce_digest, issued_at, expires_at)
VALUES (nextval(pg_get_serial_sequence('runtime_vm_attestations', 'id')),
        %(instance_id)s, %(accelerator_id)s, %(kind)s, %(purpose)s, %(boot_id)s,
        %(nonce_digest)s, %(issued_at)s, %(expires_at)s)
RETURNING id, attestation_id
"""


@dataclass(frozen=True, slots=True)
class IssuedChallenge:
    """A challenge's row: its id and the id reserved for its verdict."""

    id: ChallengeId
    attestation_id: AttestationId


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChallenge:
    """A challenge before it has an id; of its nonce only the digest is kept."""

    instance_id: InstanceId
    kind: str
    purpose: str
    boot_id: UUID | None
    nonce_digest: bytes
    issued_at: datetime
    expires_at: datetime
    accelerator_id: str | None = None
    """Which of its accelerators is asked; None: itself."""


async def issue_challenge(conn: Connection, new: NewChallenge) -> IssuedChallenge:
    """Remember a challenge, and reserve the id of its verdict."""
    cursor = await conn.execute(
        _ISSUE_SQL,
        {
            "instance_id": new.instance_id,
            "accelerator_id": new.accelerator_id,
            "kind": new.kind,
            "purpose": new.purpose,
            "boot_id": new.boot_id,
            "nonce_digest": new.nonce_digest,
            "issued_at": new.issued_at,
            "expires_at": new.expires_at,
        },
    )
    row = await cursor.fetchone()
    assert row is not None
    return IssuedChallenge(ChallengeId(row[0]), AttestationId(row[1]))


_CONSUME_SQL: LiteralString = """
UPDATE attestation_challenges c
   SET used_at = %(now)s, outcome = %(outcome)s
  FROM runtime_vm_instances i
 WHERE c.id = %(challenge_id)s AND c.used_at IS NULL
   AND i.id = c.runtime_vm_instance_id AND i.terminated_at IS NULL
   AND i.boot_id IS NOT DISTINCT FROM c.boot_id
"""

_RECORD_SQL: LiteralString = """
INSERT INTO runtime_vm_attestations
       (id, runtime_vm_instance_id, accelerator_id, attestation_kind,
        verification_status, raw_quote, parsed_claims, signer_metadata, nonce_digest,
        freshness_expires_at, verification_notes, remediation_notes, code,
        challenge_id, policy_id, policy_version, basis_sha256, binding, inputs,
        verified_at)
VALUES (%(id)s, %(instance_id)s, %(accelerator_id)s, %(kind)s, %(status)s,
        %(raw_quote)s, %(claims)s, %(signer)s, %(nonce_digest)s, %(deadline)s,
        %(notes)s, %(remedies)s, %(code)s, %(challenge_id)s, %(policy_id)s,
        %(policy_version)s, %(basis)s, %(binding)s, %(inputs)s, %(now)s)
"""

_LOG_SQL: LiteralString = """
INSERT INTO runtime_vm_events (runtime_vm_instance_id, event_type, payload)
VALUES (%(id)s, 'attested', %(payload)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedBy:
    """What a verdict rests on beside its evidence, so that it can be judged again."""

    policy_id: str
    policy_version: int
    basis_sha256: bytes | None = None
    """Kept already, or by a companion before this one."""
    binding: bytes | None = None
    """What the evidence had to carry."""
    inputs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordVerdict:
    """Companion: consumes the challenge and keeps the evidence with its verdict.

    Refused where the challenge was answered before, or a new boot came between.
    """

    challenge: IssuedChallenge
    kind: str
    status: str
    code: str
    evidence: bytes | None
    claims: Mapping[str, Any]
    signer: Mapping[str, Any]
    nonce_digest: bytes | None
    """Of the nonce that was answered; None: nothing was."""
    deadline: datetime | None
    notes: Sequence[str]
    remedies: Sequence[str]
    now: datetime
    judged_by: JudgedBy | None = None
    accelerator_id: str | None = None
    """Which of the instance's accelerators it is about; None: the VM itself."""

    async def write(self, conn: Connection, before: Snapshot) -> int:
        return await self.record(conn, before.instance_id)

    async def record(self, conn: Connection, instance_id: InstanceId) -> int:
        """Write it where no change of trust goes with it; return its id."""
        consumed = await conn.execute(
            _CONSUME_SQL,
            {
                "challenge_id": self.challenge.id,
                "now": self.now,
                "outcome": self.code,
            },
        )
        if consumed.rowcount == 0:
            raise ConflictError(
                f"challenge {self.challenge.id} was answered, or its boot is over"
            )
        await conn.execute(
            _RECORD_SQL,
            {
                "id": self.challenge.attestation_id,
                "instance_id": instance_id,
                "accelerator_id": self.accelerator_id,
                "kind": self.kind,
                "status": self.status,
                "raw_quote": self.evidence,
                "claims": Jsonb(dict(self.claims)),
                "signer": Jsonb(dict(self.signer)),
                "nonce_digest": self.nonce_digest,
                "deadline": self.deadline,
                "notes": list(self.notes),
                "remedies": list(self.remedies),
                "code": self.code,
                "challenge_id": self.challenge.id,
                "now": self.now,
                **_columns(self.judged_by),
            },
        )
        await conn.execute(
            _LOG_SQL,
            {
                "id": instance_id,
                "payload": Jsonb(self._told()),
            },
        )
        return self.challenge.attestation_id

    def _told(self) -> Mapping[str, str]:
        told = {"code": self.code, "status": self.status}
        if self.accelerator_id is not None:
            told["accelerator_id"] = self.accelerator_id
        return told


def _columns(by: JudgedBy | None) -> dict[str, Any]:
    names = ("policy_id", "policy_version", "basis", "binding", "inputs")
    if by is None:
        return dict.fromkeys(names)
    inputs = None if by.inputs is None else Jsonb(dict(by.inputs))
    values = (by.policy_id, by.policy_version, by.basis_sha256, by.binding, inputs)
    return dict(zip(names, values, strict=True))


_OPEN_SQL: LiteralString = """
SELECT c.used_at IS NULL AND NOT EXISTS (
           SELECT 1 FROM attestation_challenges n
            WHERE n.runtime_vm_instance_id = c.runtime_vm_instance_id AND n.id > c.id
              AND n.accelerator_id IS NULL)
  FROM attestation_challenges c WHERE c.id = %(id)s
"""


async def is_newest_and_open(conn: Connection, challenge_id: ChallengeId) -> bool:
    """Tell whether nothing was answered or asked since this challenge."""
    cursor = await conn.execute(_OPEN_SQL, {"id": challenge_id})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


_UNKNOWN_SINCE_SQL: LiteralString = """
SELECT count(*) FROM attestation_challenges c
  JOIN runtime_vm_attestations a ON a.id = c.attestation_id
 WHERE c.runtime_vm_instance_id = %(id)s AND a.verification_status = 'unknown'
   AND c.accelerator_id IS NULL
   AND c.issued_at > coalesce((
       SELECT max(coalesce(r.completed_at, r.cancelled_at))
         FROM runtime_vm_remediation_runs r
        WHERE r.runtime_vm_instance_id = %(id)s
          AND r.status IN ('completed', 'failed', 'cancelled')), '-infinity')
"""


async def count_unknown_since_run(conn: Connection, instance_id: InstanceId) -> int:
    """Return how often the re-attestation after the last run reached no verdict."""
    cursor = await conn.execute(_UNKNOWN_SINCE_SQL, {"id": instance_id})
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


_UNANSWERED_SQL: LiteralString = """
SELECT DISTINCT ON (c.runtime_vm_instance_id) c.runtime_vm_instance_id, c.purpose
  FROM attestation_challenges c
  JOIN runtime_vm_instances i ON i.id = c.runtime_vm_instance_id
 WHERE c.used_at IS NULL AND c.expires_at > %(now)s AND c.accelerator_id IS NULL
   AND i.runtime_owner = %(runtime)s AND i.terminated_at IS NULL
 ORDER BY c.runtime_vm_instance_id, c.id DESC
 LIMIT %(limit)s
"""


async def list_unanswered(
    conn: Connection, runtime: str, now: datetime, *, limit: int
) -> list[tuple[InstanceId, str]]:
    """Return this runtime's instances whose challenge is still open; id, purpose."""
    cursor = await conn.execute(
        _UNANSWERED_SQL, {"runtime": runtime, "now": now, "limit": limit}
    )
    return [(InstanceId(row[0]), row[1]) for row in await cursor.fetchall()]


_END_OF_TIME = datetime.max.replace(tzinfo=UTC)

_DUE_SQL: LiteralString = """
SELECT i.id, r.lifecycle_state
  FROM runtime_vm_instances i
  JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = i.id
 WHERE i.runtime_owner = %(runtime)s AND i.terminated_at IS NULL
   AND i.desired_state = 'running' AND i.power_state = 'running' AND NOT r.ended
   AND (r.lifecycle_state = 'suspect'
        OR (r.lifecycle_state = 'restored' AND r.freshness_deadline <= %(before)s)
        OR (r.lifecycle_state = 'restored' AND r.freshness_deadline > %(beyond)s
            AND r.provenance_ref LIKE 'attestation:%%')
        OR (r.lifecycle_state = 'remediating' AND NOT EXISTS (
            SELECT 1 FROM runtime_vm_remediation_runs a
             WHERE a.runtime_vm_instance_id = i.id
               AND a.status IN ('pending', 'running'))))
   AND NOT EXISTS (
       SELECT 1 FROM attestation_challenges c
        WHERE c.runtime_vm_instance_id = i.id
          AND c.issued_at > %(quiet_since)s AND c.issued_at <= %(now)s)
   AND NOT EXISTS (
       SELECT 1 FROM attestation_silences s
        WHERE s.runtime_vm_instance_id = i.id
          AND s.ask_after > %(now)s AND s.ask_after <= %(beyond)s)
 ORDER BY r.freshness_deadline NULLS FIRST
 LIMIT %(limit)s
"""


async def list_due(  # noqa: PLR0913 (each bound is a time of its own)
    conn: Connection,
    runtime: str,
    now: datetime,
    *,
    ahead: timedelta,
    quiet: timedelta,
    limit: int,
    longest: timedelta | None = None,
) -> list[tuple[InstanceId, str]]:
    """Return this runtime's running instances that need evidence; id and purpose.

    Those whose evidence runs out within `ahead`, and those that have none, unless
    they were challenged within `quiet`, or fell silent and are left alone. And
    those whose evidence would hold for more than the `longest` time from now: our
    clock went back, and nothing may stay fresh for longer by that.
    """
    cursor = await conn.execute(
        _DUE_SQL,
        {
            "runtime": runtime,
            "before": now + ahead,
            "quiet_since": now - quiet,
            "now": now,
            "beyond": _END_OF_TIME if longest is None else now + longest,
            "limit": limit,
        },
    )
    return [
        (InstanceId(row[0]), "post-run" if row[1] == "remediating" else "scheduled")
        for row in await cursor.fetchall()
    ]
