"""Scores: each term as the contract says, and the lines add up, whatever the facts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.intelligence import (
    CertificationFacts,
    Health,
    Inputs,
    TrustFacts,
    capabilities_of,
    changes_at,
    score,
    terms,
)
from trustfabric.domain.trust import AttestationStatus, Lifecycle

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WINDOW = timedelta(seconds=300)
SECOND = timedelta(seconds=1)
FRESH = NOON + WINDOW
HEALTHY = TrustFacts(
    instance_id=InstanceId(3),
    status=AttestationStatus.TRUSTED,
    lifecycle=Lifecycle.RESTORED,
    attempts=0,
    freshness_deadline=FRESH,
    provenance_ref="attestation:tpm:4",
    version=2,
)


def some_inputs(trust: TrustFacts | None = HEALTHY, **parts: Any) -> Inputs:
    return Inputs(
        server_id=ServerId(1), capabilities=("runtime",), trust=trust, **parts
    )


def of(inputs: Inputs) -> int:
    return score(inputs, NOON, WINDOW).score


def lines(inputs: Inputs) -> tuple[str, ...]:
    return score(inputs, NOON, WINDOW).notes[1:]


def test_a_healthy_one_has_the_base() -> None:
    found = score(some_inputs(), NOON, WINDOW)

    assert (found.score, found.status, found.confidence) == (85, Health.HEALTHY, 1.0)
    assert found.notes == ("base +85",)


def test_one_that_never_ran_has_the_base_and_little_confidence() -> None:
    found = score(some_inputs(None), NOON, WINDOW)

    assert (found.score, found.confidence) == (85, 0.25)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"status": AttestationStatus.UNTRUSTED}, "attestation:untrusted -40"),
        ({"status": AttestationStatus.UNKNOWN}, "attestation:unknown -10"),
        ({"lifecycle": Lifecycle.QUARANTINED}, "lifecycle:quarantined -25"),
        ({"lifecycle": Lifecycle.REMEDIATING}, "lifecycle:remediating -15"),
        ({"lifecycle": Lifecycle.SUSPECT}, "lifecycle:suspect -5"),
        ({"attempts": 1}, "remediation-attempts:1 -3"),
        ({"attempts": 3}, "remediation-attempts:3 -9"),
        ({"attempts": 7}, "remediation-attempts:7 -9"),
        (
            {"freshness_deadline": NOON},
            "freshness:expired:2026-01-01T12:00:00Z -10",
        ),
    ],
)
def test_each_fact_of_trust_is_one_line(changes: dict[str, Any], line: str) -> None:
    inputs = some_inputs(replace(HEALTHY, **changes))

    assert lines(inputs) == (line,)
    assert of(inputs) == 85 + int(line.rsplit(maxsplit=1)[-1])


@pytest.mark.parametrize(
    ("late", "points"),
    [
        (timedelta(0), -10),
        (WINDOW - SECOND, -10),
        (WINDOW, -11),
        (4 * WINDOW + SECOND, -14),
        (10 * WINDOW, -20),
        (900 * WINDOW, -20),
    ],
)
def test_staleness_grows_by_the_full_window(late: timedelta, points: int) -> None:
    inputs = some_inputs(replace(HEALTHY, freshness_deadline=NOON - late))

    assert of(inputs) == 85 + points


@pytest.mark.parametrize("status", list(AttestationStatus))
def test_pending_and_trusted_cost_nothing(status: AttestationStatus) -> None:
    free = {AttestationStatus.PENDING, AttestationStatus.TRUSTED}

    assert (of(some_inputs(replace(HEALTHY, status=status))) == 85) is (status in free)


@pytest.mark.parametrize(
    ("postures", "points"),
    [
        ({"gpu-0": "trusted", "gpu-1": "attested"}, 0),
        ({"gpu-0": "tampered", "gpu-1": "attested"}, -10),
        ({"gpu-0": "tampered", "gpu-1": "unknown"}, -10),
    ],
)
def test_distrusted_accelerators_cost_ten(
    postures: dict[str, str], points: int
) -> None:
    assert of(some_inputs(accelerators=postures)) == 85 + points


@pytest.mark.parametrize(
    ("certification", "points"),
    [
        (CertificationFacts(1, "pending", None, 1), 0),
        (CertificationFacts(1, "pass", FRESH, 1), 0),
        (CertificationFacts(1, "pass", NOON, 1), -5),
        (CertificationFacts(1, "fail", NOON, 1), -10),
    ],
)
def test_certifications_count(certification: CertificationFacts, points: int) -> None:
    assert of(some_inputs(certifications=[certification])) == 85 + points


@pytest.mark.parametrize("reason", [*FailureReason, "martian"])
def test_a_failure_counts_by_its_class(reason: str) -> None:
    cost = {
        "timeout": -5,
        "transient-infrastructure": -5,
        "executor-unavailable": -5,
        "dependency-unavailable": -5,
        "cancelled": 0,
        "approval-expired": 0,
        "queue-expired": 0,
    }.get(reason, -10)

    assert of(some_inputs(failure=reason)) == 85 + cost


def test_the_worst_is_clamped_in_a_line_of_its_own() -> None:
    worst = replace(
        HEALTHY,
        status=AttestationStatus.UNTRUSTED,
        lifecycle=Lifecycle.QUARANTINED,
        attempts=9,
        freshness_deadline=NOON - 99 * WINDOW,
    )

    found = score(
        some_inputs(worst, accelerators={"gpu": "bad"}, failure="playbook-bug"),
        NOON,
        WINDOW,
    )

    assert (found.score, found.status) == (0, Health.CRITICAL)
    assert found.notes[-1] == "clamp +29"


@pytest.mark.parametrize(
    ("points", "health"),
    [
        (100, "healthy"),
        (80, "healthy"),
        (79, "warning"),
        (60, "warning"),
        (59, "critical"),
        (0, "critical"),
    ],
)
def test_health_is_a_threshold(points: int, health: str) -> None:
    assert Health.of(points) == health


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ("runtime",)),
        ({"capabilities": ["a", "b", "a"]}, ("a", "b", "runtime")),
        ({"capabilities": ["runtime", "a"]}, ("a", "runtime")),
        ({"capabilities": ["", 7, None, {"x": 1}, "ok"]}, ("ok", "runtime")),
        ({"capabilities": "not a list"}, ("runtime",)),
        ({"capabilities": None}, ("runtime",)),
    ],
)
def test_capabilities_are_those_of_the_config_and_runtime(
    config: dict[str, Any], names: tuple[str, ...]
) -> None:
    assert capabilities_of(config) == names


def test_capabilities_are_bounded() -> None:
    names = capabilities_of({"capabilities": [f"{n}" * 300 for n in range(999)]})

    assert len(names) == 65
    assert max(map(len, names)) == 200


# --- whatever the facts ---------------------------------------------------------------

TIMES = st.one_of(
    st.none(),
    st.integers(-20_000, 20_000).map(lambda s: NOON + timedelta(seconds=s)),
)
TRUST = st.builds(
    TrustFacts,
    instance_id=st.just(InstanceId(3)),
    status=st.sampled_from(AttestationStatus),
    lifecycle=st.sampled_from(Lifecycle),
    attempts=st.integers(0, 9),
    freshness_deadline=TIMES,
    provenance_ref=st.none(),
    version=st.just(1),
)
INPUTS = st.builds(
    Inputs,
    server_id=st.just(ServerId(1)),
    capabilities=st.just(("runtime",)),
    trust=st.one_of(st.none(), TRUST),
    accelerators=st.dictionaries(
        st.text(max_size=5), st.sampled_from(["trusted", "attested", "bad", ""])
    ),
    certifications=st.lists(
        st.builds(
            CertificationFacts,
            st.just(1),
            st.sampled_from(["pending", "pass", "fail"]),
            TIMES,
            st.just(1),
        ),
        max_size=3,
    ),
    failure=st.one_of(st.none(), st.sampled_from([*FailureReason, "martian"])),
)


@given(INPUTS)
def test_the_lines_add_up_to_the_score(inputs: Inputs) -> None:
    found = score(inputs, NOON, WINDOW)

    assert sum(int(note.rsplit(" ", 1)[1]) for note in found.notes) == found.score
    assert 0 <= found.score <= 100
    assert all(term.points for term in terms(inputs, NOON, WINDOW))
    assert all(len(note) <= 500 for note in found.notes)


def worsened(inputs: Inputs) -> list[Inputs]:
    """Return the same with one fact the worse, in each way that there is."""
    worse = [
        replace(inputs, accelerators={**(inputs.accelerators or {}), "new": "bad"}),
        replace(
            inputs,
            certifications=[
                *inputs.certifications,
                CertificationFacts(9, "fail", None, 1),
            ],
        ),
        replace(inputs, failure="playbook-bug"),
    ]
    trust = inputs.trust
    if trust is None:
        return worse
    order = [Lifecycle.RESTORED, Lifecycle.SUSPECT, Lifecycle.REMEDIATING]
    down = (
        [*order[order.index(trust.lifecycle) + 1 :]] if trust.lifecycle in order else []
    )
    facts: list[dict[str, Any]] = [
        {"attempts": trust.attempts + 1},
        {"status": AttestationStatus.UNTRUSTED},
        {"lifecycle": Lifecycle.QUARANTINED},
        *({"lifecycle": lifecycle} for lifecycle in down),
    ]
    deadline = trust.freshness_deadline
    facts.append({"freshness_deadline": (deadline or NOON) - WINDOW})
    return [*worse, *(replace(inputs, trust=replace(trust, **each)) for each in facts)]


@given(INPUTS)
def test_no_penalty_ever_raises_a_score(inputs: Inputs) -> None:
    before = of(inputs)

    assert all(of(each) <= before for each in worsened(inputs))


@given(INPUTS, st.integers(0, 50_000))
def test_time_changes_a_score_only_when_it_said_so(inputs: Inputs, ahead: int) -> None:
    later = NOON + timedelta(seconds=ahead)
    due = changes_at(inputs, NOON, WINDOW)

    if due is None or later < due:
        before = [(t.points, t.text) for t in terms(inputs, NOON, WINDOW)]
        assert before == [(t.points, t.text) for t in terms(inputs, later, WINDOW)]
    else:
        assert due > NOON
