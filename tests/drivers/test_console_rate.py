"""How much of a console is taken a second."""

from random import Random

import pytest

from trustfabric.drivers.console_rate import LINE, RateCap


def test_what_comes_within_the_rate_passes_whole() -> None:
    now = 0.0
    cap = RateCap(lambda: now, per_s=10, burst=20)

    passed = b""
    for _ in range(10):
        now += 1.0
        dropped, part = cap.pass_on(b"x" * 10)
        passed += part
        assert dropped == 0

    assert len(passed) == 100


def test_a_flood_is_cut_and_what_was_dropped_is_told_once() -> None:
    now = 0.0
    cap = RateCap(lambda: now, per_s=10, burst=20)

    assert cap.pass_on(b"a" * 25) == (0, b"a" * 20)
    assert cap.pass_on(b"b" * 7) == (0, b"")
    now = 1.0
    assert cap.pass_on(b"c" * 4) == (12, b"cccc")
    assert cap.pass_on(b"d" * 4) == (0, b"dddd")


def test_silence_earns_no_more_than_a_burst() -> None:
    now = 0.0
    cap = RateCap(lambda: now, per_s=10, burst=20)

    now = 3600.0

    assert len(cap.pass_on(b"x" * 100)[1]) == 20


def test_a_line_costs_more_than_its_bytes() -> None:
    now = 0.0
    cap = RateCap(lambda: now, per_s=10, burst=10 * (1 + LINE))

    assert cap.pass_on(b"\n" * 100) == (0, b"\n" * 10)
    assert cap.pass_on(b"\n") == (0, b"")


@pytest.mark.parametrize("seed", range(20))
def test_what_passes_is_the_longest_beginning_that_can_be_paid(seed: int) -> None:
    random = Random(seed)
    data = bytes(random.choice(b"ab\n") for _ in range(200))
    left = random.randrange(3000)

    _, part = RateCap(lambda: 0.0, per_s=1, burst=left).pass_on(data)

    def cost(text: bytes) -> int:
        return len(text) + LINE * text.count(b"\n")

    assert data.startswith(part)
    assert cost(part) <= left
    assert part == data or cost(data[: len(part) + 1]) > left
