"""The tables keep their own promises, whatever program writes to them."""

import asyncio
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum

import psycopg
import pytest

from tests.builders import (
    OWNER,
    insert_instance,
    insert_run,
    insert_server,
    insert_trust,
)
from trustfabric.db.session import Connection, Database
from trustfabric.domain.executors import LogStream
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.power import Desired
from trustfabric.domain.runs import ApprovalState, RunStatus
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.specs import ExecutorType
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.domain.vms import IsolationTier, PowerState
from trustfabric.errors import RunActiveError

TABLES = {
    "users",
    "servers",
    "runtime_vm_instances",
    "runtime_vm_events",
    "runtime_vm_attestations",
    "runtime_vm_trust_history",
    "runtime_vm_trust_registry",
    "runtime_vm_remediation_playbooks",
    "runtime_vm_remediation_runs",
    "runtime_vm_remediation_approvals",
    "runtime_vm_remediation_events",
    "trust_holds",
    "runtime_vm_remediation_artifacts",
    "runtime_vm_accelerator_posture",
    "evaluation_certifications",
    "evaluation_refresh_jobs",
    "capability_intelligence_scores",
    "runtime_policy_decisions",
}
"""Those of the contract; the runtime's own books come on top."""

INSERT_HISTORY = """
    INSERT INTO runtime_vm_trust_history (
           runtime_vm_instance_id, current_status, current_lifecycle_state,
           transition_reason, remediation_state, remediation_attempts,
           freshness_deadline, provenance_ref, registry_version, actor)
    VALUES (%(instance)s, 'trusted', 'restored', %(reason)s, %(tag)s, 0, now(),
            %(ref)s, %(version)s, 'test')
"""


async def words_of(conn: Connection, table: str, column: str) -> set[str]:
    """Return the words that a column's CHECK lets in."""
    cursor = await conn.execute(
        """
        SELECT pg_get_constraintdef(c.oid)
          FROM pg_constraint c
          JOIN pg_attribute a ON a.attrelid = c.conrelid AND c.conkey = ARRAY[a.attnum]
         WHERE c.contype = 'c' AND c.conrelid = %s::regclass AND a.attname = %s
        """,
        [table, column],
    )
    return {
        word
        for (check,) in await cursor.fetchall()
        for word in re.findall(r"'([^']+)'::text", check)
    }


async def test_every_table_of_the_contract_is_there(database: Database) -> None:
    async with database.reading() as conn:
        cursor = await conn.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )
        assert {name for (name,) in await cursor.fetchall()} >= TABLES


async def test_ids_are_big_and_times_know_their_zone(database: Database) -> None:
    async with database.reading() as conn:
        cursor = await conn.execute(
            """
            SELECT table_name, column_name, data_type FROM information_schema.columns
             WHERE table_schema = 'public' AND table_name <> 'schema_migrations'
               AND (data_type = 'timestamp without time zone'
                    OR column_name ~ '(^|_)id$' AND data_type = 'integer'
                    OR column_name = 'id' AND is_identity = 'NO'
                       AND table_name <> 'listener_positions')
            """
        )
        assert await cursor.fetchall() == []


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("servers.status", ServerStatus),
        ("runtime_vm_instances.isolation_tier", IsolationTier),
        ("runtime_vm_instances.desired_state", Desired),
        ("runtime_vm_instances.power_state", PowerState),
        ("runtime_vm_attestations.verification_status", AttestationStatus),
        ("runtime_vm_trust_registry.attestation_status", AttestationStatus),
        ("runtime_vm_trust_registry.lifecycle_state", Lifecycle),
        ("runtime_vm_trust_history.previous_status", AttestationStatus),
        ("runtime_vm_trust_history.current_status", AttestationStatus),
        ("runtime_vm_trust_history.previous_lifecycle_state", Lifecycle),
        ("runtime_vm_trust_history.current_lifecycle_state", Lifecycle),
        ("runtime_vm_remediation_playbooks.executor_type", ExecutorType),
        ("runtime_vm_remediation_runs.status", RunStatus),
        ("runtime_vm_remediation_runs.approval_state", ApprovalState),
        ("runtime_vm_remediation_runs.failure_reason", FailureReason),
        ("runtime_vm_remediation_events.stream", LogStream),
        ("evaluation_certifications.last_attestation_status", AttestationStatus),
    ],
)
async def test_a_column_takes_the_words_that_the_domain_has(
    database: Database, column: str, words: Iterable[StrEnum]
) -> None:
    table, name = column.split(".")

    async with database.reading() as conn:
        assert await words_of(conn, table, name) == {str(word) for word in words}


async def test_every_status_has_a_check(database: Database) -> None:
    async with database.reading() as conn:
        cursor = await conn.execute(
            """
            SELECT table_name, column_name FROM information_schema.columns
             WHERE table_schema = 'public' AND data_type = 'text'
               AND column_name ~ '(status|_state|^kind|^scope|decision)$'
               AND table_name !~ '^attestation_'
            """
        )
        for table, column in await cursor.fetchall():
            assert await words_of(conn, table, column), (table, column)


async def test_of_many_racing_runs_one_is_active(database: Database) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)

    async def enqueue() -> None:
        async with database.writing() as conn:
            await insert_run(conn, instance)

    results = await asyncio.gather(
        *(enqueue() for _ in range(16)), return_exceptions=True
    )

    assert results.count(None) == 1
    assert sum(isinstance(result, RunActiveError) for result in results) == 15


async def test_an_ended_run_makes_room_for_the_next(database: Database) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
        await insert_run(conn, instance)
        await conn.execute("UPDATE runtime_vm_remediation_runs SET status = 'failed'")

        await insert_run(conn, instance)


async def test_a_running_run_has_a_lease(database: Database) -> None:
    async with database.writing() as conn:
        await insert_run(conn, await insert_instance(conn))
        with pytest.raises(psycopg.errors.CheckViolation, match="running_is_leased"):
            await conn.execute(
                "UPDATE runtime_vm_remediation_runs SET status = 'running'"
            )
        await conn.rollback()


@pytest.mark.parametrize("table", ["trust_history", "remediation_events"])
async def test_what_happened_is_not_rewritten(database: Database, table: str) -> None:
    async with database.writing() as conn:
        with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
            await conn.execute(f"UPDATE runtime_vm_{table} SET id = id".encode())
        await conn.rollback()


async def test_one_history_row_for_each_version(database: Database) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
        await insert_trust(conn, instance)
        with pytest.raises(psycopg.errors.UniqueViolation, match="history_version"):
            await insert_trust_again(conn, instance)
        await conn.rollback()


async def insert_trust_again(conn: Connection, instance: int) -> None:
    await conn.execute(
        INSERT_HISTORY.encode(),
        {
            "instance": instance,
            "reason": "",
            "tag": "remediation:none",
            "ref": "",
            "version": 1,
        },
    )


async def test_a_transition_is_told_with_its_small_fields(
    database: Database, database_url: str
) -> None:
    async with database.writing() as conn:
        instance = await insert_instance(conn)
    listener = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
    await listener.execute("LISTEN runtime_vm_trust_transition")

    async with database.writing() as conn:
        await insert_trust(conn, instance)
    (note,) = [note async for note in listener.notifies(timeout=20, stop_after=1)]
    await listener.close()

    told = json.loads(note.payload)
    at = datetime.fromisoformat(told.pop("triggered_at"))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert told == {
        "history_id": 1,
        "runtime_vm_instance_id": instance,
        "previous_status": None,
        "current_status": "pending",
        "previous_lifecycle_state": None,
        "current_lifecycle_state": "suspect",
        "transition_reason": "provisioned",
        "remediation_state": "remediation:none",
        "remediation_attempts": 0,
        "freshness_deadline": None,
        "provenance_ref": None,
        "registry_version": 1,
    }


async def test_a_run_event_is_told_by_its_numbers(
    database: Database, database_url: str
) -> None:
    async with database.writing() as conn:
        run = await insert_run(conn, await insert_instance(conn))
    listener = await psycopg.AsyncConnection.connect(database_url, autocommit=True)
    await listener.execute("LISTEN runtime_vm_remediation")

    async with database.writing() as conn:
        await conn.execute(
            """
            INSERT INTO runtime_vm_remediation_events (run_id, seq, kind, message)
            VALUES (%s, 1, 'log', repeat('x', 100000))
            """,
            [run],
        )
    (note,) = [note async for note in listener.notifies(timeout=20, stop_after=1)]
    await listener.close()

    assert json.loads(note.payload) == {
        "event_id": 1,
        "run_id": run,
        "seq": 1,
        "kind": "log",
    }


@pytest.mark.parametrize("character", ["x", "\x01", "😀", '"', "\\"])
async def test_the_longest_texts_still_fit_a_notification(
    database: Database, character: str
) -> None:
    async with database.writing() as conn:
        await conn.execute(
            INSERT_HISTORY.encode(),
            {
                "instance": await insert_instance(conn),
                "reason": character * 500,
                "tag": "remediation:" + "x" * 52,
                "ref": character * 200,
                "version": 2**63 - 1,
            },
        )


@pytest.mark.parametrize("owner", [OWNER, None])
async def test_a_playbook_key_is_unique_for_its_owner_and_among_the_shared(
    database: Database, owner: int | None
) -> None:
    insert = """
        INSERT INTO runtime_vm_remediation_playbooks
               (playbook_key, display_name, executor_type, owner_id)
        VALUES ('default', 'Default', 'shell', %s)
    """
    async with database.writing() as conn:
        await insert_server(conn)
        await conn.execute(insert, [OWNER])
        await conn.execute(insert, [None])
        with pytest.raises(
            psycopg.errors.UniqueViolation, match="playbook_key_per_owner"
        ):
            await conn.execute(insert, [owner])
        await conn.rollback()


@pytest.mark.parametrize(("backend", "tier"), [(None, None), ("libvirt", "sev")])
async def test_a_score_is_one_per_capability_backend_and_tier(
    database: Database, backend: str | None, tier: str | None
) -> None:
    insert = """
        INSERT INTO capability_intelligence_scores
               (server_id, capability, backend, tier, score, status)
        VALUES (%s, 'runtime', %s, %s, 85, 'healthy')
    """
    async with database.writing() as conn:
        server = await insert_server(conn)
        await conn.execute(insert, [server, backend, tier])
        with pytest.raises(
            psycopg.errors.UniqueViolation, match="score_per_capability"
        ):
            await conn.execute(insert, [server, backend, tier])
        await conn.rollback()


@pytest.mark.parametrize(
    ("scope", "instance", "owner"),
    [("instance", False, False), ("owner", True, True), ("all", True, False)],
)
async def test_a_hold_names_what_its_scope_says(
    database: Database, *, scope: str, instance: bool, owner: bool
) -> None:
    async with database.writing() as conn:
        held = await insert_instance(conn)
        with pytest.raises(psycopg.errors.CheckViolation, match="hold_scope"):
            await conn.execute(
                """
                INSERT INTO trust_holds
                       (scope, runtime_vm_instance_id, owner_id, reason, by)
                VALUES (%s, %s, %s, 'because', 'user:7')
                """,
                [scope, held if instance else None, OWNER if owner else None],
            )
        await conn.rollback()


async def test_ids_can_be_had_before_their_rows(database: Database) -> None:
    async with database.writing() as conn:
        cursor = await conn.execute(
            "SELECT nextval(pg_get_serial_sequence('runtime_vm_attestations', 'id'))"
        )
        row = await cursor.fetchone()
        assert row is not None
        await conn.execute(
            """
            INSERT INTO runtime_vm_attestations
                   (id, runtime_vm_instance_id, attestation_kind, verification_status)
            VALUES (%s, %s, 'tpm', 'trusted')
            """,
            [row[0], await insert_instance(conn)],
        )
