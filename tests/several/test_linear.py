"""The checker finds what it is there to find."""

import pytest

from tests.several.linear import Op, Outcome, violations

ROWS = {1: [(1, "made"), (2, "a"), (3, "b")]}
GOOD = [
    Op(1, "a", Outcome.DONE, 0, 1, expected=1, version=2),
    Op(1, "c", Outcome.CONFLICT, 0.5, 1.5, expected=1, version=2),
    Op(1, "r", Outcome.READ, 2, 3, version=2),
    Op(1, "b", Outcome.UNKNOWN, 2.5, 4, expected=2),
    Op(1, "d", Outcome.UNKNOWN, 5, 6, expected=3),
]


def test_what_can_have_happened_is_fine() -> None:
    assert violations(GOOD, ROWS) == []


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (Op(1, "x", Outcome.DONE, 5, 6, expected=3, version=4), "lost update"),
        (Op(1, "b", Outcome.CONFLICT, 5, 6, expected=1, version=3), "refused and made"),
        (Op(1, "x", Outcome.READ, 5, 6, version=1), "stale read"),
        (Op(1, "x", Outcome.READ, 5, 6, version=9), "never was"),
        (Op(1, "x", Outcome.CONFLICT, 0, 1, expected=1, version=1), "false conflict"),
        (Op(1, "a", Outcome.DONE, 5, 6, expected=1, version=3), "after 2 was seen"),
    ],
)
def test_what_can_not_is_found(bad: Op, what: str) -> None:
    assert any(what in text for text in violations([*GOOD, bad], ROWS))


def test_a_broken_chain_is_found() -> None:
    assert violations([], {1: [(1, "made"), (3, "b")]})
    assert violations(GOOD, {1: [*ROWS[1], (4, "a")]})
