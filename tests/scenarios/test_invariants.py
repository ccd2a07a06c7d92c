"""What is checked after a scenario has teeth: each breach is found."""

from typing import Any

from trustfabric.scenarios import invariants
from trustfabric.scenarios.model import SteadyState

Row = dict[str, Any]


def row(version: int, before: str, after: str, **more: Any) -> Row:
    return {
        "version": version,
        "history_id": 100 + version,
        "previous_lifecycle_state": before,
        "lifecycle_state": after,
        "attestation_status": "untrusted",
        "attestation_id": None,
        "triggered_at": f"2026-01-01T00:00:{version:02}Z",
        "metadata": {},
        **more,
    }


def trusted(version: int, before: str = "suspect") -> Row:
    return row(
        version, before, "restored", attestation_status="trusted", attestation_id=1
    )


STORY = [
    row(1, "suspect", "suspect"),
    trusted(2),
    row(3, "restored", "quarantined"),
    row(4, "quarantined", "remediating"),
    trusted(5, "remediating"),
]
STAGED = {"id": 1, "status": "completed", "requested_by": "actor:dispatcher"}


def test_a_good_story_breaches_nothing() -> None:
    assert not [*invariants.versions(STORY, {"version": 5})]
    assert not [*invariants.delivery(STORY, STORY)]
    assert not [*invariants.runs_of(STORY, [STAGED])]


def test_a_gap_in_the_versions_is_found() -> None:
    found = [*invariants.versions([STORY[0], *STORY[2:]], {"version": 5})]
    assert found == [
        "history: versions are [1, 3, 4, 5]",
        "registry: version 5, 4 history rows",
        "history: version 3 leaves another state",
    ]


def test_events_missed_repeated_and_out_of_order_are_found() -> None:
    first, second, third, *_ = STORY
    assert [*invariants.delivery(STORY[:3], [first, third])] == [
        "trust stream: missed [102], told twice []"
    ]
    assert [*invariants.delivery(STORY[:2], [first, second, second])] == [
        "trust stream: missed [], told twice [102]"
    ]
    assert [*invariants.delivery(STORY[:2], [second, first])] == [
        "trust stream: missed [], told twice [], out of order"
    ]


def test_events_of_other_instances_are_nobodys_business() -> None:
    other = {**STORY[0], "history_id": 7}
    assert not [*invariants.delivery(STORY, [other, *STORY])]


def test_trust_from_before_the_newest_boot_is_found() -> None:
    instance: Row = {"trust_lifecycle_state": "restored", "events": []}
    assert not [*invariants.grounds_of_trust(STORY, instance)]
    for at, breaches in (("2026-01-01T00:00:04Z", 0), ("2026-01-01T00:00:06Z", 1)):
        events = [{"event_type": "started", "created_at": at}]
        found = [*invariants.grounds_of_trust(STORY, {**instance, "events": events})]
        assert len(found) == breaches
    assert [*invariants.grounds_of_trust(STORY[:1], instance)] == [
        "restored without a trusted verdict"
    ]
    quarantined = {**instance, "trust_lifecycle_state": "quarantined"}
    assert not [*invariants.grounds_of_trust(STORY[:1], quarantined)]


def test_a_run_too_many_too_few_or_left_over_is_found() -> None:
    left = {**STAGED, "status": "running"}
    by_hand = {**STAGED, "requested_by": "user:7"}
    assert [*invariants.runs_of(STORY, [])] == ["1 quarantines staged 0 runs"]
    assert [*invariants.runs_of(STORY, [STAGED, STAGED])] == [
        "1 quarantines staged 2 runs"
    ]
    assert [*invariants.runs_of(STORY, [left])] == ["run 1 is still running"]
    assert not [*invariants.runs_of(STORY, [STAGED, by_hand])]


def test_a_quarantine_that_a_runs_end_made_stages_nothing() -> None:
    ended = row(3, "remediating", "quarantined", metadata={"run_id": 1})
    assert not [*invariants.runs_of([ended], [])]


def test_lines_of_a_log_missed_or_repeated_are_found() -> None:
    def told(seq: int) -> Row:
        return {"run_id": 1, "event": {"event": "log", "seq": seq}}

    log = [{"seq": 2}, {"seq": 3}]
    assert not [*invariants.logs(1, log, [told(2), told(3)])]
    assert [*invariants.logs(1, log, [told(2), told(2)])] == [
        "run 1: log lines [2, 3], streamed [2, 2]"
    ]


def test_another_state_than_the_steady_one_is_found() -> None:
    registry = {"lifecycle_state": "suspect", "attestation_status": "trusted"}
    assert [*invariants.steady_state(registry, SteadyState())] == [
        "steady state: lifecycle_state is suspect, not restored"
    ]
