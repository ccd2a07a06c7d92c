"""All that is known of one instance's troubles, read at one moment."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row

from trustfabric.db import holds, incidents, placement, playbooks, runs, trust
from trustfabric.db.session import Connection
from trustfabric.domain.ids import HistoryId, InstanceId, OwnerId, ServerId
from trustfabric.domain.placement import Decision, decide
from trustfabric.domain.reasons import Entry, Facts, Question, Rules, Verdict
from trustfabric.domain.runs import Run
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import NotFoundError

_READ_SQL: LiteralString = """
SELECT i.terminated_at, s.deleted_at,
       (SELECT n.id FROM runtime_vm_instances n
         WHERE n.server_id = s.id ORDER BY n.id DESC LIMIT 1) AS newest,
       to_jsonb(l) AS lifecycle_by, to_jsonb(t) AS status_by,
       to_jsonb(v) AS verdict, to_jsonb(c) AS question
  FROM runtime_vm_instances i
  JOIN servers s ON s.id = i.server_id
  LEFT JOIN LATERAL (
       SELECT h.id, h.triggered_at AS at, h.transition_reason AS reason, h.actor,
              h.metadata ->> 'run_id' AS run_id
         FROM runtime_vm_trust_history h
        WHERE h.runtime_vm_instance_id = i.id
          AND h.previous_lifecycle_state IS DISTINCT FROM h.current_lifecycle_state
        ORDER BY h.registry_version DESC LIMIT 1) l ON true
  LEFT JOIN LATERAL (
       SELECT h.id, h.triggered_at AS at, h.transition_reason AS reason, h.actor,
              NULL AS run_id
         FROM runtime_vm_trust_history h
        WHERE h.runtime_vm_instance_id = i.id
          AND h.previous_status IS DISTINCT FROM h.current_status
        ORDER BY h.registry_version DESC LIMIT 1) t ON true
  LEFT JOIN LATERAL (
       SELECT a.id, a.attestation_kind AS kind, a.verification_status AS status,
              a.created_at AS at, a.verification_notes AS notes
         FROM runtime_vm_attestations a
        WHERE a.runtime_vm_instance_id = i.id AND a.accelerator_id IS NULL
        ORDER BY a.id DESC LIMIT 1) v ON true
  LEFT JOIN LATERAL (
       SELECT q.issued_at, q.expires_at FROM attestation_challenges q
        WHERE q.runtime_vm_instance_id = i.id AND q.used_at IS NULL
          AND q.expires_at > %(now)s AND q.accelerator_id IS NULL
        ORDER BY q.id DESC LIMIT 1) c ON true
 WHERE i.id = %(instance_id)s
"""


async def read_facts(
    conn: Connection,
    viewer: OwnerId | None,
    instance_id: InstanceId,
    rules: Rules,
    now: datetime,
) -> Facts:
    """Read one instance; `conn` shows one moment. NotFoundError."""
    snapshot = await trust.get_posture(conn, viewer, instance_id)
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_READ_SQL, {"instance_id": instance_id, "now": now})
        row = await cursor.fetchone()
    if snapshot is None or row is None:
        raise NotFoundError(f"no instance {instance_id}")
    playbook = await playbooks.find_playbook(
        conn, snapshot.owner_id, rules.default_playbook
    )
    ended = await runs.list_runs(conn, runs.RunFilter(instance_id=instance_id), limit=2)
    covering = await holds.list_covering(conn, snapshot.owner_id, instance_id, now)
    return Facts(
        snapshot=snapshot,
        terminated_at=row["terminated_at"],
        newest=InstanceId(row["newest"]),
        lifecycle_by=_entry(row["lifecycle_by"], snapshot),
        status_by=_entry(row["status_by"], snapshot),
        verdict=_verdict(row["verdict"]),
        question=_question(row["question"]),
        decision=await _decision(conn, row, snapshot.server_id, now),
        run=await runs.get_active_run(conn, instance_id),
        last_run=_last_ended(ended),
        holds=covering,
        incidents=[
            incident
            for hold in covering
            if hold.incident_id is not None
            and (incident := await incidents.get_incident(conn, None, hold.incident_id))
        ],
        playbook_executor=None if playbook is None else str(playbook.executor_type),
    )


async def newest_of(
    conn: Connection, viewer: OwnerId | None, server_id: ServerId
) -> InstanceId | None:
    """Return the newest instance of a server; None: it never had one.

    NotFoundError for a server that isn't there, or isn't this viewer's.
    """
    cursor = await conn.execute(_NEWEST_SQL, {"id": server_id, "viewer": viewer})
    row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"no server {server_id}")
    return None if row[0] is None else InstanceId(row[0])


_NEWEST_SQL: LiteralString = """
SELECT (SELECT n.id FROM runtime_vm_instances n
         WHERE n.server_id = s.id ORDER BY n.id DESC LIMIT 1)
  FROM servers s
 WHERE s.id = %(id)s AND s.deleted_at IS NULL
   AND (%(viewer)s::bigint IS NULL OR s.owner_id = %(viewer)s)
"""


async def _decision(
    conn: Connection, row: Mapping[str, Any], server_id: ServerId, now: datetime
) -> Decision | None:
    if row["deleted_at"] is not None:
        return None
    return decide(await placement.read_situation(conn, server_id, now), now)


def _last_ended(found: list[Run]) -> Run | None:
    return next((run for run in found if not run.status.active), None)


def _entry(row: Mapping[str, Any] | None, snapshot: Snapshot) -> Entry:
    if row is None:  # pruned: it was so before what is kept
        return Entry(HistoryId(0), snapshot.updated_at, "no longer kept", "nobody")
    run_id = row["run_id"]
    return Entry(
        row["id"],
        datetime.fromisoformat(row["at"]),
        row["reason"],
        row["actor"],
        None if run_id is None else int(run_id),
    )


def _verdict(row: Mapping[str, Any] | None) -> Verdict | None:
    if row is None:
        return None
    at = datetime.fromisoformat(row["at"])
    return Verdict(row["id"], row["kind"], row["status"], at, row["notes"])


def _question(row: Mapping[str, Any] | None) -> Question | None:
    if row is None:
        return None
    return Question(
        datetime.fromisoformat(row["issued_at"]),
        datetime.fromisoformat(row["expires_at"]),
    )
