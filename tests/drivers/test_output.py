"""Output as lines: the same however it is cut into chunks."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trustfabric.drivers.output import LINE_CUT, OutputLimits, OutputLines
from trustfabric.drivers.secrets import Masker

SECRET = "hunter2-hunter2"


def lines_of(chunks: list[bytes], limits: OutputLimits) -> list[str]:
    lines = OutputLines(Masker([SECRET]), limits)
    found = [line for chunk in chunks for line in lines.feed(chunk)]
    return [*found, *lines.end()]


@given(st.data())
def test_chunks_make_no_difference(data: st.DataObject) -> None:
    pieces = st.sampled_from(
        ["a", "ä", "\n", "\r\n", SECRET, "hunter2", "x" * 30, "\0"]
    )
    output = "".join(data.draw(st.lists(pieces, max_size=20))).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(output)), max_size=8)))
    edges = [0, *cuts, len(output)]
    chunks = [output[a:b] for a, b in pairwise(edges)]
    limits = OutputLimits(line_chars=25)

    found = lines_of(chunks, limits)

    assert found == lines_of([output], limits)
    assert SECRET not in "\n".join(found)
    assert all(len(line) <= 25 + len(LINE_CUT) for line in found)


def test_secrets_that_shrink_the_line_leave_no_half_of_the_next() -> None:
    line = SECRET.encode() * 3 + b"hunter2-hun"

    found = lines_of([line, b"ter2" + b"x" * 99], OutputLimits(line_chars=25))

    assert found == ["***" * 4 + "x" * 13 + LINE_CUT]


def test_half_a_secret_is_not_left_by_the_cut() -> None:
    found = lines_of([b"123456 " + SECRET.encode()], OutputLimits(line_chars=10))

    assert found == ["123456 ***"]


def test_what_is_dropped_is_counted() -> None:
    found = lines_of([b"1\n2\n3\n", b"4\n" * 10], OutputLimits(lines=2))

    assert found == [
        "1",
        "2",
        "[output limit reached: the rest is dropped]",
        "[output limit: 22 more bytes were dropped]",
    ]
