"""The registry's statements: what they lock, write and list, and by which index."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from tests.builders import OWNER
from tests.fix_fabric import Fabric
from trustfabric.db import attestations, trust, trust_events
from trustfabric.db.session import Connection, Database
from trustfabric.db.trust import PostureFilter, Transition
from trustfabric.domain.events import Position
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import AttestationStatus, Change, Lifecycle, Signal

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


async def listed(
    fabric: Fabric, wanted: PostureFilter, **parts: Any
) -> list[InstanceId]:
    async with fabric.database.reading() as conn:
        postures = await trust.list_postures(conn, wanted, fabric.clock.now(), **parts)
    return [posture.instance_id for posture in postures]


async def terminate(fabric: Fabric, instance: InstanceId) -> None:
    async with fabric.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET terminated_at = now() WHERE id = %s",
            [instance],
        )


async def decayed(fabric: Fabric, limit: int = 10) -> list[InstanceId]:
    async with fabric.database.reading() as conn:
        return await trust.list_decayed(conn, fabric.clock.now(), limit=limit)


# --- writing -----------------------------------------------------------------------


async def test_what_was_written_past_the_lock_is_left_alone(fabric: Fabric) -> None:
    instance = await fabric.instance()
    change = Change(signal=Signal.ANNOTATED, actor="test", reason="note")
    async with fabric.database.writing() as conn:
        before, _ = (await trust.lock(conn, [instance]))[instance]
    await fabric.change(instance, Signal.ANNOTATED)

    async with fabric.database.writing() as conn:
        missed = await trust.save(conn, [Transition(before, before, change)])

    assert missed == {instance}
    assert len(await fabric.history(instance)) == 2


async def test_a_missing_instance_is_left_out(fabric: Fabric) -> None:
    instance = await fabric.instance()

    async with fabric.database.writing() as conn:
        rows = await trust.lock(conn, [InstanceId(99), instance])

    assert list(rows) == [instance]


# --- lists -------------------------------------------------------------------------


async def test_a_list_is_narrowed_by_each_filter(fabric: Fabric) -> None:
    plain = await fabric.instance()
    trusted = await fabric.instance()
    foreign = await fabric.instance(OWNER + 1)
    gone = await fabric.instance()
    await fabric.change(trusted, Signal.TRUSTED_VERDICT)
    await terminate(fabric, gone)
    server = (await fabric.posture(trusted)).server_id

    wanted = [
        (PostureFilter(), [plain, trusted, foreign]),
        (PostureFilter(owner_id=OwnerId(OWNER)), [plain, trusted]),
        (PostureFilter(server_id=server), [trusted]),
        (PostureFilter(lifecycle=Lifecycle.RESTORED), [trusted]),
        (PostureFilter(status=AttestationStatus.PENDING), [plain, foreign]),
        (PostureFilter(stale=True), []),
        (PostureFilter(stale=False), [plain, trusted, foreign]),
        (PostureFilter(owner_id=OwnerId(999)), []),
    ]
    for each, found in wanted:
        assert await listed(fabric, each) == found

    fabric.clock.advance(300)
    assert await listed(fabric, PostureFilter(stale=True)) == [trusted]
    assert await listed(fabric, PostureFilter(stale=False)) == [plain, foreign]


async def test_pages_meet_without_a_gap(fabric: Fabric) -> None:
    instances = await fabric.instances(5)

    first = await listed(fabric, PostureFilter(), limit=2)
    second = await listed(fabric, PostureFilter(), limit=2, after=first[-1])
    third = await listed(fabric, PostureFilter(), limit=2, after=second[-1])

    assert [*first, *second, *third] == instances


async def test_others_rows_are_not_there(fabric: Fabric) -> None:
    instance = await fabric.instance()

    async with fabric.database.reading() as conn:
        mine = await trust.get_posture(conn, OwnerId(OWNER), instance)
        others = await trust.get_posture(conn, OwnerId(OWNER + 1), instance)

    assert mine is not None
    assert mine.server_name == "web"
    assert others is None


async def test_decay_finds_the_running_restored_and_overdue(fabric: Fabric) -> None:
    overdue, stopped, gone, distrusted = instances = await fabric.instances(4)
    for each in instances:
        await fabric.change(each, Signal.TRUSTED_VERDICT)
    await fabric.change(distrusted, Signal.QUARANTINED_BY_HAND)
    await terminate(fabric, gone)
    async with fabric.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET desired_state = 'stopped' WHERE id = %s",
            [stopped],
        )

    fabric.clock.advance(299)
    assert await decayed(fabric) == []
    fabric.clock.advance(1)
    assert await decayed(fabric) == [overdue]


async def test_the_longest_overdue_decay_first(fabric: Fabric) -> None:
    instances = await fabric.instances(3)
    for each in reversed(instances):
        await fabric.change(each, Signal.TRUSTED_VERDICT)
        fabric.clock.advance(1)
    fabric.clock.advance(600)

    assert await decayed(fabric, limit=2) == instances[:0:-1]


# --- indexes -----------------------------------------------------------------------

CROWD = [
    "INSERT INTO users (id) SELECT generate_series(1, 200)",
    """
    INSERT INTO servers (id, owner_id, name, status)
    SELECT n, 1 + n % 200, 'web', 'running' FROM generate_series(1, 12000) n
    """,
    """
    INSERT INTO runtime_vm_instances
           (id, server_id, instance_id, driver, desired_state, power_state,
            runtime_owner)
    SELECT n, n, 'vm-' || n, 'libvirt', 'running', 'running', 'here'
      FROM generate_series(1, 12000) n
    """,
    """
    INSERT INTO runtime_vm_trust_registry
           (runtime_vm_instance_id, attestation_status, lifecycle_state,
            freshness_deadline)
    SELECT n, CASE WHEN n % 1000 = 0 THEN 'untrusted' ELSE 'trusted' END,
           CASE WHEN n % 1000 = 0 THEN 'quarantined' ELSE 'restored' END,
           timestamptz '2026-01-01Z' + n * interval '1 second'
      FROM generate_series(1, 12000) n
    """,
    """
    INSERT INTO runtime_vm_trust_history
           (runtime_vm_instance_id, current_status, current_lifecycle_state,
            transition_reason, remediation_state, remediation_attempts,
            registry_version, actor, xid)
    SELECT n, 'pending', 'suspect', 'provisioned', 'remediation:none', 0, 1, 'test',
           n::text::xid8
      FROM generate_series(1, 12000) n
    """,
    """
    INSERT INTO attestation_challenges
           (attestation_id, runtime_vm_instance_id, kind, purpose, nonce_digest,
            issued_at, expires_at)
    SELECT n, n, 'tpm', 'boot', sha256(n::text::bytea),
           timestamptz '2025-12-31Z', timestamptz '2026-01-01Z'
      FROM generate_series(1, 12000) n
    """,
    "ANALYZE",
]


@pytest.fixture
async def crowd(database: Database) -> Database:
    """A fleet of twelve thousand."""
    async with database.writing() as conn:
        await conn.execute(
            "ALTER TABLE runtime_vm_trust_history DISABLE TRIGGER history_notifies"
        )
        for statement in CROWD:
            await conn.execute(statement.encode())
    return database


class Explained(psycopg.AsyncCursor[Any]):
    """Runs each statement under EXPLAIN and keeps the plans."""

    plans: list[str]

    async def execute(self, query: Any, params: Any = None, **rest: Any) -> Any:
        await super().execute("EXPLAIN " + query, params, **rest)
        self.plans.extend(str(row) for row in await super().fetchall())
        await super().execute("SELECT WHERE false")
        return self


async def plan_of(conn: Connection, read: Any) -> str:
    """Return how PostgreSQL goes about what `read` asks."""
    plans: list[str] = []
    kind = type("Cursor", (Explained,), {"plans": plans})
    conn.cursor_factory = kind
    try:
        await read
    finally:
        conn.cursor_factory = psycopg.AsyncCursor
    return "\n".join(plans)


FILTERS: Sequence[PostureFilter] = [
    PostureFilter(),
    PostureFilter(owner_id=OwnerId(OWNER)),
    PostureFilter(server_id=ServerId(77)),
    PostureFilter(lifecycle=Lifecycle.QUARANTINED),
    PostureFilter(status=AttestationStatus.UNTRUSTED),
    PostureFilter(owner_id=OwnerId(OWNER), lifecycle=Lifecycle.QUARANTINED),
    PostureFilter(stale=True),
]


async def test_no_list_of_a_large_fleet_reads_all_of_it(crowd: Database) -> None:
    soon = NEW_YEAR + timedelta(seconds=60)
    ahead, quiet = timedelta(seconds=60), timedelta(seconds=30)
    async with crowd.reading() as conn:
        reads: list[Callable[[], Any]] = [
            *(
                partial(trust.list_postures, conn, each, soon, after=6000)
                for each in FILTERS
            ),
            lambda: trust.list_decayed(conn, soon, limit=500),
            lambda: attestations.list_due(
                conn, "here", NEW_YEAR, ahead=ahead, quiet=quiet, limit=500
            ),
            lambda: trust_events.events_after(conn, Position(11_990, 0), limit=1000),
            lambda: trust_events.events_after(conn, Position.FIRST, limit=100),
            lambda: trust_events.list_history(conn, OwnerId(OWNER), InstanceId(6)),
        ]
        for read in reads:
            plan = await plan_of(conn, read())
            assert plan
            for line in plan.splitlines():
                # Those are few here; each of their reads is by its instance.
                few = "remediation_runs" in line or "attestation_silences" in line
                assert "Seq Scan" not in line or few, plan


async def test_what_is_terminated_is_not_passed_by_again(crowd: Database) -> None:
    async with crowd.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET terminated_at = now() WHERE id <> 77"
        )
        (size,) = await one_row(conn, "SELECT count(*) FILTER (WHERE NOT ended)")
        found = await trust.list_decayed(conn, NEW_YEAR + timedelta(days=1), limit=9)
        await conn.execute("UPDATE runtime_vm_instances SET terminated_at = NULL")
        (back,) = await one_row(conn, "SELECT count(*) FILTER (WHERE NOT ended)")
        (versions,) = await one_row(conn, "SELECT max(version)")

    assert (size, found) == (1, [77])
    assert (back, versions) == (12_000, 1)


async def one_row(conn: Connection, what: str) -> tuple[Any, ...]:
    cursor = await conn.execute(f"{what} FROM runtime_vm_trust_registry".encode())
    row = await cursor.fetchone()
    assert row is not None
    return row


async def test_lists_of_a_large_fleet_are_quick_in_themselves(crowd: Database) -> None:
    async with crowd.reading() as conn:
        await conn.execute("SET LOCAL statement_timeout = '100ms'")
        for each in FILTERS:
            for _ in range(7):
                await trust.list_postures(conn, each, NEW_YEAR, after=6000, limit=100)
