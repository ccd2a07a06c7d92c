"""What is old is forgotten, but never what anybody still needs."""

from datetime import datetime, timedelta

from tests.builders import insert_instance, insert_run
from tests.fix_fabric import Fabric, count
from trustfabric.actors.retention import Retention
from trustfabric.db import retention, trust_events, trust_past
from trustfabric.db.session import Database
from trustfabric.domain.events import Position
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Lifecycle, Signal
from trustfabric.supervision import Address, ChildSpec, Runtime, SupervisorSpec

HISTORY = "SELECT count(*) FROM runtime_vm_trust_history"


async def _prune(database: Database, before: datetime, limit: int = 100) -> int:
    async with database.writing() as conn:
        return await retention.prune(conn, before, limit=limit)


async def _horizon(database: Database, stream: str = "trust") -> retention.Horizon:
    async with database.reading() as conn:
        found = await retention.read_horizon(conn, stream)
    assert found is not None
    return found


async def _versions(fabric: Fabric, instance: InstanceId) -> list[int]:
    async with fabric.database.reading() as conn:
        rows = await trust_events.events_after(conn, Position.FIRST, limit=1000)
    return [row.version for row in rows if row.instance_id == instance]


async def _annotate(fabric: Fabric, instance: InstanceId, times: int) -> None:
    for _ in range(times):
        fabric.clock.advance(10)
        await fabric.change(instance, Signal.UNKNOWN_VERDICT)


async def test_nothing_is_pruned_that_is_young_enough(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await _annotate(fabric, instance, 3)

    assert await _prune(fabric.database, fabric.clock.now() - timedelta(days=1)) == 0
    async with fabric.database.reading() as conn:
        assert await retention.read_horizon(conn, "trust") is None
    assert await _versions(fabric, instance) == [1, 2, 3, 4]


async def test_the_newest_row_of_each_instance_stays_however_old(
    fabric: Fabric,
) -> None:
    one, other = await fabric.instances(2)
    await _annotate(fabric, one, 3)
    fabric.clock.advance(1000)

    assert await _prune(fabric.database, fabric.clock.now()) == 3
    assert await _versions(fabric, one) == [4]
    assert await _versions(fabric, other) == [1]
    assert (await fabric.posture(one)).version == 4
    await _annotate(fabric, one, 1)
    assert await _versions(fabric, one) == [4, 5]


async def test_the_row_that_held_at_the_time_stays_and_time_travel_with_it(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    await _annotate(fabric, instance, 4)  # at 10, 20, 30 and 40 seconds
    before = fabric.clock.now() - timedelta(seconds=15)

    await _prune(fabric.database, before)

    assert await _versions(fabric, instance) == [3, 4, 5]
    horizon = await _horizon(fabric.database)
    assert horizon.known_from <= before
    async with fabric.database.reading() as conn:
        for at, version in ((horizon.known_from, 3), (before, 3)):
            then = await trust_past.get_past(conn, None, instance, at)
            assert then is not None
            assert then.version == version


async def test_the_horizon_is_the_newest_row_that_went_and_never_moves_back(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    await _annotate(fabric, instance, 5)
    async with fabric.database.reading() as conn:
        rows = await trust_events.events_after(conn, Position.FIRST, limit=100)
    fabric.clock.advance(1000)

    seen = []
    while await _prune(fabric.database, fabric.clock.now(), limit=2):
        seen.append((await _horizon(fabric.database)).position)

    assert seen == [rows[1].position, rows[3].position, rows[4].position]
    async with fabric.database.reading() as conn:
        left = await trust_events.events_after(conn, seen[-1], limit=100)
    assert [row.version for row in left] == [6]


async def test_what_led_to_a_quarantine_that_lasts_stays(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    quarantined = await fabric.change(instance, Signal.UNTRUSTED_VERDICT)
    assert quarantined.lifecycle is Lifecycle.QUARANTINED
    await _annotate(fabric, instance, 3)
    fabric.clock.advance(1000)

    await _prune(fabric.database, fabric.clock.now())

    assert {quarantined.version, 6} <= set(await _versions(fabric, instance))


async def test_who_comes_while_another_prunes_leaves_it_to_that_one(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    await _annotate(fabric, instance, 3)
    fabric.clock.advance(1000)

    async with fabric.database.writing() as conn:
        assert await retention.prune(conn, fabric.clock.now(), limit=1) == 1
        assert await _prune(fabric.database, fabric.clock.now()) == 0
    assert await _prune(fabric.database, fabric.clock.now()) == 2


async def test_a_row_and_the_horizon_go_together_or_not_at_all(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await _annotate(fabric, instance, 3)
    fabric.clock.advance(1000)

    try:
        async with fabric.database.writing() as conn:
            await retention.prune(conn, fabric.clock.now())
            raise RuntimeError
    except RuntimeError:
        pass

    async with fabric.database.reading() as conn:
        assert await retention.read_horizon(conn, "trust") is None
    assert await _versions(fabric, instance) == [1, 2, 3, 4]


async def test_events_of_runs_go_when_the_run_is_over(database: Database) -> None:
    old, run = datetime.fromisoformat("2020-01-01T00:00:00Z"), 0
    async with database.writing() as conn:
        for status in ("completed", "pending"):
            run = await insert_run(conn, await insert_instance(conn))
            if status == "completed":
                await conn.execute(
                    """
                    UPDATE runtime_vm_remediation_runs
                       SET status = 'completed', started_at = %s, completed_at = %s
                     WHERE id = %s
                    """,
                    [old, old, run],
                )
            await conn.execute(
                """
                INSERT INTO runtime_vm_remediation_events (run_id, seq, kind, at)
                SELECT %s, n, 'status', %s FROM generate_series(1, 3) n
                """,
                [run, old],
            )

    assert await _prune(database, old + timedelta(days=1)) == 3
    query = "SELECT count(*) FROM runtime_vm_remediation_events WHERE run_id = %s"
    assert await count(database, query, run) == 3
    horizon = await _horizon(database, "remediation")
    assert horizon.position > Position.FIRST


async def test_whoever_ticks_prunes_batch_after_batch(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await _annotate(fabric, instance, 5)
    fabric.clock.advance(7200)
    fabric.clock.advance(7200)

    runtime = Runtime(clock=fabric.clock)
    address: Address[Retention] = Address("retention")
    child = ChildSpec(
        address=address, start=lambda: Retention(fabric.database, timedelta(hours=1))
    )
    await runtime.start(SupervisorSpec(name="alone", children=(child,)))
    try:
        while await _versions(fabric, instance) != [6]:
            fabric.clock.advance(1)
        # It goes on by itself: what grows old later is pruned later.
        await _annotate(fabric, instance, 2)
        while await _versions(fabric, instance) != [8]:
            fabric.clock.advance(600)
    finally:
        await runtime.stop()


async def test_without_an_age_everything_stays(fabric: Fabric) -> None:
    await fabric.instances(2)
    fabric.clock.advance(1e9)

    runtime = Runtime(clock=fabric.clock)
    address: Address[Retention] = Address("retention")
    child = ChildSpec(address=address, start=lambda: Retention(fabric.database, None))
    await runtime.start(SupervisorSpec(name="alone", children=(child,)))
    fabric.clock.advance(1e6)
    await runtime.stop()

    assert await count(fabric.database, HISTORY) == 2
