"""Migrations of a database that is in use: every table has rows, and keeps them."""

from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from trustfabric.db.migrate import load, migrate

OLD = 3
"""From this schema on; the tables that it has are filled below."""

FILL_SQL = b"""
INSERT INTO users (id, email) VALUES (7, 'seven@example.com'), (8, NULL);
INSERT INTO servers (id, owner_id, name, status, released_at, released_by, deleted_at)
VALUES (1, 7, 'web', 'running', now(), 'user:7', NULL),
       (2, 8, 'gone', 'stopped', NULL, NULL, now()),
       (3, 7, 'waits', 'pending-remediation', NULL, NULL, NULL);
INSERT INTO runtime_vm_instances
       (id, server_id, instance_id, driver, desired_state, power_state, boot_id,
        runtime_owner, hypervisor_endpoint, terminated_at)
VALUES (1, 1, 'vm-1', 'libvirt', 'running', 'running', gen_random_uuid(), 'here',
        'test:///default', NULL),
       (2, 2, 'vm-2', 'http', 'terminated', 'stopped', gen_random_uuid(), 'here',
        NULL, now()),
       (3, 3, 'vm-3', 'libvirt', 'stopped', 'crashed', NULL, NULL, NULL, NULL);
INSERT INTO runtime_vm_events (runtime_vm_instance_id, event_type, payload)
VALUES (1, 'started', '{"a": 1}');
INSERT INTO runtime_vm_attestations
       (id, runtime_vm_instance_id, attestation_kind, verification_status, raw_quote,
        nonce_digest, freshness_expires_at, verification_notes)
VALUES (1, 1, 'tpm', 'trusted', '\\x00ff', '\\x01', now(), '{ok}'),
       (2, 2, 'unknown', 'unknown', NULL, NULL, NULL, '{}');
INSERT INTO attestation_challenges
       (attestation_id, runtime_vm_instance_id, kind, purpose, nonce_digest, issued_at,
        expires_at, used_at, outcome)
SELECT n, 1, 'tpm', purpose, decode(md5(purpose), 'hex'), now(),
       now() + interval '1 min', now(), 'ok'
  FROM unnest('{boot,scheduled,manual,post-run,release}'::text[])
       WITH ORDINALITY AS p (purpose, n);
INSERT INTO attestation_keys (runtime_vm_instance_id, kind, public_key, endorser)
VALUES (1, 'tpm', '\\x7b7d', 'swtpm');
INSERT INTO runtime_vm_trust_registry
       (runtime_vm_instance_id, attestation_status, lifecycle_state, remediation_state,
        remediation_attempts, freshness_deadline, provenance_ref, provenance, version)
VALUES (1, 'trusted', 'restored', 'remediation:monitor', 0, now(), 'attestation:tpm:1',
        '{"kind": "tpm"}', 2),
       (2, 'trusted', 'restored', 'remediation:none', 0, now(), NULL, NULL, 1),
       (3, 'untrusted', 'quarantined', 'remediation:a', 3, NULL, NULL, NULL, 1);
INSERT INTO runtime_vm_trust_history
       (runtime_vm_instance_id, attestation_id, previous_status, current_status,
        previous_lifecycle_state, current_lifecycle_state, transition_reason,
        remediation_state, remediation_attempts, registry_version, actor)
VALUES (1, NULL, NULL, 'pending', NULL, 'suspect', 'provisioned', 'remediation:none',
        0, 1, 'user:7'),
       (1, 1, 'pending', 'trusted', 'suspect', 'restored', 'attestation:ok',
        'remediation:monitor', 0, 2, 'actor:attestation'),
       (2, NULL, NULL, 'trusted', NULL, 'restored', repeat('r', 500),
        'remediation:none', 0, 1, 'user:8'),
       (3, NULL, NULL, 'untrusted', NULL, 'quarantined', '', 'remediation:a', 3, 1,
        'user:7');
INSERT INTO trust_holds
       (scope, runtime_vm_instance_id, owner_id, reason, by, until, released_at)
VALUES ('instance', 1, NULL, 'looks odd', 'user:7', now(), NULL),
       ('owner', NULL, 7, 'holiday', 'user:7', NULL, now()),
       ('all', NULL, NULL, 'storm', 'user:1', NULL, NULL);
INSERT INTO runtime_vm_remediation_playbooks
       (id, playbook_key, display_name, executor_type, owner_id, approval_required,
        metadata)
VALUES (1, 'default-vm-remediation', 'Repair', 'shell', NULL, true, '{"script": "x"}'),
       (2, 'call', 'Call', 'cloud_api', 7, false, '{}');
INSERT INTO runtime_vm_remediation_runs
       (id, runtime_vm_instance_id, playbook, playbook_id, status, approval_required,
        approval_state, requested_by, assigned_owner_id, playbook_snapshot,
        content_sha256, lease_owner, lease_expires_at, completed_at, sla_deadline)
VALUES (1, 1, 'default-vm-remediation', 1, 'completed', true, 'approved',
        'actor:dispatcher', 7, '{"version": 1}', repeat('a', 64), NULL, NULL, now(),
        now()),
       (2, 1, 'default-vm-remediation', 1, 'pending', true, 'pending', 'user:7', 7,
        '{}', repeat('b', 64), NULL, NULL, NULL, now()),
       (3, 3, 'call', 2, 'running', false, 'auto-approved', 'user:7', 7, '{}',
        repeat('c', 64), 'here', now(), NULL, NULL),
       (4, 2, 'deleted', NULL, 'cancelled', false, 'rejected', 'user:8', NULL, '{}',
        repeat('d', 64), NULL, NULL, NULL, NULL);
INSERT INTO runtime_vm_remediation_approvals
       (run_id, user_id, decision, notes, content_sha256)
VALUES (1, 8, 'approved', 'go', repeat('a', 64));
INSERT INTO runtime_vm_remediation_events (run_id, seq, kind, stream, message)
VALUES (1, 1, 'status', 'system', 'sla-breached'), (1, 2, 'log', 'stdout', 'done');
INSERT INTO runtime_vm_remediation_artifacts
       (run_id, artifact_type, uri, sha256, size, recorded_by)
VALUES (1, 'evidence', 'https://x.test/1', repeat('e', 64), 3, 'user:7');
INSERT INTO runtime_vm_accelerator_posture
       (runtime_vm_instance_id, accelerator_id, accelerator_type, posture)
VALUES (1, 'gpu-0', 'gpu', 'trusted');
INSERT INTO evaluation_certifications
       (id, server_id, status, evidence, next_refresh_at, blocked_reason)
VALUES (1, 1, 'pass', '{}', now(), NULL), (2, 3, 'fail', NULL, NULL, 'quarantined');
INSERT INTO evaluation_refresh_jobs (certification_id, status, asked_after)
VALUES (1, 'queued', 1), (1, 'done', 0), (2, 'cancelled', 0);
INSERT INTO capability_intelligence_scores (server_id, capability, score, status)
VALUES (1, 'runtime', 85, 'healthy');
INSERT INTO runtime_policy_decisions (server_id, backend, tier, notes, allowed)
VALUES (1, 'libvirt', 'standard', '{trust:attestation:trusted}', true);
INSERT INTO runtimes (runtime_id, host, pid) VALUES ('here', 'host', 1);
INSERT INTO listener_positions (name, xid, id) VALUES ('here/trust', '3', 1);
INSERT INTO idempotency_keys (owner_id, key, route, request_sha256, status, response)
VALUES (7, 'k', 'POST /api/servers', 'x', 201, '{}');
INSERT INTO audit (actor, action, target) VALUES ('user:7', 'kill', 'fabric/api');
INSERT INTO retention_horizons (stream, xid, row_id, known_from)
VALUES ('trust', '1', 0, now());
"""

Rows = dict[str, list[dict[str, Any]]]


def everything(url: str) -> Rows:
    """Return the rows of every table but the migrations' own, in a steady order."""
    with psycopg.connect(url, row_factory=dict_row) as conn:
        names = conn.execute(
            """
            SELECT tablename AS name FROM pg_tables
             WHERE schemaname = 'public' AND tablename <> 'schema_migrations'
            """
        ).fetchall()
        found: Rows = {}
        for name in [row["name"] for row in names]:
            rows = conn.execute(
                sql.SQL("SELECT * FROM {table} t").format(table=sql.Identifier(name))
            ).fetchall()
            found[name] = sorted(rows, key=repr)
    return found


def as_before(after: list[dict[str, Any]], before: list[dict[str, Any]]) -> Any:
    """Return the rows without the columns that are new."""
    return sorted(({name: row[name] for name in before[0]} for row in after), key=repr)


async def test_a_database_in_use_keeps_every_row(blank_database_url: str) -> None:
    url = blank_database_url
    await migrate(url, migrations=load()[:OLD])
    with psycopg.connect(url) as conn:
        conn.execute(FILL_SQL)
    before = everything(url)
    assert [name for name, rows in before.items() if not rows] == []

    applied = await migrate(url)

    after = everything(url)
    assert len(applied) == len(load()) - OLD
    for name, rows in before.items():
        assert as_before(after[name], rows) == sorted(rows, key=repr), name


async def test_what_is_new_is_told_of_old_rows_too(blank_database_url: str) -> None:
    url = blank_database_url
    await migrate(url, migrations=load()[:OLD])
    with psycopg.connect(url) as conn:
        conn.execute(FILL_SQL)

    await migrate(url)

    after = everything(url)
    ended = {
        row["runtime_vm_instance_id"]: row["ended"]
        for row in after["runtime_vm_trust_registry"]
    }
    assert ended == {1: False, 2: True, 3: False}
    runs = {row["id"]: row for row in after["runtime_vm_remediation_runs"]}
    required = {number: run["approvals_required"] for number, run in runs.items()}
    given = {number: run["approvals_given"] for number, run in runs.items()}
    late = {number: run["sla_breached_at"] is not None for number, run in runs.items()}
    assert required == {1: 1, 2: 1, 3: 0, 4: 0}
    assert given == {1: 1, 2: 0, 3: 0, 4: 0}
    assert late == {1: True, 2: False, 3: False, 4: False}
    vms = {row["id"]: row for row in after["runtime_vm_instances"]}
    known = {number: vm["defined_at"] is not None for number, vm in vms.items()}
    unsettled = {number for number, vm in vms.items() if vm["unsettled"]}
    assert known == {1: True, 2: True, 3: False}
    assert unsettled == set()
    assert {row["needs_admin"] for row in after["trust_holds"]} == {False}
