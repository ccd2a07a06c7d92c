"""What the ansible host process prints becomes bounded and masked lines."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.failures import FailureReason
from trustfabric.drivers.ansible_events import RECORDS, EventLines, Told
from trustfabric.drivers.output import OutputLimits
from trustfabric.drivers.secrets import Masker

SECRET = "hunter2-hunter2"


def events(limits: OutputLimits | None = None) -> EventLines:
    return EventLines(Masker([SECRET]), limits or OutputLimits())


def line(**event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_are_lines(chunks: list[bytes]) -> None:
    taken = events()

    found = [one for chunk in chunks for one in taken.feed(chunk)] + taken.end()

    for one in found:
        assert "\0" not in one
        one.encode()


def test_what_is_no_event_is_a_line_of_its_own() -> None:
    taken = events()

    assert taken.feed(b'plain\n[1]\n{"lines": ["a", "b"]}\n') == [
        "plain",
        "[1]",
        "a",
        "b",
    ]


def test_an_endless_line_is_cut_and_let_go() -> None:
    taken = events(OutputLimits(line_chars=10))
    found = [one for _ in range(40) for one in taken.feed(b"x" * 65_536)]

    assert all(len(one) < 30 for one in found)
    assert len(taken._partial) <= 1 << 20


def test_secrets_are_masked_in_lines_records_and_results() -> None:
    taken = events()

    said = taken.feed(
        line(
            lines=[f"a {SECRET}"],
            record={"task": SECRET, "message": SECRET},
            stats={"ok": {SECRET: 1}},
            output={"k": [SECRET]},
        )
    )

    assert said == ["a ***"]
    assert SECRET not in repr(taken.told)
    assert taken.told.output == {"k": ["***"]}


def test_records_are_bounded_and_counted() -> None:
    taken = events()
    for _ in range(RECORDS + 5):
        taken.feed(line(record={"task": "t"}))

    assert len(taken.told.records) == RECORDS
    assert taken.told.document()["tasks_dropped"] == 5


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (Told(stats={"ok": {"a": 1}}, code=0), None),
        (Told(stats={"ok": {"a": 1}, "failures": {"a": 0}}, code=0), None),
        (Told(stats={}, code=0), FailureReason.PLAYBOOK_BUG),
        (Told(code=4), FailureReason.PLAYBOOK_BUG),
        (Told(records=[{}], code=250), FailureReason.EXECUTION_FAILURE),
        (Told(stats={"failures": {"a": 1}}, code=2), FailureReason.EXECUTION_FAILURE),
        (
            Told(stats={"dark": {"a": 1}}, code=4),
            FailureReason.TRANSIENT_INFRASTRUCTURE,
        ),
        (
            Told(stats={"dark": {"a": 1}, "failures": {"b": 1}}, code=4),
            FailureReason.EXECUTION_FAILURE,
        ),
    ],
)
def test_how_it_ended_is_judged_by_what_the_recap_says(
    told: Told, reason: FailureReason | None
) -> None:
    assert told.judged()[1] is reason


def test_many_hosts_are_named_in_part() -> None:
    told = Told(stats={"failures": {f"h{n:02}": 1 for n in range(30)}}, code=2)

    assert told.judged()[0].endswith("h09 and 20 more")
