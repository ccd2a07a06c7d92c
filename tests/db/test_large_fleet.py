"""What is read again and again of a large fleet doesn't read all of it."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.builders import OWNER
from tests.db.test_trust import CROWD, plan_of
from trustfabric.db import (
    evaluations,
    intelligence,
    metrics,
    placement,
    refreshes,
    servers,
    vms,
)
from trustfabric.db.session import Connection, Database
from trustfabric.domain.evaluations import CertificationId
from trustfabric.domain.events import Position
from trustfabric.domain.ids import OwnerId, ServerId
from trustfabric.errors import NotFoundError

NOON = datetime(2025, 12, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
Read = Callable[[Connection], Awaitable[Any]]

PAPERS = [
    "ALTER TABLE evaluation_certifications DISABLE TRIGGER certification_notifies",
    """
    INSERT INTO evaluation_certifications
           (id, server_id, status, next_refresh_at, version, blocked_reason)
    SELECT n, n, 'pass', timestamptz '2025-12-31 12:10Z' + n * interval '0.1 s', 3,
           CASE WHEN n % 1000 = 0 THEN 'trust:attestation:untrusted' END
      FROM generate_series(1, 12000) n
    """,
    """
    INSERT INTO evaluation_refresh_jobs (certification_id, not_before)
    SELECT id, next_refresh_at FROM evaluation_certifications
     WHERE blocked_reason IS NULL
    """,
    """
    INSERT INTO capability_intelligence_scores (server_id, capability, score, status)
    SELECT n, 'runtime', 85, 'healthy' FROM generate_series(1, 12000) n
    """,
    """
    INSERT INTO runtime_policy_decisions (server_id, backend, tier, verb, allowed)
    SELECT n, 'libvirt', 'standard', 'start', true FROM generate_series(1, 12000) n
    """,
    "ALTER TABLE runtime_vm_trust_history DISABLE TRIGGER history_is_append_only",
    "UPDATE runtime_vm_trust_registry SET version = 1",
    "ANALYZE",
]

SMALL = (
    "runtime_vm_remediation_runs",
    "runtime_vm_attestations",
    "runtime_vm_accelerator_posture",
    "trust_holds",
)
"""Empty here, where a scan is the shortest way; each is read by an indexed key."""


@pytest.fixture
async def crowd(database: Database, database_url: str) -> Database:
    """A fleet of twelve thousand, each with a certification, in good order."""
    async with database.writing() as conn:
        await conn.execute(
            "ALTER TABLE runtime_vm_trust_history DISABLE TRIGGER history_notifies"
        )
        for statement in (*CROWD, *PAPERS):
            await conn.execute(statement.encode())
    async with await psycopg.AsyncConnection.connect(
        database_url, autocommit=True
    ) as alone:
        await alone.execute("VACUUM")  # so that indexes alone can answer
    return database


def a_search(**parts: Any) -> refreshes.Search:
    return refreshes.Search(
        **{"runtime": "here", "look_ahead": HOUR, "limit": 100, **parts}
    )


READS: dict[str, Read] = {
    "the gate": lambda conn: placement.read_situation(conn, ServerId(400), NOON),
    "who waits": lambda conn: servers.list_waiting(conn, NOON),
    "who waits of some": lambda conn: servers.list_waiting(conn, NOON, {ServerId(7)}),
    "orders": lambda conn: vms.list_unsettled(conn, "here"),
    "decisions": lambda conn: placement.decisions_after(conn, 11_990, limit=1000),
    "the newest decision": placement.newest_decision,
    "refreshes of some": lambda conn: refreshes.list_candidates(
        conn, a_search(servers={ServerId(7)}), NOON
    ),
    "a page of certifications": lambda conn: evaluations.list_standings(
        conn, evaluations.CertificationFilter(), after=6000
    ),
    "an owner's certifications": lambda conn: evaluations.list_standings(
        conn, evaluations.CertificationFilter(owner_id=OwnerId(OWNER))
    ),
    "a certification": lambda conn: evaluations.get_standing(
        conn, None, CertificationId(77)
    ),
    "a certification's refreshes": lambda conn: refreshes.list_refreshes(
        conn, CertificationId(77)
    ),
    "inputs of scores": lambda conn: intelligence.read_inputs(
        conn, [ServerId(n) for n in range(1, 50)]
    ),
    "scores": lambda conn: intelligence.list_scores(conn, None, ServerId(5)),
    "a page of servers": lambda conn: intelligence.page_of_servers(
        conn, after=500, limit=200
    ),
    "who is quarantined": lambda conn: metrics.list_quarantined(conn, limit=1000),
    "who is stale": lambda conn: conn.execute(metrics._STALE_SQL, {"now": NOON - HOUR}),
    "the queue": lambda conn: metrics.read_runs(conn, NOON),
    "the lag": lambda conn: metrics.trust_waiting_since(conn, Position(11_990, 0)),
}


async def unanswered(read: Awaitable[Any]) -> None:
    """Await what is only explained: it has no row to go on with."""
    with suppress(NotFoundError, AssertionError):
        await read


async def test_each_goes_by_index(crowd: Database) -> None:
    scans: dict[str, list[str]] = {}
    async with crowd.reading() as conn:
        for what, read in READS.items():
            plan = await plan_of(conn, unanswered(read(conn)))
            assert plan, what
            lines = [line for line in plan.splitlines() if "Seq Scan" in line]
            scans[what] = [
                line for line in lines if not any(one in line for one in SMALL)
            ]

    assert {what: found for what, found in scans.items() if found} == {}


async def test_counting_the_fleet_reads_indexes_only(crowd: Database) -> None:
    async with crowd.reading() as conn:
        # The planner's choice depends on the disk; this is what it can choose.
        await conn.execute("SET LOCAL enable_seqscan = off")
        for query in (metrics._LIFECYCLES_SQL, metrics._STATUSES_SQL):
            plan = await plan_of(conn, conn.execute(query))
            assert plan.count("Index Only Scan") == 2, plan


async def test_a_tick_with_nothing_to_do_looks_where_work_would_show(
    crowd: Database,
) -> None:
    async with crowd.reading() as conn:
        assert await refreshes.list_candidates(conn, a_search(), NOON) == []
        plan = await plan_of(
            conn, unanswered(refreshes.list_candidates(conn, a_search(), NOON))
        )

    for index in ("refresh_jobs_due", "certifications_blocked", "registry_by_status"):
        assert index in plan, plan
    # Whoever has no refresh on its way is found by one pass over both keys; nothing
    # is looked up for each of the fleet.
    assert plan.count("Seq Scan on runtime_vm_instances") == 0, plan
    assert plan.count("Seq Scan on runtime_vm_trust_registry") == 0, plan


async def test_a_tick_finds_each_kind_of_work(crowd: Database) -> None:
    """One certification for each reason that there can be."""
    later = "timestamptz '2025-12-31 11:00Z'"
    work = {
        11: f"UPDATE evaluation_refresh_jobs SET not_before = {later}",
        12: f"""
            UPDATE evaluation_refresh_jobs
               SET status = 'claimed', lease_expires_at = {later}
            """,
        13: "UPDATE evaluation_refresh_jobs SET status = 'done'",
        14: "UPDATE evaluation_certifications SET blocked_reason = 'was held'",
        15: """
            UPDATE runtime_vm_trust_registry SET attestation_status = 'untrusted'
            """,
        16: """
            UPDATE runtime_vm_trust_registry SET lifecycle_state = 'remediating'
            """,
    }
    keys = {
        "evaluation_refresh_jobs": "certification_id",
        "evaluation_certifications": "id",
        "runtime_vm_trust_registry": "runtime_vm_instance_id",
    }
    async with crowd.writing() as conn:
        for number, statement in work.items():
            table = statement.split()[1]
            await conn.execute(
                sql.SQL("{} WHERE {} = %s").format(
                    sql.SQL(statement),
                    sql.Identifier(keys[table]),
                ),
                [number],
            )
        await conn.execute(
            """
            INSERT INTO runtime_vm_remediation_runs (
                   runtime_vm_instance_id, playbook, requested_by, playbook_snapshot,
                   content_sha256)
            VALUES (17, 'p', 'test', '{}', repeat('0', 64))
            """
        )
        await conn.execute("UPDATE servers SET deleted_at = now() WHERE id = 12")

    async with crowd.reading() as conn:
        found = await refreshes.list_candidates(conn, a_search(), NOON)
        of_some = await refreshes.list_candidates(
            conn, a_search(servers={ServerId(n) for n in range(1, 100)}), NOON
        )
        second = await refreshes.list_candidates(
            conn, a_search(after=13, limit=2), NOON
        )

    assert found == of_some == [*work, 17]
    assert second == [14, 15]
