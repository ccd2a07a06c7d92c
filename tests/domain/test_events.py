"""Positions: how they are ordered, written and read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.events import Position
from trustfabric.errors import MalformedError

numbers = st.integers(0, 2**63 - 1)


@given(numbers, numbers)
def test_a_position_is_read_as_it_was_written(xid: int, row: int) -> None:
    position = Position(xid, row)

    assert Position.read(str(position)) == position


@given(st.tuples(numbers, numbers), st.tuples(numbers, numbers))
def test_transactions_come_before_rows(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    assert (Position(*one) < Position(*other)) is (one < other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1-2-3",
        "+1-2",
        "1--2",
        " 1-2",
        "1.0-2",
        "0x1-2",
        "\u0661-\u0662",
        "\u00b2-1",
        "9223372036854775808-0",
        "0-9223372036854775808",
        "9" * 5000 + "-1",
        "1-" + "9" * 5000,
    ],
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        Position.read(text)


@given(st.text(max_size=80))
def test_any_text_is_a_position_or_refused(text: str) -> None:
    try:
        position = Position.read(text)
    except MalformedError:
        return
    assert Position.FIRST <= position <= Position.LAST
