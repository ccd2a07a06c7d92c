import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.ports import ConsoleEntry, ConsoleGap
from trustfabric.drivers import console_lines
from trustfabric.drivers.console_lines import CUT, LINE_CAP, LineRing, clean


def test_lines_end_with_a_line_feed_wherever_the_bytes_are_cut() -> None:
    ring = LineRing(10)

    for piece in (b"GUE", b"ST-UP\r", b"\ntick 1\r\nti"):
        ring.feed(piece)

    assert ring.tail(10) == ("GUEST-UP", "tick 1", "ti")
    assert ring.count == 2


def test_the_tail_is_the_newest_lines() -> None:
    ring = LineRing(3)
    ring.feed(b"1\n2\n3\n4\n5\n")

    assert ring.tail(2) == ("4", "5")
    assert ring.tail(99) == ("3", "4", "5")
    assert ring.tail(0) == ()


def test_a_reader_gets_what_came_since() -> None:
    ring = LineRing(3)
    ring.feed(b"1\n2\n")
    ring.feed(b"3\n")

    assert ring.since(2) == (ConsoleEntry(3, "3"),)
    assert ring.since(3) == ()


def test_a_slow_reader_is_told_what_it_missed_and_misses_nothing_else() -> None:
    ring = LineRing(2)
    ring.feed(b"1\n2\n3\n4\n5\n")

    assert ring.since(1) == (
        ConsoleGap(2, 3),
        ConsoleEntry(4, "4"),
        ConsoleEntry(5, "5"),
    )
    assert ring.since(3) == (ConsoleEntry(4, "4"), ConsoleEntry(5, "5"))


def test_a_break_stands_between_what_it_parts() -> None:
    ring = LineRing(9)
    ring.break_with("nothing came before: this breaks nothing")
    ring.feed(b"1\n2")
    ring.break_with("a new boot")
    ring.break_with("the guest rebooted")
    ring.feed(b"3\n")

    assert ring.since(0) == (
        ConsoleEntry(1, "1"),
        ConsoleEntry(2, "2"),
        ConsoleEntry(3, "the guest rebooted", breaks=True),
        ConsoleEntry(4, "3"),
    )
    assert ring.tail(9) == ("1", "2", "3")


def test_it_goes_on_where_an_earlier_one_ended() -> None:
    first: list[ConsoleEntry] = []
    LineRing(9, keep=first.extend).feed(b"1\n2\n")

    ring = LineRing(1, known=first)
    ring.feed(b"3\n")

    assert first == [ConsoleEntry(1, "1"), ConsoleEntry(2, "2")]
    assert ring.since(0) == (ConsoleGap(1, 2), ConsoleEntry(3, "3"))


def test_long_lines_are_forgotten_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_lines, "RING_CAP", 100)
    ring = LineRing(1000)

    ring.feed(b"x" * 60 + b"\n" + b"y" * 60 + b"\n")

    assert ring.tail(9) == ("y" * 60,)


def test_an_endless_line_is_cut() -> None:
    ring = LineRing(2)

    for _ in range(100):
        ring.feed(b"x" * 1000)
    ring.feed(b"\nnext\n")

    assert ring.tail(2) == ("x" * LINE_CAP + CUT, "next")


def test_the_end_makes_the_begun_line_whole() -> None:
    ring = LineRing(2)
    ring.feed(b"no newline at end")

    ring.end()
    ring.end()

    assert ring.since(0) == (ConsoleEntry(1, "no newline at end"),)


def test_bytes_that_are_no_text_are_shown_as_hex() -> None:
    assert clean(b"bad:\xff\xfe\x80") == "bad:\\xff\\xfe\\x80"


def test_a_line_cannot_drive_a_terminal() -> None:
    line = (
        b"a\x1b[31mred\x1b[0m\x1b]52;c;ZXZpbA==\x07b\x1b[2J\x1b[1;1Hc\rd\x00"
        b"\x1b]8;;http://x\x1b\\e\x1bcf"
    )

    assert clean(line) == "aredbcdef"


def test_a_line_cannot_reorder_its_text() -> None:
    assert clean("a\u202eb\u2066c".encode()) == "abc"


@given(st.lists(st.binary(max_size=6000), max_size=8), st.integers(1, 5))
def test_any_bytes_stay_within_bounds(pieces: list[bytes], capacity: int) -> None:
    ring = LineRing(capacity)

    for piece in pieces:
        ring.feed(piece)
    ring.end()

    tail = ring.tail(100)
    assert len(tail) <= capacity
    for line in tail:
        assert len(line) <= 4 * LINE_CAP + len(CUT)
        assert not any(ord(char) < 0x20 and char != "\t" for char in line)


def test_where_what_is_known_has_gaps_nothing_comes_twice() -> None:
    known = [ConsoleEntry(seq, f"line {seq}") for seq in (1, 2, 3, 10, 11)]
    ring = LineRing(2000, known=known)

    assert [entry.seq for entry in ring.since(10)] == [11]
    assert [entry.seq for entry in ring.since(2)] == [3, 10, 11]
    assert ring.since(5) == (ConsoleGap(6, 9), *known[3:])
    assert ring.since(11) == ()
