"""Recorded verdicts: their lists, their evidence, and what they were judged by."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from trustfabric.db.session import Connection
from trustfabric.domain.attestation.collateral import digest_of, document_of
from trustfabric.domain.attestation.versions import Scope
from trustfabric.domain.evidence.anchors import Collateral
from trustfabric.domain.ids import AttestationId, InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import AttestationStatus, Snapshot

_ADD_BASIS_SQL: LiteralString = """
INSERT INTO attestation_bases (sha256, document) VALUES (%(sha256)s, %(document)s)
ON CONFLICT (sha256) DO NOTHING
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepBasis:
    """Companion: what a verdict was judged by, kept once however many it judges."""

    sha256: bytes
    document: Mapping[str, Any]

    async def write(self, conn: Connection, _before: Snapshot) -> None:
        await self.keep(conn)

    async def keep(self, conn: Connection) -> None:
        await conn.execute(
            _ADD_BASIS_SQL,
            {"sha256": self.sha256, "document": Jsonb(dict(self.document))},
        )


def keep_collateral(collateral: Collateral | None) -> Iterator[KeepBasis]:
    """Keep what a maker said at the time, likewise once."""
    if collateral is not None:
        yield KeepBasis(sha256=digest_of(collateral), document=document_of(collateral))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One row of `runtime_vm_attestations`, without the evidence."""

    id: AttestationId
    instance_id: InstanceId
    instance_name: str
    server_id: ServerId
    accelerator_id: str | None
    """Which of its accelerators it is about; None: the VM itself."""
    kind: str
    status: str
    code: str | None
    policy_id: str | None
    policy_version: int | None
    claims: Mapping[str, Any] | None
    signer: Mapping[str, Any] | None
    challenge_id: int | None
    nonce_sha256: str | None
    freshness_expires_at: datetime | None
    notes: Sequence[str]
    remedies: Sequence[str]
    evidence_bytes: int | None
    basis_sha256: str | None
    verified_at: datetime | None
    created_at: datetime


_COLUMNS: LiteralString = """
    a.id, a.runtime_vm_instance_id AS instance_id, i.instance_id AS instance_name,
    i.server_id, a.accelerator_id, a.attestation_kind AS kind,
    a.verification_status AS status, a.code, a.policy_id, a.policy_version,
    a.parsed_claims AS claims, a.signer_metadata AS signer, a.challenge_id,
    encode(a.nonce_digest, 'hex') AS nonce_sha256, a.freshness_expires_at,
    a.verification_notes AS notes, a.remediation_notes AS remedies,
    length(a.raw_quote) AS evidence_bytes,
    encode(a.basis_sha256, 'hex') AS basis_sha256, a.verified_at, a.created_at
"""

_FROM: LiteralString = """
  FROM runtime_vm_attestations a
  JOIN runtime_vm_instances i ON i.id = a.runtime_vm_instance_id
  JOIN servers s ON s.id = i.server_id
"""

_OWNED: LiteralString = (
    " AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s) "
)

_LIST_SQL: LiteralString = (
    "SELECT"
    + _COLUMNS
    + _FROM
    + """
 WHERE (%(before)s::bigint IS NULL OR a.id < %(before)s)
   AND (%(instance_id)s::bigint IS NULL OR a.runtime_vm_instance_id = %(instance_id)s)
   AND (%(status)s::text IS NULL OR a.verification_status = %(status)s)
"""
    + _OWNED
    + """
 ORDER BY a.id DESC
 LIMIT %(limit)s
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a list is narrowed to."""

    instance_id: InstanceId | None = None
    status: AttestationStatus | None = None


async def list_verdicts(
    conn: Connection,
    owner_id: OwnerId | None,
    only: Filter,
    *,
    before: int | None,
    limit: int,
) -> list[Verdict]:
    """Return an owner's verdicts, newest first, from below the id `before`."""
    async with conn.cursor(row_factory=class_row(Verdict)) as cursor:
        await cursor.execute(
            _LIST_SQL,
            {
                "owner_id": owner_id,
                "instance_id": only.instance_id,
                "status": only.status,
                "before": before,
                "limit": limit,
            },
        )
        return await cursor.fetchall()


_GET_SQL: LiteralString = "SELECT" + _COLUMNS + _FROM + " WHERE a.id = %(id)s" + _OWNED


async def get_verdict(
    conn: Connection, owner_id: OwnerId | None, attestation_id: AttestationId
) -> Verdict | None:
    """Return one verdict; None where it isn't, or isn't this owner's."""
    async with conn.cursor(row_factory=class_row(Verdict)) as cursor:
        await cursor.execute(_GET_SQL, {"id": attestation_id, "owner_id": owner_id})
        return await cursor.fetchone()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """All that a verdict rests on: enough to come to it again."""

    id: AttestationId
    instance_id: InstanceId
    instance_name: str
    accelerator_id: str | None
    server_id: ServerId
    owner_id: OwnerId
    image: str | None
    tier: str
    kind: str
    status: str
    code: str | None
    policy_id: str | None
    policy_version: int | None
    evidence: bytes | None
    binding: bytes | None
    inputs: Mapping[str, Any] | None
    basis: Mapping[str, Any] | None
    collateral: Mapping[str, Any] | None
    verified_at: datetime | None


_STORED: LiteralString = """
SELECT a.id, a.runtime_vm_instance_id AS instance_id, i.instance_id AS instance_name,
       a.accelerator_id, i.server_id, s.owner_id, i.image, i.isolation_tier AS tier,
       a.attestation_kind AS kind, a.verification_status AS status, a.code,
       a.policy_id, a.policy_version, a.raw_quote AS evidence, a.binding, a.inputs,
       b.document AS basis, c.document AS collateral, a.verified_at
"""

_KEPT: LiteralString = """
  LEFT JOIN attestation_bases b ON b.sha256 = a.basis_sha256
  LEFT JOIN attestation_bases c ON c.sha256 = decode(a.inputs ->> 'collateral', 'hex')
"""

_STORED_SQL: LiteralString = (
    _STORED
    + _FROM
    + _KEPT
    + """
 WHERE a.id = %(id)s"""
    + _OWNED
)


async def get_stored(
    conn: Connection, owner_id: OwnerId | None, attestation_id: AttestationId
) -> Stored | None:
    """Return a verdict with its evidence; None where it isn't, or is another's."""
    async with conn.cursor(row_factory=class_row(Stored)) as cursor:
        await cursor.execute(_STORED_SQL, {"id": attestation_id, "owner_id": owner_id})
        return await cursor.fetchone()


_LAST_SQL: LiteralString = (
    _STORED
    + """
  FROM runtime_vm_instances i
  JOIN servers s ON s.id = i.server_id
  JOIN LATERAL (
       (SELECT * FROM runtime_vm_attestations e
         WHERE e.runtime_vm_instance_id = i.id AND e.raw_quote IS NOT NULL
           AND e.binding IS NOT NULL AND e.accelerator_id IS NULL
         ORDER BY e.id DESC LIMIT 1)
       UNION ALL
       SELECT e.* FROM runtime_vm_accelerator_posture p
         JOIN runtime_vm_attestations e ON e.id = p.attestation_id
        WHERE p.runtime_vm_instance_id = i.id AND e.raw_quote IS NOT NULL
          AND e.binding IS NOT NULL) a ON true
"""
    + _KEPT
    + """
 WHERE i.id > %(after)s AND i.terminated_at IS NULL
   AND (%(image)s::text IS NULL OR i.image = %(image)s)
   AND (%(tier)s::text IS NULL OR i.isolation_tier = %(tier)s)
   AND (%(whose)s::bigint IS NULL OR s.owner_id = %(whose)s)
"""
    + _OWNED
    + """
 ORDER BY i.id
 FETCH FIRST (%(limit)s) ROWS WITH TIES
"""
)


async def list_last(
    conn: Connection,
    owner_id: OwnerId | None,
    about: Scope,
    *,
    after: int,
    limit: int,
) -> list[Stored]:
    """Return the last evidence of each living instance, by instance, after an id.

    With that of its accelerators: of the last instance all, beyond the limit too.
    """
    async with conn.cursor(row_factory=class_row(Stored)) as cursor:
        await cursor.execute(
            _LAST_SQL,
            {
                "owner_id": owner_id,
                "whose": about.owner_id,
                "image": about.image,
                "tier": about.tier,
                "after": after,
                "limit": limit,
            },
        )
        rows = await cursor.fetchall()
    return sorted(rows, key=lambda row: (row.instance_id, row.accelerator_id or ""))
