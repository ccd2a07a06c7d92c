"""The streams: every committed event once and in order, whatever dies meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import insert_instance, insert_trust
from tests.fix_fabric import (
    ASK_S,
    Fabric,
    a_fabric,
    count,
    kill_as_it_begins_to_hear,
    only_one_listens,
    until,
)
from trustfabric.actors import listener
from trustfabric.actors.streams import (
    ActorFollower,
    Event,
    Follow,
    Head,
    Missed,
    Publish,
    Stream,
    Subscription,
    Unfollow,
    position_name,
)
from trustfabric.db import trust_events
from trustfabric.db.positions import read_position
from trustfabric.db.session import Database
from trustfabric.domain.events import Position, TrustEvent
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.trust import Signal
from trustfabric.supervision import Address

BROADCASTER = "fabric/streams/broadcaster"
LISTENER = "fabric/streams/listener"


def everything(_: object) -> bool:
    return True


class Reader:
    """Reads a stream as a client's session does: follow, catch up, go on live."""

    def __init__(self, fabric: Fabric, capacity: int = 1000) -> None:
        self.subscription = Subscription(Stream.TRUST, everything, capacity)
        self.events: list[TrustEvent] = []
        self.lags = 0
        self._fabric = fabric
        self._sent = Position.FIRST

    async def follow(self) -> Position:
        following = await self._fabric.broadcaster.ask(
            Follow(self.subscription), within_s=ASK_S
        )
        head = following.head
        if self._sent == Position.FIRST:
            self._sent = head
        await self._catch_up(head)
        return head

    async def read(self, number: int) -> list[str]:
        """Wait for that many events in all; return them as name and version."""
        try:
            async with asyncio.timeout(15):
                while len(self.events) < number:
                    await self._more()
        except TimeoutError:
            pytest.fail(f"only {len(self.events)} of {number} events came")
        return self.seen()

    def seen(self) -> list[str]:
        return [f"{event.instance_id}.{event.version}" for event in self.events]

    async def _more(self) -> None:
        try:
            async with asyncio.timeout(0.05):
                await self.subscription.wait()
        except TimeoutError:
            # Time goes on, so that who was restarted or lost its link comes back.
            self._fabric.clock.advance(0.1)
            return
        lagged = self.subscription.lagged
        events = self.subscription.take()
        if lagged:
            self.lags += 1
            await self.follow()
        else:
            self._keep(events)

    async def _catch_up(self, head: Position) -> None:
        missed = Missed(Stream.TRUST, self._sent, head)
        events = await self._fabric.broadcaster.ask(missed, within_s=ASK_S)
        if events is None:
            async with self._fabric.database.reading() as conn:
                events = list(
                    await trust_events.events_after(
                        conn, self._sent, upto=head, limit=10_000
                    )
                )
        self._keep(events)
        self._sent = max(self._sent, head)

    def _keep(self, events: Any) -> None:
        for event in events:
            if event.position > self._sent:
                self.events.append(event)
                self._sent = event.position


async def a_reader(fabric: Fabric, capacity: int = 1000) -> Reader:
    reader = Reader(fabric, capacity)
    await reader.follow()
    return reader


async def settled(fabric: Fabric) -> None:
    """Wait until the listener has told all that was committed."""

    async def look() -> bool | None:
        head = await fabric.broadcaster.ask(Head(Stream.TRUST), within_s=ASK_S)
        unread = await count(
            fabric.database,
            """
            SELECT count(*) FROM runtime_vm_trust_history
             WHERE (xid, id) > (%s::text::xid8, %s)
            """,
            str(head.xid),
            head.id,
        )
        return unread == 0 or None

    await until(look, "the stream to settle")


async def annotate(fabric: Fabric, instance: InstanceId, times: int) -> None:
    for _ in range(times):
        await fabric.change(instance, Signal.ANNOTATED)


def versions(instance: InstanceId, *numbers: int) -> list[str]:
    return [f"{instance}.{number}" for number in numbers]


# --- the buffer --------------------------------------------------------------------


async def events(fabric: Fabric, number: int) -> list[TrustEvent]:
    instance = await fabric.instance()
    await annotate(fabric, instance, number - 1)
    return await fabric.history(instance)


async def test_a_buffer_keeps_what_it_is_offered_in_order(fabric: Fabric) -> None:
    told = await events(fabric, 5)
    buffer = Subscription(Stream.TRUST, everything, 5)

    assert buffer.offer(told[:3])
    assert buffer.offer(told[3:])

    await buffer.wait()
    assert buffer.take() == told
    assert buffer.take() == []


async def test_past_its_bound_it_keeps_nothing_and_says_so(fabric: Fabric) -> None:
    told = await events(fabric, 5)
    buffer = Subscription(Stream.TRUST, everything, 2)

    assert all(buffer.offer([event]) for event in told)

    await buffer.wait()
    assert (buffer.lagged, buffer.take(), buffer.lagged) == (True, [], False)
    buffer.offer(told[:1])
    assert buffer.take() == told[:1]


async def test_a_closed_one_lets_its_reader_go_and_is_forgotten(
    fabric: Fabric,
) -> None:
    told = await events(fabric, 1)
    buffer = Subscription(Stream.TRUST, everything, 2)
    buffer.offer(told)

    buffer.close()

    await buffer.wait()
    assert buffer.take() == []
    assert not buffer.offer(told)


# --- following ---------------------------------------------------------------------


async def test_a_follower_sees_each_change_once_and_in_order(fabric: Fabric) -> None:
    reader = await a_reader(fabric)

    instance = await fabric.instance()
    await annotate(fabric, instance, 9)

    assert await reader.read(10) == versions(instance, *range(1, 11))


async def test_a_follower_is_offered_what_it_accepts(fabric: Fabric) -> None:
    one, other = await fabric.instances(2)
    await settled(fabric)
    reader, choosy = await a_reader(fabric), Subscription(Stream.TRUST, _of(other), 10)
    await fabric.broadcaster.ask(Follow(choosy), within_s=ASK_S)

    for each in (one, other, one, other):
        await fabric.change(each, Signal.ANNOTATED)
    await reader.read(4)
    await settled(fabric)

    assert [event.version for event in choosy.take()] == [2, 3]  # type: ignore[union-attr]


def _of(instance: InstanceId) -> Callable[[Event], bool]:
    return lambda event: getattr(event, "instance_id", None) == instance


async def test_following_twice_is_following_once(fabric: Fabric) -> None:
    reader = await a_reader(fabric)
    await reader.follow()

    instance = await fabric.instance()

    await reader.read(1)
    await settled(fabric)
    assert reader.subscription.take() == []
    assert reader.seen() == versions(instance, 1)


async def test_who_follows_still_has_missed_nothing_and_who_was_forgotten_may_have(
    fabric: Fabric,
) -> None:
    follow = Follow(Subscription(Stream.TRUST, everything, 10))

    first = await fabric.broadcaster.ask(follow, within_s=ASK_S)
    again = await fabric.broadcaster.ask(follow, within_s=ASK_S)
    await fabric.kill(BROADCASTER)
    after = await fabric.broadcaster.ask(follow, within_s=ASK_S)

    assert (first.anew, again.anew, after.anew) == (True, False, True)


async def test_what_was_missed_for_a_moment_is_remembered_and_older_is_not(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    await settled(fabric)
    since = await fabric.broadcaster.ask(Head(Stream.TRUST), within_s=ASK_S)
    await annotate(fabric, instance, 3)
    await settled(fabric)

    head = await fabric.broadcaster.ask(Head(Stream.TRUST), within_s=ASK_S)

    missed = await fabric.broadcaster.ask(
        Missed(Stream.TRUST, since, head), within_s=ASK_S
    )
    older = Missed(Stream.TRUST, Position.FIRST, head)

    assert missed is not None
    assert [event.position for event in missed] == sorted(
        event.position for event in missed
    )
    assert len(missed) == 3
    assert await fabric.broadcaster.ask(older, within_s=ASK_S) is None


async def test_who_unfollows_hears_no_more(fabric: Fabric) -> None:
    reader = await a_reader(fabric)

    fabric.broadcaster.tell(Unfollow(reader.subscription))
    await fabric.instance()
    await settled(fabric)

    assert reader.subscription.take() == []


async def test_what_is_published_again_is_left_out(fabric: Fabric) -> None:
    reader = await a_reader(fabric)
    instance = await fabric.instance()
    await reader.read(1)

    again = Publish(Stream.TRUST, Position.FIRST, reader.events)
    assert await fabric.broadcaster.ask(again, within_s=ASK_S)

    assert reader.subscription.take() == []
    assert reader.seen() == versions(instance, 1)


async def test_what_was_read_for_a_broadcaster_that_died_is_read_again_for_the_next(
    fabric: Fabric,
) -> None:
    """The next one may begin further back: what lies between would be passed over."""
    reader = await a_reader(fabric)
    instance = await fabric.instance()
    await annotate(fabric, instance, 2)
    await reader.read(3)
    head = await fabric.broadcaster.ask(Head(Stream.TRUST), within_s=ASK_S)
    beyond = Position(head.xid + 1_000, head.id + 1_000)
    strange = replace(reader.events[-1], position=Position(beyond.xid, beyond.id + 1))

    refused = Publish(Stream.TRUST, beyond, [strange])
    assert not await fabric.broadcaster.ask(refused, within_s=ASK_S)

    await annotate(fabric, instance, 2)
    assert await reader.read(5) == versions(instance, 1, 2, 3, 4, 5)


async def test_what_a_broadcaster_has_not_come_to_yet_only_the_store_has(
    fabric: Fabric,
) -> None:
    """Its reader was told of a head by one that died since."""
    reader = await a_reader(fabric)
    await fabric.instance()
    await reader.read(1)
    head = await fabric.broadcaster.ask(Head(Stream.TRUST), within_s=ASK_S)
    beyond = Position(head.xid + 1_000, head.id + 1_000)

    missed = Missed(Stream.TRUST, head, beyond)
    assert await fabric.broadcaster.ask(missed, within_s=ASK_S) is None


async def test_a_slow_reader_lags_and_misses_nothing(fabric: Fabric) -> None:
    reader = await a_reader(fabric, capacity=3)

    instance = await fabric.instance()
    await annotate(fabric, instance, 19)
    await settled(fabric)

    assert await reader.read(20) == versions(instance, *range(1, 21))
    assert reader.lags >= 1


async def test_the_position_is_kept_for_the_next_start(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await settled(fabric)

    async def look() -> Position | None:
        async with fabric.database.reading() as conn:
            kept = await read_position(conn, position_name("here", Stream.TRUST))
        (event,) = await fabric.history(instance)
        return kept if kept == event.position else None

    await until(look, "the position to be kept")


async def test_what_was_committed_while_nobody_listened_is_told_at_the_next_start(
    database: Database, database_url: str
) -> None:
    async with a_fabric(database, database_url) as first:
        instance = await first.instance()
        await settled(first)
    async with a_fabric(database, database_url, "elsewhere") as other:
        await annotate(other, instance, 3)

    async with a_fabric(database, database_url) as again:
        reader = Reader(again)
        reader._sent = (await again.history(instance))[0].position
        await reader.follow()
        assert await reader.read(3) == versions(instance, 2, 3, 4)


# --- what commits late -------------------------------------------------------------


@asynccontextmanager
async def an_open_transaction(database: Database) -> AsyncIterator[None]:
    async with database.writing() as conn:
        await conn.execute("SELECT pg_current_xact_id()")
        yield


async def test_a_row_that_commits_late_is_held_back_for_not_skipped(
    fabric: Fabric,
) -> None:
    async with fabric.database.writing() as conn:
        early, late = [await insert_instance(conn) for _ in range(2)]
    reader = await a_reader(fabric)

    async with fabric.database.writing() as slow:
        await insert_trust(slow, early)
        async with fabric.database.writing() as quick:
            await insert_trust(quick, late)
        await asyncio.sleep(0)

    assert await reader.read(2) == [f"{early}.1", f"{late}.1"]


async def test_what_another_s_transaction_held_back_comes_when_it_ends(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "POLL_S", 0.2)
    reader = await a_reader(fabric)

    async with an_open_transaction(fabric.database):
        instance = await fabric.instance()
        await annotate(fabric, instance, 2)
        assert reader.subscription.take() == []

    assert await reader.read(3) == versions(instance, 1, 2, 3)


async def test_two_runtimes_tell_each_instance_s_versions_in_order(
    fabric: Fabric, second: Fabric
) -> None:
    instances = await fabric.instances(4)
    await settled(fabric)
    await settled(second)
    readers = [await a_reader(each) for each in (fabric, second)]

    await asyncio.gather(
        *(
            runtime.change(instance, Signal.ANNOTATED)
            for _ in range(25)
            for instance in instances
            for runtime in (fabric, second)
        )
    )

    here, there = [await reader.read(200) for reader in readers]
    assert here == there
    for instance in instances:
        mine = [each for each in here if each.startswith(f"{instance}.")]
        assert mine == versions(instance, *range(2, 52))


# --- faults ------------------------------------------------------------------------


async def test_a_killed_listener_costs_no_event(fabric: Fabric) -> None:
    reader = await a_reader(fabric)
    instance = await fabric.instance()

    for _ in range(3):
        await annotate(fabric, instance, 2)
        await fabric.kill(LISTENER)
        await annotate(fabric, instance, 2)

    assert await reader.read(13) == versions(instance, *range(1, 14))


async def test_a_killed_broadcaster_costs_no_event(fabric: Fabric) -> None:
    reader = await a_reader(fabric)
    instance = await fabric.instance()

    for _ in range(3):
        await annotate(fabric, instance, 2)
        await fabric.kill(BROADCASTER)
        await annotate(fabric, instance, 2)
        await reader.follow()

    assert await reader.read(13) == versions(instance, *range(1, 14))


async def test_a_stopped_broadcaster_lets_its_readers_go(
    database: Database, database_url: str
) -> None:
    async with a_fabric(database, database_url) as fabric:
        reader = await a_reader(fabric)

    await reader.subscription.wait()
    assert reader.subscription.closed


async def test_a_cut_connection_costs_no_event(fabric: Fabric) -> None:
    reader = await a_reader(fabric)
    instance = await fabric.instance()
    await reader.read(1)

    for _ in range(3):
        async with fabric.database.reading() as conn:
            await conn.execute(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'trustfabric listener'
                   AND datname = current_database()
                """
            )
        await annotate(fabric, instance, 2)

    assert await reader.read(7) == versions(instance, *range(1, 8))


async def test_a_broadcaster_that_does_not_answer_in_time_costs_no_event(
    fabric: Fabric,
) -> None:
    reader = await a_reader(fabric)
    await settled(fabric)

    fabric.runtime.suspend(BROADCASTER)
    instance = await fabric.instance()

    async def asked() -> bool | None:
        return fabric.broadcaster.cell.depth > 0 or None

    await until(asked, "the listener to ask")
    fabric.clock.advance(listener.ASK_S + 1)
    await fabric.runtime.quiet()
    fabric.runtime.resume(BROADCASTER)

    assert await reader.read(1) == versions(instance, 1)


@pytest.mark.parametrize("rubbish", ["", "{", "x" * 7999, '{"history_id": -1}'])
async def test_rubbish_on_the_channel_is_a_wakeup_like_any_other(
    fabric: Fabric, rubbish: str
) -> None:
    reader = await a_reader(fabric)

    async with fabric.database.writing() as conn:
        await conn.execute(
            "SELECT pg_notify('runtime_vm_trust_transition', %s)", [rubbish]
        )
    instance = await fabric.instance()

    assert await reader.read(1) == versions(instance, 1)


async def test_a_lost_notification_is_found_by_looking(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "POLL_S", 0.05)
    reader = await a_reader(fabric)
    async with fabric.database.writing() as conn:
        instance = await insert_instance(conn)
        await conn.execute(
            "ALTER TABLE runtime_vm_trust_history DISABLE TRIGGER history_notifies"
        )

    async with fabric.database.writing() as conn:
        await insert_trust(conn, instance)

    assert await reader.read(1) == [f"{instance}.1"]


async def test_killed_listeners_leave_no_connection_behind(fabric: Fabric) -> None:
    for _ in range(5):
        await settled(fabric)
        await fabric.kill(LISTENER)

    await only_one_listens(fabric.database, "listener")


async def test_nor_do_those_killed_before_the_first_step_of_their_wait(
    fabric: Fabric,
) -> None:
    await settled(fabric)
    cell = fabric.runtime.find(LISTENER).cell

    for _ in range(5):
        await kill_as_it_begins_to_hear(fabric, cell)
    await fabric.kill(LISTENER)
    await only_one_listens(fabric.database, "listener")


# --- actors that follow ------------------------------------------------------------


async def test_equal_followers_count_once(fabric: Fabric) -> None:
    address: Address[Any] = Address("nobody")

    def wrap(_: object) -> Any:
        pytest.fail("nothing is offered here")

    one, other = (ActorFollower(Stream.TRUST, address, wrap) for _ in range(2))

    assert one == other
    assert len({one, other}) == 1
