"""Holds and the breaker at work: what is kept from starting, and how it goes on."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.actors.fix_remediation import SETTINGS, Fabric, a_fabric, until
from tests.builders import insert_owner
from tests.db.fix_runs import ALICE, BOB, KEY, add_instance, add_playbook
from trustfabric.actors.dispatch import DecideApproval, EnqueueRun
from trustfabric.actors.holds import LookOut, PlaceHold, ReleaseBreaker, ReleaseHold
from trustfabric.db import hold_events, holds, incidents, runs
from trustfabric.db.session import Database
from trustfabric.domain.approvals import Ruling
from trustfabric.domain.holds import Hold, HoldOrder, HoldScope, HoldState
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.runs import RunStatus
from trustfabric.domain.storms import Incident, StormLimits
from trustfabric.domain.trust import Lifecycle, Signal, Tag
from trustfabric.errors import ForbiddenError, NotFoundError
from trustfabric.supervision import ManualClock

LIMITS = StormLimits(minimum=5, percent=20)
STORM = 30
SOON = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Fabric]:
    async with database.writing() as conn:
        for owner in (OwnerId(1), ALICE, BOB):
            await insert_owner(conn, owner)
    async with a_fabric(database, database_url, limits=LIMITS) as started:
        yield started


async def add_fleet(
    database: Database, number: int, image: str, owner: OwnerId = ALICE
) -> list[InstanceId]:
    fleet = [await add_instance(database, owner) for _ in range(number)]
    async with database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET image = %s WHERE id = ANY(%s)",
            [image, fleet],
        )
    return fleet


async def raised(database: Database) -> list[Incident]:
    async with database.reading() as conn:
        return await incidents.list_incidents(conn, None)


async def one_open(database: Database) -> Incident:
    async def look() -> Incident | None:
        found = await raised(database)
        return found[0] if found else None

    incident: Incident = await until(look, lambda: "no incident")
    return incident


async def all_runs(database: Database) -> list[Any]:
    async with database.reading() as conn:
        return await runs.list_runs(conn, runs.RunFilter(), limit=500)


async def storm(fabric: Fabric, fleet: list[InstanceId]) -> Incident:
    await asyncio.gather(
        *(fabric.change(each, Signal.UNTRUSTED_VERDICT) for each in fleet)
    )
    return await one_open(fabric.database)


async def until_settled(fabric: Fabric, fleet: list[InstanceId]) -> None:
    """Wait until something was decided on each."""

    async def look() -> bool | None:
        postures = [await fabric.posture(each) for each in fleet]
        undecided = [
            p
            for p in postures
            if p.lifecycle is Lifecycle.QUARANTINED
            and p.remediation_state is Tag.INVESTIGATE
        ]
        return None if undecided else True

    await until(look, lambda: "some are undecided")


async def held_of(fabric: Fabric, fleet: list[InstanceId]) -> list[InstanceId]:
    """Return those for which no run was staged because of a hold."""
    postures = [await fabric.posture(each) for each in fleet]
    return [
        one.instance_id
        for one in postures
        if one.remediation_state is Tag.HELD and one.lifecycle is Lifecycle.QUARANTINED
    ]


def a_release(**changes: Any) -> ReleaseBreaker:
    return ReleaseBreaker(
        incidents.BreakerRelease(by="user:1", reason="new image rolled out", **changes)
    )


def an_order(**changes: Any) -> HoldOrder:
    return HoldOrder(
        **{
            "scope": HoldScope.OWNER,
            "reason": "maintenance",
            "by": f"user:{ALICE}",
            "caller": ALICE,
            **changes,
        }
    )


async def place(fabric: Fabric, **changes: Any) -> Hold:
    hold, _ = await fabric.holds.ask(PlaceHold(an_order(**changes), ALICE), within_s=10)
    return hold


# --- the breaker --------------------------------------------------------------------


async def test_a_storm_is_one_incident_that_names_the_image_and_starts_nothing(
    fabric: Fabric,
) -> None:
    await add_playbook(fabric.database, approval_required=True)
    good = await add_fleet(fabric.database, 20, "good.qcow2")
    bad = await add_fleet(fabric.database, STORM, "bad.qcow2")

    incident = await storm(fabric, bad)
    await until_settled(fabric, bad)
    await until(lambda: _grown(fabric.database), lambda: incident)

    (incident,) = await raised(fabric.database)
    assert (incident.scope, incident.owner_id) == (HoldScope.OWNER, ALICE)
    assert incident.common[0] == {
        "trait": "image",
        "value": "bad.qcow2",
        "affected": STORM,
        "affected_total": STORM,
        "rest": 0,
        "rest_total": len(good),
        "telling": 1.0,
    }
    assert sorted(incident.affected) == sorted(bad)
    found = await all_runs(fabric.database)
    assert len(found) < LIMITS.minimum, "only what fell before it was a storm"
    assert all(run.started_at is None for run in found)
    assert len(await held_of(fabric, bad)) == STORM - len(found)


async def _grown(database: Database) -> bool | None:
    (incident,) = await raised(database)
    return incident.quarantined == STORM or None


async def test_after_the_release_runs_are_staged_from_the_present(
    fabric: Fabric,
) -> None:
    await add_playbook(fabric.database, approval_required=True)
    bad = await add_fleet(fabric.database, 10, "bad.qcow2")
    incident = await storm(fabric, bad)
    await until_settled(fabric, bad)
    held = await held_of(fabric, bad)
    recovered, still_bad = held[:3], held[3:]
    for each in recovered:
        await fabric.change(each, Signal.RELEASED)

    released = await fabric.holds.ask(a_release(), within_s=10)

    assert [one.id for one in released] == [incident.id]
    for each in still_bad:
        await fabric.until_posture(
            each, lambda p: p.remediation_state is Tag.PENDING_APPROVAL
        )
    await asyncio.sleep(SETTINGS.tick_s * 3)
    for each in recovered:
        assert (await fabric.posture(each)).lifecycle is Lifecycle.SUSPECT
    assert len(await raised(fabric.database)) == 1, "the old ones count no more"


async def test_the_breaker_lets_go_on_what_a_person_asked_for(fabric: Fabric) -> None:
    await add_playbook(fabric.database)
    bad = await add_fleet(fabric.database, 10, "bad.qcow2")
    await storm(fabric, bad)
    await until_settled(fabric, bad)
    held = (await held_of(fabric, bad))[-1]

    order = EnqueueRun(owner=ALICE, by=ALICE, instance_id=held, playbook=KEY)
    await fabric.ask(order)

    await fabric.run_of(held, lambda run: run.status is RunStatus.COMPLETED)
    assert (await raised(fabric.database))[0].is_open


async def test_an_approval_in_the_storm_lets_an_automatic_run_start(
    fabric: Fabric,
) -> None:
    await add_playbook(fabric.database, approval_required=True)
    first, *bad = await add_fleet(fabric.database, 10, "bad.qcow2")
    await fabric.change(first, Signal.UNTRUSTED_VERDICT)
    run = await fabric.run_of(first, lambda _: True)
    await storm(fabric, bad)

    ruling = Ruling(approve=True, by=BOB, expected_version=run.version)
    await fabric.ask(DecideApproval(owner=None, run_id=run.id, ruling=ruling))

    await fabric.run_of(first, lambda run: run.status is RunStatus.COMPLETED)


async def test_an_approval_from_before_the_storm_waits_for_its_end(
    fabric: Fabric,
) -> None:
    await add_playbook(fabric.database, approval_required=True)
    first, *bad = await add_fleet(fabric.database, 10, "bad.qcow2")
    await fabric.change(first, Signal.UNTRUSTED_VERDICT)
    run = await fabric.run_of(first, lambda _: True)
    await storm(fabric, bad)
    async with fabric.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_remediation_runs SET approval_state = 'approved',"
            " approval_decided_at = queued_at, approval_decided_by = 'user:8'"
            " WHERE id = %s",
            [run.id],
        )

    await asyncio.sleep(SETTINGS.tick_s * 3)
    assert (await fabric.read(run.id)).status is RunStatus.PENDING
    await fabric.holds.ask(a_release(), within_s=10)

    await fabric.run_of(first, lambda run: run.status is RunStatus.COMPLETED)


async def test_two_runtimes_open_one_breaker(
    database: Database, database_url: str, fabric: Fabric
) -> None:
    await add_playbook(database, approval_required=True)
    bad = await add_fleet(database, 10, "bad.qcow2")
    async with a_fabric(database, database_url, limits=LIMITS) as other:
        await asyncio.gather(
            *(
                (fabric, other)[at % 2].change(each, Signal.UNTRUSTED_VERDICT)
                for at, each in enumerate(bad)
            )
        )
        await asyncio.gather(
            *(one.holds.ask(LookOut(), within_s=10) for one in (fabric, other) * 5)
        )
        await until_settled(fabric, bad)

    assert len(await raised(database)) == 1
    async with database.reading() as conn:
        found = await holds.list_holds(conn, holds.HoldFilter(), SOON)
    assert len(found) == 1


async def test_few_of_many_are_no_storm(fabric: Fabric) -> None:
    await add_playbook(fabric.database, approval_required=True)
    await add_fleet(fabric.database, 25, "good.qcow2")
    bad = await add_fleet(fabric.database, 5, "bad.qcow2")

    for each in bad:
        await fabric.change(each, Signal.UNTRUSTED_VERDICT)
        await fabric.until_posture(
            each, lambda p: p.remediation_state is Tag.PENDING_APPROVAL
        )

    assert not await raised(fabric.database)


async def test_those_that_are_gone_count_no_more(fabric: Fabric) -> None:
    bad = await add_fleet(fabric.database, 5, "bad.qcow2")
    for each in bad[:4]:
        await fabric.change(each, Signal.UNTRUSTED_VERDICT)
    async with fabric.database.writing() as conn:
        await conn.execute(
            "UPDATE runtime_vm_instances SET terminated_at = now() WHERE id = %s",
            [bad[0]],
        )

    await fabric.change(bad[4], Signal.UNTRUSTED_VERDICT)

    assert not await fabric.holds.ask(LookOut(), within_s=10)
    assert not await raised(fabric.database)


async def test_one_that_falls_again_and_again_counts_once(fabric: Fabric) -> None:
    (bad,) = await add_fleet(fabric.database, 1, "bad.qcow2")
    for _ in range(6):
        await fabric.change(bad, Signal.UNTRUSTED_VERDICT)
        await fabric.until_posture(
            bad, lambda p: p.remediation_state is Tag.NO_PLAYBOOK
        )
        await fabric.change(bad, Signal.RELEASED)

    assert not await fabric.holds.ask(LookOut(), within_s=10)


# --- people's holds -----------------------------------------------------------------


async def test_a_hold_ends_by_itself_and_what_is_due_goes_on(
    database: Database, database_url: str
) -> None:
    clock = ManualClock()  # a hold of a second may end before anybody saw it
    await add_playbook(database, approval_required=True)
    async with a_fabric(database, database_url, clock=clock) as fabric:
        hold = await place(fabric, until=clock.now() + timedelta(minutes=1))
        instance = await fabric.quarantined()
        await fabric.until_posture(instance, lambda p: p.remediation_state is Tag.HELD)

        clock.advance(60)
        await fabric.quiet()

        await fabric.until_posture(
            instance, lambda p: p.remediation_state is Tag.PENDING_APPROVAL
        )

        async def told() -> list[str] | None:
            clock.advance(SETTINGS.tick_s)
            async with database.reading() as conn:
                events = await hold_events.list_events(conn, hold.id)
            return [one.kind for one in events] if len(events) > 1 else None

        assert await until(told, lambda: "no end") == ["held", "expired"]


async def test_under_a_persons_hold_nothing_starts(fabric: Fabric) -> None:
    await add_playbook(fabric.database)
    instance = await add_instance(fabric.database)
    hold = await place(fabric, scope=HoldScope.INSTANCE, instance_id=instance)
    order = EnqueueRun(owner=ALICE, by=ALICE, instance_id=instance, playbook=KEY)
    run = await fabric.ask(order)
    await fabric.until_posture(instance, lambda p: p.remediation_state is Tag.HELD)
    await asyncio.sleep(SETTINGS.tick_s * 3)
    assert (await fabric.read(run.id)).status is RunStatus.PENDING
    version = (await fabric.posture(instance)).version
    await asyncio.sleep(SETTINGS.tick_s * 3)
    assert (await fabric.posture(instance)).version == version, "told once"

    release = ReleaseHold(
        hold_id=hold.id, viewer=ALICE, by=f"user:{ALICE}", is_admin=False
    )
    after = await fabric.holds.ask(release, within_s=10)

    await fabric.run_of(instance, lambda run: run.status is RunStatus.COMPLETED)
    again = await fabric.holds.ask(release, within_s=10)
    assert again == after
    assert after.state(SOON) is HoldState.RELEASED


async def test_the_time_under_a_hold_is_no_time_in_the_queue(
    database: Database, database_url: str
) -> None:
    settings, clock = replace(SETTINGS, queue_ttl_s=60), ManualClock()
    await add_playbook(database)
    instance = await add_instance(database)
    async with a_fabric(database, database_url, settings, clock=clock) as fabric:
        hold = await place(fabric, scope=HoldScope.INSTANCE, instance_id=instance)
        order = EnqueueRun(owner=ALICE, by=ALICE, instance_id=instance, playbook=KEY)
        run = await fabric.ask(order)
        clock.advance(120)
        await fabric.quiet()
        assert (await fabric.read(run.id)).status is RunStatus.PENDING

        release = ReleaseHold(
            hold_id=hold.id, viewer=ALICE, by=f"user:{ALICE}", is_admin=False
        )
        await fabric.holds.ask(release, within_s=10)

        await fabric.run_of(instance, lambda run: run.status is RunStatus.COMPLETED)


async def test_the_same_hold_asked_for_twice_is_one(fabric: Fabric) -> None:
    end = datetime.now(UTC) + timedelta(hours=1)

    first = await place(fabric, until=end)
    second = await place(fabric, until=end)

    assert first == second


async def test_a_hold_is_placed_on_what_the_caller_may_see(fabric: Fabric) -> None:
    theirs = await add_instance(fabric.database, BOB)

    with pytest.raises(NotFoundError):
        await place(fabric, scope=HoldScope.INSTANCE, instance_id=theirs)
    with pytest.raises(ForbiddenError):
        await place(fabric, scope=HoldScope.ALL)


async def test_only_admins_release_what_an_admin_holds(fabric: Fabric) -> None:
    order = an_order(owner_id=ALICE, by="user:1", caller=OwnerId(1), is_admin=True)
    hold, _ = await fabric.holds.ask(PlaceHold(order, None), within_s=10)
    release = ReleaseHold(
        hold_id=hold.id, viewer=ALICE, by=f"user:{ALICE}", is_admin=False
    )

    with pytest.raises(ForbiddenError):
        await fabric.holds.ask(release, within_s=10)
