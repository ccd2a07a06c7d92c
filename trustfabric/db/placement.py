"""What the placement gate looks at: one statement, so one moment.

Of holds only people's: the breaker keeps runs from starting, never a launch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from trustfabric.db.accelerators import IS_FRESH, IS_RUNNING
from trustfabric.db.session import Connection
from trustfabric.domain.failures import CALLED_OFF
from trustfabric.domain.ids import HistoryId, RunId, ServerId
from trustfabric.domain.placement import (
    Accelerator,
    ActiveRun,
    Failure,
    HeldBy,
    Situation,
    Trust,
)
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.domain.vms import ACTIVE
from trustfabric.errors import NotFoundError, UnavailableError

_READ_SQL: LiteralString = f"""
SELECT s.released_at, i.id AS instance_id, i.terminated_at,
       jsonb_strip_nulls(jsonb_build_object(
           'vm_instance_id', i.id, 'registry_version', r.version,
           'history_id', h.id, 'run_id', a.id, 'run_version', a.version,
           'failed_run_id', f.id, 'hold_ids', (
               SELECT jsonb_agg(o.id ORDER BY o.id) FROM trust_holds o
                WHERE o.released_at IS NULL AND o.incident_id IS NULL
                  AND (o.until IS NULL OR o.until > %(now)s)
                  AND (o.scope = 'all' OR o.owner_id = s.owner_id
                       OR o.runtime_vm_instance_id = i.id)),
           'accelerators', (
               SELECT jsonb_object_agg(p.accelerator_id, p.collected_at)
                 FROM runtime_vm_accelerator_posture p
                WHERE p.runtime_vm_instance_id = i.id
                  AND i.terminated_at IS NULL))) AS inputs,
       {IS_RUNNING} AS is_running,
       r.attestation_status, r.lifecycle_state, r.remediation_state,
       r.remediation_attempts, r.freshness_deadline, r.provenance_ref,
       h.id AS event_id, h.transition_reason, h.previous_lifecycle_state,
       a.id AS run_id, a.status AS run_status, a.approval_state,
       f.failure_reason, f.ended_at AS failed_at,
       ARRAY(SELECT jsonb_build_array(o.scope, o.by, o.until) FROM trust_holds o
              WHERE o.released_at IS NULL AND o.incident_id IS NULL
                AND (o.until IS NULL OR o.until > %(now)s)
                AND (o.scope = 'all' OR o.owner_id = s.owner_id
                     OR o.runtime_vm_instance_id = i.id)
              ORDER BY o.scope, o.id) AS holds,
       (SELECT jsonb_agg(jsonb_build_array(
                   p.accelerator_id, p.posture, p.policy_feedback,
                   p.asked_at IS NOT NULL,
                   {IS_FRESH})
                   ORDER BY p.accelerator_id)
          FROM runtime_vm_accelerator_posture p
         WHERE p.runtime_vm_instance_id = i.id AND i.terminated_at IS NULL)
           AS accelerators
  FROM servers s
  LEFT JOIN LATERAL (
       SELECT * FROM runtime_vm_instances n
        WHERE n.server_id = s.id ORDER BY n.id DESC LIMIT 1) i ON true
  LEFT JOIN runtime_vm_trust_registry r ON r.runtime_vm_instance_id = i.id
  LEFT JOIN runtime_vm_trust_history h
         ON h.runtime_vm_instance_id = i.id AND h.registry_version = r.version
  LEFT JOIN runtime_vm_remediation_runs a
         ON a.runtime_vm_instance_id = i.id AND a.status IN ('pending', 'running')
  LEFT JOIN LATERAL (
       SELECT l.id, l.failure_reason, l.status, coalesce(l.completed_at, l.cancelled_at)
                  AS ended_at
         FROM runtime_vm_remediation_runs l
        WHERE l.runtime_vm_instance_id = i.id
          AND l.status IN ('completed', 'failed', 'cancelled')
        ORDER BY coalesce(l.failure_reason = ANY(%(called_off)s), false), l.id DESC
        LIMIT 1) f
         ON f.failure_reason IS NOT NULL
        AND NOT EXISTS (
            SELECT 1 FROM runtime_vm_trust_history t
              JOIN runtime_vm_attestations v ON v.id = t.attestation_id
             WHERE t.runtime_vm_instance_id = i.id
               AND v.verification_status = 'trusted' AND t.triggered_at > f.ended_at)
 WHERE s.id = %(server_id)s AND s.deleted_at IS NULL
"""


# The same turn as that of the registry (trust.py): vetoes take it, all of them.
_TURN_SQL: LiteralString = """
SELECT pg_advisory_xact_lock(hashtext('runtime_vm_trust_registry'))
"""


async def take_turn(conn: Connection) -> None:
    """Let nothing that the gate looks at change until this transaction ends.

    First in its transaction: what is read afterwards is what holds at its commit.
    """
    await conn.execute(_TURN_SQL)


async def read_situation(
    conn: Connection, server_id: ServerId, now: datetime
) -> Situation:
    """Read what the gate decides on. NotFoundError for an unknown server.

    UnavailableError where its newest instance has no row of trust.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _READ_SQL,
            {
                "server_id": server_id,
                "now": now,
                "called_off": CALLED_OFF,
                "active": sorted(ACTIVE),
            },
        )
        row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"no server {server_id}")
    return Situation(
        server_id=server_id,
        trust=_trust(row),
        running=row["is_running"],
        terminated_at=row["terminated_at"],
        released_at=row["released_at"],
        active_run=_active_run(row),
        failure=_failure(row),
        holds=list(dict.fromkeys(scope for scope, _, _ in row["holds"])),
        held_by=[_held_by(*hold) for hold in row["holds"]],
        accelerators=[
            Accelerator(name, posture, tuple(reasons), by_evidence, fresh)
            for name, posture, reasons, by_evidence, fresh in row["accelerators"] or ()
        ],
        inputs=row["inputs"],
    )


KEPT = 200
"""Decisions on one server; the oldest go."""

_RECORD_SQL: LiteralString = """
WITH old AS (
    DELETE FROM runtime_policy_decisions
     WHERE server_id = %(server_id)s AND id <= (
           SELECT id FROM runtime_policy_decisions
            WHERE server_id = %(server_id)s
            ORDER BY id DESC OFFSET %(kept)s - 1 LIMIT 1)
)
INSERT INTO runtime_policy_decisions
       (server_id, backend, tier, verb, notes, blocking, inputs, allowed, decided_at)
VALUES (%(server_id)s, %(backend)s, %(tier)s, %(verb)s, %(notes)s, %(blocking)s,
        %(inputs)s, %(allowed)s, %(now)s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDecision:
    """What the gate answered, for which launch, and why."""

    server_id: ServerId
    backend: str
    tier: str
    verb: str
    """What was to be done: `start`, `redeploy` or `relaunch`."""
    notes: Sequence[str]
    blocking: Sequence[str]
    """Those of the notes that refuse it."""
    inputs: Mapping[str, Any]
    allowed: bool
    decided_at: datetime


async def record_decision(conn: Connection, decision: PolicyDecision) -> None:
    """Keep what was decided and why."""
    await conn.execute(
        _RECORD_SQL,
        {
            "server_id": decision.server_id,
            "kept": KEPT,
            "backend": decision.backend,
            "tier": decision.tier,
            "verb": decision.verb,
            "notes": list(decision.notes),
            "blocking": list(decision.blocking),
            "inputs": Jsonb(dict(decision.inputs)),
            "allowed": decision.allowed,
            "now": decision.decided_at,
        },
    )


_NEWEST_SQL: LiteralString = """
SELECT coalesce(max(id), 0) FROM runtime_policy_decisions
"""


async def newest_decision(conn: Connection) -> int:
    """Return the id of the newest decision; 0: there is none."""
    row = await (await conn.execute(_NEWEST_SQL)).fetchone()
    assert row is not None
    return int(row[0])


_AFTER_SQL: LiteralString = """
SELECT id, verb, allowed, blocking FROM runtime_policy_decisions
 WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
"""


async def decisions_after(
    conn: Connection, after: int, *, limit: int
) -> list[tuple[int, str, bool, Sequence[str]]]:
    """Return id, verb, answer and refusing notes of what was decided since, in order.

    Decisions take turns, so ids are in the order of commits and none is skipped.
    """
    cursor = await conn.execute(_AFTER_SQL, {"after": after, "limit": limit})
    return [(row[0], row[1] or "start", row[2], row[3]) async for row in cursor]


def _trust(row: Mapping[str, Any]) -> Trust | None:
    if row["instance_id"] is None:
        return None
    if row["lifecycle_state"] is None:
        raise UnavailableError(f"instance {row['instance_id']} has no row of trust")
    previous = row["previous_lifecycle_state"]
    return Trust(
        status=AttestationStatus(row["attestation_status"]),
        lifecycle=Lifecycle(row["lifecycle_state"]),
        previous_lifecycle=None if previous is None else Lifecycle(previous),
        remediation_state=row["remediation_state"],
        remediation_attempts=row["remediation_attempts"],
        freshness_deadline=row["freshness_deadline"],
        provenance_ref=row["provenance_ref"],
        event_id=HistoryId(row["event_id"]),
        reason=row["transition_reason"],
    )


def _active_run(row: Mapping[str, Any]) -> ActiveRun | None:
    if row["run_id"] is None:
        return None
    return ActiveRun(
        RunId(row["run_id"]), row["run_status"], row["approval_state"] == "pending"
    )


def _failure(row: Mapping[str, Any]) -> Failure | None:
    if row["failure_reason"] is None:
        return None
    return Failure(row["failure_reason"], row["failed_at"])


def _held_by(scope: str, by: str, until: str | None) -> HeldBy:
    return HeldBy(scope, by, None if until is None else datetime.fromisoformat(until))
