"""Followers by what they want, and what is handed to them past their buffer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from trustfabric.actors.followers import About, Event, Followers, Stream, about
from trustfabric.actors.streams import Subscription, everything
from trustfabric.domain.events import Position, TrustEvent
from trustfabric.domain.ids import HistoryId, InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Tag

A = AttestationStatus


def an_event(
    number: int,
    *,
    server: int = 1,
    owner: int = 1,
    status: AttestationStatus = A.TRUSTED,
    previous: AttestationStatus | None = None,
) -> TrustEvent:
    return TrustEvent(
        position=Position(number, number),
        history_id=HistoryId(number),
        instance_id=InstanceId(server),
        instance_name="vm",
        server_id=ServerId(server),
        server_name="web",
        owner_id=OwnerId(owner),
        previous_status=previous,
        status=status,
        previous_lifecycle=None,
        lifecycle=Lifecycle.SUSPECT,
        reason="test",
        remediation_state=Tag.NONE,
        remediation_attempts=0,
        freshness_deadline=None,
        provenance_ref=None,
        provenance=None,
        version=number,
        actor="test",
        attestation_id=None,
        metadata={},
        triggered_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@dataclass(frozen=True, slots=True)
class Wants:
    about: About | None = None
    status: AttestationStatus | None = None
    asked: list[int] = field(default_factory=list, compare=False)

    def __call__(self, event: Event) -> bool:
        assert isinstance(event, TrustEvent)
        self.asked.append(event.version)
        return self.status in (None, event.status, event.previous_status)


def a_follower(wants: Wants) -> Subscription:
    return Subscription(Stream.TRUST, wants, 100)


def seen(follower: Subscription) -> list[int]:
    return [event.position.id for event in follower.take()]


# --- who is asked ------------------------------------------------------------------


def test_only_those_are_asked_whom_an_event_may_suit() -> None:
    followers = Followers()
    wants = [Wants(about(server_id=1)), Wants(about(owner_id=2)), Wants()]
    readers = [a_follower(one) for one in wants]
    for reader in readers:
        followers.add(reader)

    followers.offer(
        [an_event(1, server=1), an_event(2, server=2, owner=2), an_event(3, server=3)]
    )

    assert [one.asked for one in wants] == [[1], [2], [1, 2, 3]]
    assert [seen(one) for one in readers] == [[1], [2], [1, 2, 3]]


def test_a_filter_by_status_sees_it_come_and_go() -> None:
    followers = Followers()
    reader = a_follower(Wants(about(server_id=1), A.UNTRUSTED))
    followers.add(reader)

    followers.offer(
        [
            an_event(1, status=A.TRUSTED),
            an_event(2, previous=A.TRUSTED, status=A.UNTRUSTED),
            an_event(3, server=2, status=A.UNTRUSTED),
            an_event(4, previous=A.UNTRUSTED, status=A.TRUSTED),
            an_event(5, previous=A.TRUSTED, status=A.TRUSTED),
        ]
    )

    assert seen(reader) == [2, 4]


def test_equal_wishes_are_asked_once_and_handed_the_same() -> None:
    followers = Followers()
    wants = [Wants(about(server_id=1)) for _ in range(3)]
    readers = [a_follower(one) for one in wants]
    for reader in [*readers, *readers]:
        followers.add(reader)

    followers.offer([an_event(1)])

    assert sum(len(one.asked) for one in wants) == 1
    assert [seen(one) for one in readers] == [[1], [1], [1]]


def test_who_left_or_wants_no_more_is_forgotten() -> None:
    followers = Followers()
    left, closed, stays = (a_follower(Wants(about(server_id=1))) for _ in range(3))
    for reader in (left, closed, stays):
        followers.add(reader)

    followers.remove(left)
    followers.remove(left)
    closed.close()
    followers.offer([an_event(1)])

    assert list(followers) == [stays]
    followers.remove(stays)
    followers.remove(stays)
    assert not list(followers)


def test_the_narrowest_field_is_the_one_to_look_up() -> None:
    assert about(owner_id=1, server_id=2) == ("server_id", 2)
    assert about(owner_id=1, server_id=None) == ("owner_id", 1)
    assert about(owner_id=None) is None


# --- past the buffer ---------------------------------------------------------------


class Client:
    """Takes at once what it is handed, as long as it is willing."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.willing = True

    def hand_on(self, events: Sequence[Event]) -> bool:
        if self.willing:
            self.heard += [event.position.id for event in events]
        return self.willing


@pytest.fixture
def client() -> Client:
    return Client()


async def test_who_waits_is_handed_events_past_the_buffer(client: Client) -> None:
    buffer = Subscription(Stream.TRUST, everything, 2)
    waiting = buffer.wait(client.hand_on)
    waiting.send(None)  # it waits now

    assert all(buffer.offer([an_event(number)]) for number in range(1, 6))

    assert client.heard == [1, 2, 3, 4, 5]
    assert not buffer.lagged
    waiting.close()


async def test_what_it_cannot_take_goes_to_the_buffer_and_the_rest_behind_it(
    client: Client,
) -> None:
    buffer = Subscription(Stream.TRUST, everything, 10)
    waiting = buffer.wait(client.hand_on)
    waiting.send(None)

    buffer.offer([an_event(1)])
    client.willing = False
    buffer.offer([an_event(2)])
    client.willing = True
    buffer.offer([an_event(3)])  # it could take this, but not before the second

    await buffer.wait(client.hand_on)
    assert (client.heard, seen(buffer)) == ([1], [2, 3])
    waiting.close()


async def test_nothing_is_handed_to_who_does_not_wait_or_is_about_to_wake(
    client: Client,
) -> None:
    buffer = Subscription(Stream.TRUST, everything, 10)
    buffer.offer([an_event(1)])
    assert (client.heard, seen(buffer)) == ([], [1])
    waiting = buffer.wait(client.hand_on)
    waiting.send(None)

    buffer.wake()
    buffer.offer([an_event(2)])

    assert (client.heard, seen(buffer)) == ([], [2])
    waiting.close()


async def test_a_laggard_is_handed_nothing_until_it_was_told(client: Client) -> None:
    buffer = Subscription(Stream.TRUST, everything, 10)
    waiting = buffer.wait(client.hand_on)
    waiting.send(None)

    buffer.lag()
    buffer.offer([an_event(1)])

    assert (client.heard, buffer.lagged, seen(buffer)) == ([], True, [])
    waiting.close()
