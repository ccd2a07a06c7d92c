"""Holds and incidents in the database: one of each, and counts that are true."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.builders import insert_instance, insert_owner, insert_run, insert_trust
from tests.db.fix_runs import ALICE, BOB, add_instance, snapshot
from trustfabric.db import hold_events, holds, incidents, storms
from trustfabric.db.session import Database
from trustfabric.domain.events import Position
from trustfabric.domain.holds import Hold, HoldOrder, HoldScope, check_order
from trustfabric.domain.ids import InstanceId, OwnerId, RunId
from trustfabric.domain.storms import Cause, Count, StormLimits, Trip
from trustfabric.errors import HeldError

LIMITS = StormLimits()
TRIP = Trip(scope=HoldScope.OWNER, owner_id=ALICE, cause=Cause.SHARE, count=Count(5, 5))


def now() -> datetime:
    return datetime.now(UTC)


async def fall(
    database: Database,
    instance: InstanceId,
    *,
    ago: timedelta = timedelta(0),
    metadata: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Quarantine an instance as the one writer does."""
    async with database.writing() as conn:
        await conn.execute(
            """
            WITH saved AS (
                UPDATE runtime_vm_trust_registry
                   SET lifecycle_state = 'quarantined', version = version + 1,
                       provenance = %(provenance)s
                 WHERE runtime_vm_instance_id = %(id)s
             RETURNING version
            )
            INSERT INTO runtime_vm_trust_history (
                   runtime_vm_instance_id, previous_lifecycle_state, current_status,
                   current_lifecycle_state, transition_reason, remediation_state,
                   remediation_attempts, registry_version, actor, metadata,
                   triggered_at)
            SELECT %(id)s, 'restored', 'untrusted', 'quarantined', 'refused',
                   'remediation:investigate', 0, version, 'test', %(metadata)s, %(at)s
              FROM saved
            """,
            {
                "id": instance,
                "at": now() - ago,
                "metadata": Jsonb(metadata or {}),
                "provenance": None if provenance is None else Jsonb(provenance),
            },
        )


async def counted(database: Database) -> dict[OwnerId, Count]:
    async with database.reading() as conn:
        census = await storms.read_census(conn, now(), LIMITS)
    return {hit.owner_id: hit.count for hit in census.hits}


async def opened(database: Database, trip: Trip = TRIP, by: str = "one") -> Any:
    async with database.writing() as conn:
        return await incidents.open_incident(conn, trip, LIMITS, now(), by)


async def place(database: Database, **changes: Any) -> Hold:
    order = HoldOrder(
        **{
            "scope": HoldScope.OWNER,
            "reason": "wait",
            "by": "user:7",
            "caller": ALICE,
            "is_admin": True,
            **changes,
        }
    )
    async with database.writing() as conn:
        hold, _ = await holds.place_hold(conn, check_order(order, now()), None, now())
    return hold


# --- the census ---------------------------------------------------------------------


async def test_the_window_counts_living_vms_once_and_by_owner(
    database: Database,
) -> None:
    fleet = [await add_instance(database) for _ in range(8)]
    theirs = await add_instance(database, BOB)
    for instance in (*fleet[:6], fleet[0], theirs):
        await fall(database, instance)
    await fall(database, fleet[6], ago=timedelta(minutes=11))
    await fall(database, fleet[7], metadata={"run_id": 4})
    async with database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET terminated_at = now() WHERE id = %s",
            [fleet[1]],
        )

    found = await counted(database)

    assert found == {ALICE: Count(5, 7), BOB: Count(1, 0)}


async def test_a_share_that_is_small_is_not_counted_to_its_end(
    database: Database,
) -> None:
    fleet = [await add_instance(database) for _ in range(40)]
    for instance in fleet[:5]:
        await fall(database, instance)

    (count,) = (await counted(database)).values()

    assert count == Count(5, 26), "26 are enough to know that it is no storm"
    assert count.passes(LIMITS) is None


async def test_the_count_scans_the_window_by_its_index(database: Database) -> None:
    fleet = [await add_instance(database) for _ in range(3)]
    for instance in fleet:
        await fall(database, instance)
    facts = {"since": now() - LIMITS.window, "owner_id": None}
    async with database.writing() as conn:
        await conn.execute("SET LOCAL enable_seqscan = off")
        cursor = await conn.execute(
            f"EXPLAIN {storms._COUNT_SQL}".encode(), facts, prepare=False
        )
        plan = "\n".join(row[0] for row in await cursor.fetchall())

    assert "history_quarantines" in plan


async def test_what_a_person_let_go_counts_no_more_anywhere(
    database: Database,
) -> None:
    for _ in range(6):
        await fall(database, await add_instance(database))
    assert await opened(database)
    release = incidents.BreakerRelease(by="user:1", reason="ok", owner_id=ALICE)
    async with database.writing() as conn:
        (released,) = await incidents.release_incidents(conn, release, now())
    assert not released.is_open

    assert await counted(database) == {}
    await fall(database, await add_instance(database))

    assert (await counted(database))[ALICE].quarantined == 1


async def test_news_is_what_fell_since_the_last_look(database: Database) -> None:
    instance = await add_instance(database)

    async def news(horizon: str) -> tuple[str, bool]:
        async with database.reading() as conn:
            return await storms.read_news(conn, horizon)

    horizon, is_news = await news("0")
    assert not is_news
    await fall(database, instance)
    later, is_news = await news(horizon)
    assert is_news

    assert (await news(later))[1] is False


# --- incidents ------------------------------------------------------------------------


async def test_of_many_that_open_a_breaker_at_once_one_does(
    database: Database,
) -> None:
    for _ in range(5):
        await fall(database, await add_instance(database))

    found = await asyncio.gather(*(opened(database, by=str(at)) for at in range(6)))

    assert len([one for one in found if one is not None]) == 1
    async with database.reading() as conn:
        assert len(await incidents.list_incidents(conn, None)) == 1
        (hold,) = await holds.list_holds(conn, holds.HoldFilter(), now())
        events = await hold_events.events_after(conn, Position.FIRST, limit=10)
    assert hold.is_breakers
    assert [one.event.kind for one in events] == ["breaker-opened"]


async def test_an_incident_knows_traits_from_evidence_and_policy(
    database: Database,
) -> None:
    evidence = {
        "policy": {"id": "strict", "version": 3},
        "claims": {"measurement": "ab" * 24, "reported_tcb": "7"},
        "code": "measurement-mismatch",
    }
    for _ in range(5):
        instance = await add_instance(database)
        await fall(database, instance, provenance=evidence)
    await add_instance(database)

    incident = await opened(database)

    told = {one["trait"]: one["value"] for one in incident.common}
    assert told == {
        "measurement": "ab" * 24,
        "firmware": "7",
        "policy": "strict@3",
        "code": "measurement-mismatch",
    }
    assert (incident.living, len(incident.affected)) == (6, 5)


async def test_an_open_incident_grows_with_what_falls_later(
    database: Database,
) -> None:
    fleet = [await add_instance(database) for _ in range(7)]
    for instance in fleet[:5]:
        await fall(database, instance)
    incident = await opened(database)

    async def grown() -> bool:
        async with database.writing() as conn:
            return await incidents.grow_incident(conn, incident, now())

    assert not await grown()
    await fall(database, fleet[5])
    assert await grown()

    async with database.reading() as conn:
        after = await incidents.get_incident(conn, None, incident.id)
    assert after is not None
    assert (after.quarantined, len(after.affected)) == (6, 6)


async def test_tenants_see_their_own_incidents_and_the_fleets(
    database: Database,
) -> None:
    async with database.writing() as conn:
        await insert_owner(conn, BOB)
    await fall(database, await add_instance(database))
    await opened(database)
    fleets = Trip(
        scope=HoldScope.ALL, owner_id=None, cause=Cause.SHARE, count=Count(5, 5)
    )
    await opened(database, fleets)

    async with database.reading() as conn:
        mine = await incidents.list_incidents(conn, ALICE)
        theirs = await incidents.list_incidents(conn, BOB)

    assert [one.scope for one in mine] == [HoldScope.ALL, HoldScope.OWNER]
    assert [one.scope for one in theirs] == [HoldScope.ALL]


# --- what a hold keeps from ---------------------------------------------------------


async def refused(
    database: Database, instance: InstanceId, run_id: RunId | None = None
) -> bool:
    async with database.writing() as conn:
        before = await snapshot(conn, instance)
        companion = holds.RefuseIfHeld(now=now(), run_id=run_id)
        try:
            await companion.write(conn, before)
        except HeldError:
            return True
    return False


@pytest.mark.parametrize("scope", HoldScope)
async def test_a_persons_hold_keeps_from_everything_in_its_scope(
    database: Database, scope: HoldScope
) -> None:
    mine, theirs = await add_instance(database), await add_instance(database, BOB)
    only = {"instance_id": mine} if scope is HoldScope.INSTANCE else {}
    await place(database, scope=scope, **only)
    async with database.writing() as conn:
        run = RunId(await insert_run(conn, mine))

    assert await refused(database, mine)
    assert await refused(database, mine, run)
    assert await refused(database, theirs) is (scope is HoldScope.ALL)


@pytest.mark.parametrize(
    ("requested_by", "decided", "expected"),
    [
        ("actor:dispatcher", None, True),
        ("actor:dispatcher", timedelta(seconds=-5), True),
        ("actor:dispatcher", timedelta(seconds=5), False),
        ("user:7", None, False),
    ],
)
async def test_the_breaker_keeps_from_what_nobody_asked_for(
    database: Database,
    requested_by: str,
    decided: timedelta | None,
    *,
    expected: bool,
) -> None:
    instance = await add_instance(database)
    await fall(database, instance)
    incident = await opened(database)
    async with database.writing() as conn:
        run = RunId(await insert_run(conn, instance))
        await conn.execute(
            "UPDATE runtime_vm_remediation_runs"
            "   SET requested_by = %s, approval_decided_at = %s WHERE id = %s",
            [requested_by, decided and incident.opened_at + decided, run],
        )

    assert await refused(database, instance)
    assert await refused(database, instance, run) is expected


async def test_an_end_is_told_once_whoever_looks(database: Database) -> None:
    soon = now() + timedelta(seconds=1)
    await insert_all(database)
    hold = await place(database, until=soon)

    async def tell() -> int:
        async with database.writing() as conn:
            later = soon + timedelta(seconds=1)
            return await holds.tell_expired(conn, later, limit=10)

    assert sum(await asyncio.gather(*(tell() for _ in range(4)))) == 1
    async with database.reading() as conn:
        events = await hold_events.list_events(conn, hold.id)
        assert await holds.next_expiry(conn) is None
    assert [event.kind for event in events] == ["held", "expired"]


async def insert_all(database: Database) -> None:
    async with database.writing() as conn:
        for owner in (ALICE, BOB):
            await insert_owner(conn, owner)
        await insert_trust(conn, await insert_instance(conn, ALICE))
