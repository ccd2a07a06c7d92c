"""The parser of event streams, by the HTML standard's rules."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.cli import sse
from trustfabric.cli.sse import Comment, Event, EventTooLongError, Parser


@pytest.mark.parametrize(
    ("stream", "frames"),
    [
        (b"data: a\n\n", [Event("", "message", "a")]),
        (b"data:a\n\n", [Event("", "message", "a")]),
        (b"data:  a\n\n", [Event("", "message", " a")]),
        (b"data: a\r\n\r\n", [Event("", "message", "a")]),
        (b"data: a\r\rx", [Event("", "message", "a")]),
        (b"data: a\ndata: b\n\n", [Event("", "message", "a\nb")]),
        (b"data\n\n", [Event("", "message", "")]),
        (b"id: 5\nevent: trust\ndata: {}\n\n", [Event("5", "trust", "{}")]),
        (b"id: 5\ndata: a\n\ndata: b\n\n", [Event("5", "message", "a")]),
        (b"event: trust\n\n", []),
        (b": beat\n\n", [Comment("beat")]),
        (b"unknown: x\ndata: a\n\n", [Event("", "message", "a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("", "message", "a")]),
        (b"data: \xff\n\n", [Event("", "message", "\ufffd")]),
        (b"data: unfinished\n", []),
    ],
)
def test_frames_are_as_the_standard_says(stream: bytes, frames: list[object]) -> None:
    assert Parser().feed(stream)[: max(1, len(frames))] == frames


def test_an_id_lasts_until_the_next() -> None:
    events = Parser().feed(b"id: 5\ndata: a\n\ndata: b\n\nid\ndata: c\n\n")

    assert [event.id for event in events if isinstance(event, Event)] == ["5", "5", ""]


def test_the_id_of_an_unfinished_event_does_not_count() -> None:
    parser = Parser("4")

    parser.feed(b"id: 5\ndata: half")

    assert parser.last_event_id == "4"


def test_an_event_without_data_moves_the_position() -> None:
    parser = Parser()

    assert parser.feed(b"id: 9\nevent: bookmark\n\n") == []
    assert parser.last_event_id == "9"


def test_an_id_with_nul_is_ignored() -> None:
    parser = Parser("4")

    parser.feed(b"id: 5\x006\ndata: a\n\n")

    assert parser.last_event_id == "4"


@pytest.mark.parametrize(
    ("line", "retry_s"),
    [(b"retry: 2500", 2.5), (b"retry: soon", None), (b"retry:", None)],
)
def test_retry_is_milliseconds(line: bytes, retry_s: float | None) -> None:
    parser = Parser()

    parser.feed(line + b"\n\n")

    assert parser.retry_s == retry_s


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_LIMIT", 1000)
    parser = Parser()

    many = b"data: " + b"x" * 50 + b"\n"

    with pytest.raises(EventTooLongError):
        parser.feed(many * 100)


STREAM = (
    '\ufeffretry: 10\n\nid: 1\nevent: trust\ndata: {"a": "ä"}\n\n: beat\r\n\r\n'
    "data: x\rdata: y\r\rid: 2\r\ndata: z\r\n\r\ndata: end\n\n"
).encode()


@given(st.lists(st.integers(0, len(STREAM))))
def test_it_does_not_matter_how_the_bytes_are_cut(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(STREAM)]
    parser = Parser()

    frames = [
        frame for start, end in pairwise(at) for frame in parser.feed(STREAM[start:end])
    ]

    assert frames == Parser().feed(STREAM)
    assert parser.last_event_id == "2"
