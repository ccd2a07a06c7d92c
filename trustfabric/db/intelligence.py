"""Scores of capabilities: what they are made of, the rows, and hearing of changes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString, Self

import orjson
from psycopg.rows import dict_row

from trustfabric.db.listen import TRUST_CHANNEL, Listening
from trustfabric.db.session import Connection
from trustfabric.domain.failures import CALLED_OFF
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.intelligence import (
    CertificationFacts,
    Health,
    Inputs,
    Score,
    TrustFacts,
    capabilities_of,
)
from trustfabric.domain.trust import AttestationStatus, Lifecycle

INPUTS_CHANNEL = "capability_inputs"

_TURN_SQL: LiteralString = """
SELECT pg_advisory_xact_lock(hashtext('capability_intelligence_scores'))
"""

_INPUTS_SQL: LiteralString = """
SELECT s.id AS server_id, s.config, s.deleted_at IS NOT NULL AS gone,
       i.driver, i.isolation_tier, i.id AS instance_id,
       r.attestation_status, r.lifecycle_state, r.remediation_attempts,
       r.freshness_deadline, r.provenance_ref, r.version, f.failure_reason,
       (SELECT jsonb_object_agg(p.accelerator_id, p.posture)
          FROM runtime_vm_accelerator_posture p
         WHERE p.runtime_vm_instance_id = i.id) AS accelerators,
       (SELECT jsonb_agg(jsonb_build_array(c.id, c.status, c.valid_until, c.version)
                         ORDER BY c.id)
          FROM evaluation_certifications c
         WHERE c.server_id = s.id) AS certifications
  FROM servers s
  LEFT JOIN LATERAL (
       SELECT n.id, n.driver, n.isolation_tier, n.terminated_at
         FROM runtime_vm_instances n
        WHERE n.server_id = s.id ORDER BY n.id DESC LIMIT 1) n ON true
  LEFT JOIN runtime_vm_trust_registry t ON t.runtime_vm_instance_id = n.id
  LEFT JOIN LATERAL (
       SELECT n.id, n.driver, n.isolation_tier
        WHERE n.terminated_at IS NULL
           OR t.lifecycle_state IN ('quarantined', 'remediating')
              AND coalesce(s.released_at <= n.terminated_at, true)) i ON true
  LEFT JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = i.id
  LEFT JOIN LATERAL (
       SELECT l.failure_reason, coalesce(l.completed_at, l.cancelled_at) AS ended_at
         FROM runtime_vm_remediation_runs l
        WHERE l.runtime_vm_instance_id = i.id
          AND l.status IN ('completed', 'failed', 'cancelled')
        ORDER BY coalesce(l.failure_reason = ANY(%(called_off)s), false), l.id DESC
        LIMIT 1) f
         ON f.failure_reason IS NOT NULL
        AND NOT EXISTS (
            SELECT 1 FROM runtime_vm_trust_history h
              JOIN runtime_vm_attestations v ON v.id = h.attestation_id
             WHERE h.runtime_vm_instance_id = i.id
               AND v.verification_status = 'trusted' AND h.triggered_at > f.ended_at)
 WHERE s.id = ANY(%(ids)s)
 ORDER BY s.id
"""


async def read_inputs(conn: Connection, ids: Collection[ServerId]) -> list[Inputs]:
    """Read what the scores of these servers are made of, to write them afterwards.

    First in its transaction: whoever scores, in any runtime, takes turns from here,
    so an older view is never written over a newer one.
    """
    await conn.execute(_TURN_SQL)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _INPUTS_SQL, {"ids": sorted(ids), "called_off": CALLED_OFF}
        )
        return [_inputs(row) for row in await cursor.fetchall()]


_SAVE_SQL: LiteralString = """
WITH wanted AS MATERIALIZED (
    SELECT * FROM unnest(
        %(server_id)s::bigint[], %(capability)s::text[], %(backend)s::text[],
        %(tier)s::text[], %(score)s::int[], %(status)s::text[],
        %(confidence)s::float8[], %(notes)s::jsonb[], %(evidence)s::jsonb[])
    AS t(server_id, capability, backend, tier, score, status, confidence, notes,
         evidence)
), gone AS (
    DELETE FROM capability_intelligence_scores k
     WHERE k.server_id = ANY(%(ids)s) AND NOT EXISTS (
           SELECT 1 FROM wanted w
            WHERE w.server_id = k.server_id AND w.capability = k.capability
              AND w.backend IS NOT DISTINCT FROM k.backend
              AND w.tier IS NOT DISTINCT FROM k.tier)
)
INSERT INTO capability_intelligence_scores AS k
       (server_id, capability, backend, tier, score, status, confidence, notes,
        evidence, last_observed_at, created_at, updated_at)
SELECT w.server_id, w.capability, w.backend, w.tier, w.score, w.status, w.confidence,
       ARRAY(SELECT jsonb_array_elements_text(w.notes)), w.evidence, %(now)s, %(now)s,
       %(now)s
  FROM wanted w
    ON CONFLICT (server_id, capability, coalesce(backend, ''), coalesce(tier, ''))
    DO UPDATE SET score = excluded.score, status = excluded.status,
       confidence = excluded.confidence, notes = excluded.notes,
       evidence = excluded.evidence, last_observed_at = excluded.last_observed_at,
       updated_at = excluded.updated_at
 WHERE (k.score, k.confidence, k.notes, k.evidence)
       IS DISTINCT FROM
       (excluded.score, excluded.confidence, excluded.notes, excluded.evidence)
"""


async def save_scores(
    conn: Connection, scored: Sequence[tuple[Inputs, Score]], now: datetime
) -> int:
    """Write one row per capability, and none beside; return how many are new.

    Servers that are gone lose theirs. A row that says the same already stays as it is.
    """
    rows = [
        (inputs, capability, score)
        for inputs, score in scored
        if not inputs.gone
        for capability in inputs.capabilities
    ]
    cursor = await conn.execute(
        _SAVE_SQL,
        {
            "ids": [inputs.server_id for inputs, _ in scored],
            "server_id": [inputs.server_id for inputs, _, _ in rows],
            "capability": [capability for _, capability, _ in rows],
            "backend": [inputs.backend for inputs, _, _ in rows],
            "tier": [inputs.tier for inputs, _, _ in rows],
            "score": [score.score for _, _, score in rows],
            "status": [score.status for _, _, score in rows],
            "confidence": [score.confidence for _, _, score in rows],
            "notes": [orjson.dumps(score.notes).decode() for _, _, score in rows],
            "evidence": [orjson.dumps(score.evidence).decode() for _, _, score in rows],
            "now": now,
        },
    )
    return cursor.rowcount


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityScore:
    """One row of `capability_intelligence_scores`."""

    id: int
    server_id: ServerId
    capability: str
    backend: str | None
    tier: str | None
    score: int
    status: Health
    confidence: float
    notes: Sequence[str]
    evidence: Mapping[str, Any]
    last_observed_at: datetime


_LIST_SQL: LiteralString = """
SELECT k.id, k.server_id, k.capability, k.backend, k.tier, k.score, k.status,
       k.confidence, k.notes, k.evidence, k.last_observed_at
  FROM capability_intelligence_scores k
  JOIN servers s ON s.id = k.server_id
 WHERE k.server_id = %(server_id)s AND s.deleted_at IS NULL
   AND (%(owner_id)s::bigint IS NULL OR s.owner_id = %(owner_id)s)
 ORDER BY k.id
"""


async def list_scores(
    conn: Connection, owner_id: OwnerId | None, server_id: ServerId
) -> list[CapabilityScore]:
    """Return a server's scores by id."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_LIST_SQL, {"server_id": server_id, "owner_id": owner_id})
        return [
            CapabilityScore(**{**row, "status": Health(row["status"])})
            for row in await cursor.fetchall()
        ]


_PAGE_SQL: LiteralString = """
SELECT id FROM servers WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
"""


async def page_of_servers(
    conn: Connection, *, after: int, limit: int
) -> list[ServerId]:
    """Return the ids of servers from beyond `after`, deleted ones too."""
    cursor = await conn.execute(_PAGE_SQL, {"after": after, "limit": limit})
    return [ServerId(row[0]) for row in await cursor.fetchall()]


_SERVERS_SQL: LiteralString = """
SELECT DISTINCT server_id FROM runtime_vm_instances WHERE id = ANY(%(ids)s)
"""


async def servers_of(
    conn: Connection, instances: Collection[InstanceId]
) -> list[ServerId]:
    """Return whose instances these are."""
    cursor = await conn.execute(_SERVERS_SQL, {"ids": sorted(instances)})
    return [ServerId(row[0]) for row in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class Heard:
    """Whose inputs changed: servers by their id, or by that of an instance."""

    servers: frozenset[ServerId] = frozenset()
    instances: frozenset[InstanceId] = frozenset()


class Changes(Listening):
    """Hears of all that scores are made of.

    While it lives nothing is missed; what came before it opened has to be read.
    """

    @classmethod
    async def of(cls, url: str) -> Self:
        """Return when it listens."""
        return await cls.open(url, (TRUST_CHANNEL, INPUTS_CHANNEL), name="scorer")

    async def wait(self, timeout_s: float) -> Heard:
        """Return what has changed; nothing after `timeout_s` of silence."""
        servers, instances = set(), set()
        for note in await self.notes(timeout_s):
            if note.channel == INPUTS_CHANNEL:
                servers.add(ServerId(int(note.payload)))
            else:
                told = orjson.loads(note.payload)
                instances.add(InstanceId(told["runtime_vm_instance_id"]))
        return Heard(frozenset(servers), frozenset(instances))


def _inputs(row: Mapping[str, Any]) -> Inputs:
    return Inputs(
        server_id=ServerId(row["server_id"]),
        capabilities=capabilities_of(row["config"]),
        backend=row["driver"],
        tier=row["isolation_tier"],
        trust=_trust(row),
        accelerators=row["accelerators"],
        certifications=[
            CertificationFacts(number, status, until and _time(until), version)
            for number, status, until, version in row["certifications"] or ()
        ],
        failure=row["failure_reason"],
        gone=row["gone"],
    )


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _trust(row: Mapping[str, Any]) -> TrustFacts | None:
    if row["lifecycle_state"] is None:
        return None
    return TrustFacts(
        instance_id=InstanceId(row["instance_id"]),
        status=AttestationStatus(row["attestation_status"]),
        lifecycle=Lifecycle(row["lifecycle_state"]),
        attempts=row["remediation_attempts"],
        freshness_deadline=row["freshness_deadline"],
        provenance_ref=row["provenance_ref"],
        version=row["version"],
    )
