"""What is remembered of a stream's newest events."""

from tests.actors.test_followers import an_event
from trustfabric.actors.recent import Recent
from trustfabric.domain.events import Position

START = Position(10, 10)


def after(recent: Recent, number: int) -> list[int] | None:
    events = recent.after(Position(number, number), recent.head)
    return None if events is None else [event.position.id for event in events]


def test_it_knows_all_that_came_since_it_began() -> None:
    recent = Recent(START)

    assert after(recent, 10) == []
    recent.add([an_event(11), an_event(12)])
    recent.add([an_event(15)])

    assert after(recent, 10) == [11, 12, 15]
    assert after(recent, 12) == [15]
    assert after(recent, 13) == [15]
    assert after(recent, 20) == []


def test_what_is_beyond_its_head_it_does_not_know() -> None:
    recent = Recent(START)
    recent.add([an_event(11)])

    assert recent.head == Position(11, 11)
    assert recent.after(START, Position(12, 12)) is None
    assert recent.after(START, Position(11, 11)) == [an_event(11)]


def test_of_what_came_before_it_began_it_does_not_know() -> None:
    recent = Recent(START)
    recent.add([an_event(11)])

    assert after(recent, 9) is None


def test_it_keeps_no_more_than_its_bound_and_says_so() -> None:
    recent = Recent(START, limit=3)
    recent.add([an_event(number) for number in range(11, 16)])

    assert after(recent, 12) == [13, 14, 15]
    assert after(recent, 11) is None
