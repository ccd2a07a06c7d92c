"""The registry as it was at a time."""

from datetime import timedelta

from tests.builders import OWNER
from tests.fix_fabric import Fabric
from trustfabric.db import trust_past
from trustfabric.db.trust import PostureFilter
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.trust import Lifecycle, Signal, Snapshot


async def test_each_moment_shows_the_row_that_was_the_newest_then(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    rows = [await fabric.posture(instance)]
    for signal in (Signal.TRUSTED_VERDICT, Signal.UNTRUSTED_VERDICT, Signal.RELEASED):
        fabric.clock.advance(10)
        rows.append(await fabric.change(instance, signal))

    for row in rows:
        then = await _past(fabric, instance, row)
        assert then is not None
        assert then == row


async def test_before_it_was_there_it_is_not_shown(fabric: Fabric) -> None:
    instance = await fabric.instance()
    before = fabric.clock.now() - timedelta(seconds=1)

    async with fabric.database.reading() as conn:
        assert await trust_past.get_past(conn, None, instance, before) is None
        assert await trust_past.list_past(conn, PostureFilter(), before) == []


async def test_filters_see_the_values_of_the_time_and_owners_their_own(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    other = await fabric.instance(OWNER + 1)
    fabric.clock.advance(10)
    restored = await fabric.change(instance, Signal.TRUSTED_VERDICT)
    fabric.clock.advance(10)
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)

    async with fabric.database.reading() as conn:
        mine = await trust_past.list_past(
            conn, PostureFilter(owner_id=OwnerId(OWNER)), restored.updated_at
        )
        then_restored = await trust_past.list_past(
            conn, PostureFilter(lifecycle=Lifecycle.RESTORED), restored.updated_at
        )
        hidden = await trust_past.get_past(
            conn, OwnerId(OWNER), other, restored.updated_at
        )

    assert [row.instance_id for row in mine] == [instance]
    assert [row.instance_id for row in then_restored] == [instance]
    assert hidden is None


async def _past(fabric: Fabric, instance: InstanceId, row: Snapshot) -> Snapshot | None:
    async with fabric.database.reading() as conn:
        return await trust_past.get_past(conn, None, instance, row.updated_at)
