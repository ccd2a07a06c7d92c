"""Certifications and refreshes as rows: scoped, locked, claimed once."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.builders import OWNER, insert_instance, insert_server, insert_trust
from trustfabric.db import evaluations, refreshes
from trustfabric.db.evaluations import CertificationFilter
from trustfabric.db.session import Connection, Database
from trustfabric.domain.evaluations import (
    Certification,
    CertificationId,
    CertificationStatus,
    JobStatus,
)
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.refreshes import Claim, End, Enqueue, Requeue
from trustfabric.errors import ConflictError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SEARCH = refreshes.Search(runtime="here", look_ahead=HOUR, limit=100)


async def insert_certification(
    conn: Connection, server: int, **columns: Any
) -> CertificationId:
    cursor = await conn.execute(
        "INSERT INTO evaluation_certifications (server_id) VALUES (%s) RETURNING id",
        [server],
    )
    row = await cursor.fetchone()
    assert row is not None
    for name, value in columns.items():
        await conn.execute(
            f"UPDATE evaluation_certifications SET {name} = %s WHERE id = %s".encode(),
            [value, row[0]],
        )
    return CertificationId(row[0])


async def a_running_one(
    conn: Connection, **columns: Any
) -> tuple[CertificationId, InstanceId]:
    instance = await insert_instance(conn)
    await insert_trust(conn, instance)
    await conn.execute("UPDATE runtime_vm_instances SET runtime_owner = 'here'")
    cursor = await conn.execute(
        "SELECT server_id FROM runtime_vm_instances WHERE id = %s", [instance]
    )
    row = await cursor.fetchone()
    assert row is not None
    certification = await insert_certification(conn, row[0], **columns)
    return certification, InstanceId(instance)


async def locked(conn: Connection, number: CertificationId) -> Certification:
    found = await evaluations.lock(conn, number)
    assert found is not None
    return found


async def candidates(database: Database, **search: Any) -> list[CertificationId]:
    async with database.reading() as conn:
        return await refreshes.list_candidates(conn, replace(SEARCH, **search), NOON)


async def test_what_is_saved_is_read_again_one_version_on(database: Database) -> None:
    async with database.writing() as conn:
        number = await insert_certification(conn, await insert_server(conn))
        before = await locked(conn, number)
        after = replace(
            before,
            status=CertificationStatus.PASS,
            evidence={"a": 1},
            evidence_source=["x"],
            evidence_lineage="text",
            cadence_s=60,
            next_refresh_at=NOON,
            governance_notes="note",
        )
        saved = await evaluations.save(conn, after, NOON)

    async with database.reading() as conn:
        found = await evaluations.get_standing(conn, OwnerId(OWNER), number)
    assert found is not None
    assert found.certification == saved
    assert saved == replace(after, version=2, updated_at=NOON)


async def test_others_certifications_are_not_there(database: Database) -> None:
    async with database.writing() as conn:
        mine = await insert_certification(conn, await insert_server(conn))
        theirs = await insert_certification(conn, await insert_server(conn, 8))
        assert await evaluations.lock(conn, theirs, OwnerId(OWNER)) is None

    async with database.reading() as conn:
        owner = CertificationFilter(owner_id=OwnerId(OWNER))
        found = await evaluations.list_standings(conn, owner)
        assert [row.certification.id for row in found] == [mine]
        assert await evaluations.get_standing(conn, OwnerId(OWNER), theirs) is None
        assert len(await evaluations.list_standings(conn, CertificationFilter())) == 2


async def test_a_list_goes_on_where_it_ended(database: Database) -> None:
    async with database.writing() as conn:
        server = await insert_server(conn)
        numbers = [await insert_certification(conn, server) for _ in range(5)]

    async with database.reading() as conn:
        rows = await evaluations.list_standings(
            conn, CertificationFilter(), after=numbers[1], limit=2
        )
    assert [row.certification.id for row in rows] == numbers[2:4]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({}, True),
        ({"version": 2}, False),
        ({"next_refresh_at": NOON + HOUR}, True),
        ({"next_refresh_at": NOON + 2 * HOUR}, False),
        ({"next_refresh_at": NOON + HOUR, "blocked_reason": "x"}, True),
    ],
)
async def test_what_is_due_is_found(
    database: Database, columns: dict[str, Any], *, found: bool
) -> None:
    async with database.writing() as conn:
        number, _ = await a_running_one(conn, **columns)

    assert await candidates(database) == ([number] if found else [])


async def test_a_blocked_one_without_trust_waits_for_its_check(
    database: Database,
) -> None:
    async with database.writing() as conn:
        number, _ = await a_running_one(
            conn, blocked_reason="x", next_refresh_at=NOON + HOUR
        )
        await conn.execute(
            "UPDATE runtime_vm_trust_registry SET lifecycle_state = 'quarantined'"
        )
    assert await candidates(database) == []

    async with database.writing() as conn:
        await conn.execute(
            "UPDATE evaluation_certifications SET next_refresh_at = %s", [NOON]
        )
    assert await candidates(database) == [number]


async def test_a_search_is_narrowed_to_servers_and_pages(database: Database) -> None:
    async with database.writing() as conn:
        first, _ = await a_running_one(conn)
        second, _ = await a_running_one(conn)
        row = (await locked(conn, second)).server_id

    assert await candidates(database, limit=1) == [first]
    assert await candidates(database, after=first) == [second]
    assert await candidates(database, servers={row}) == [second]
    assert await candidates(database, servers=set()) == []


async def test_of_many_that_enqueue_one_does(database: Database) -> None:
    async with database.writing() as conn:
        number, _ = await a_running_one(conn)

    async def enqueue() -> None:
        async with database.writing() as conn:
            await refreshes.act(conn, number, Enqueue(NOON), "here", NOON)

    results = await asyncio.gather(
        *(enqueue() for _ in range(8)), return_exceptions=True
    )

    assert results.count(None) == 1
    assert sum(isinstance(each, ConflictError) for each in results) == 7


async def test_of_many_that_claim_one_does(database: Database) -> None:
    async with database.writing() as conn:
        number, instance = await a_running_one(conn)
        await refreshes.act(conn, number, Enqueue(NOON), "here", NOON)
    claim = Claim(instance, NOON + HOUR)

    async def attempt(runtime: str) -> bool:
        async with database.writing() as conn:
            return await refreshes.act(conn, number, claim, runtime, NOON)

    claimed = await asyncio.gather(*(attempt(f"r{n}") for n in range(8)))

    assert claimed.count(True) == 1


async def test_who_sweeps_passes_by_what_another_has_in_hand(
    database: Database,
) -> None:
    async with database.writing() as conn:
        number, _ = await a_running_one(conn)

    async with database.writing() as first, database.writing() as second:
        await locked(first, number)
        assert await evaluations.lock(second, number, skip=True) is None


async def test_a_job_goes_its_way(database: Database) -> None:
    async with database.writing() as conn:
        number, instance = await a_running_one(conn)
        certification = await locked(conn, number)

        async def acted(action: Any) -> JobStatus | None:
            await refreshes.act(conn, number, action, "here", NOON)
            case = await refreshes.read_case(conn, certification, "here")
            return None if case.job is None else case.job.status

        assert await acted(Enqueue(NOON)) is JobStatus.QUEUED
        assert await acted(Claim(instance, NOON + HOUR)) is JobStatus.CLAIMED
        assert await acted(Requeue(NOON, "no answer")) is JobStatus.QUEUED
        assert await acted(Claim(instance, NOON + HOUR)) is JobStatus.CLAIMED
        assert await acted(End(JobStatus.DONE)) is None
        (refresh,) = await refreshes.list_refreshes(conn, number)

    assert (refresh.status, refresh.attempts) == (JobStatus.DONE, 2)
    assert refresh.last_error == "no answer"
    assert refresh.finished_at == NOON


async def test_of_old_refreshes_so_many_are_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refreshes, "KEPT", 3)
    async with database.writing() as conn:
        one, _ = await a_running_one(conn)
        other, _ = await a_running_one(conn)
        for number, times in ((other, 2), (one, 6)):
            for _ in range(times):
                await refreshes.act(conn, number, Enqueue(NOON), "here", NOON)
                await refreshes.act(conn, number, End(JobStatus.DONE), "here", NOON)
        await refreshes.act(conn, one, Enqueue(NOON), "here", NOON)

        kept = await refreshes.list_refreshes(conn, one, limit=100)
        others = await refreshes.list_refreshes(conn, other, limit=100)

    done, live = JobStatus.DONE, JobStatus.QUEUED
    assert [each.status for each in kept] == [live, done, done, done]
    assert len(others) == 2
