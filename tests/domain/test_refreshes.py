"""Refreshes: every step follows from what is stored, and one job at most is live."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.test_evaluations import NOON, a_certification
from trustfabric.domain.evaluations import (
    Certification,
    CertificationStatus,
    Job,
    JobId,
    JobStatus,
)
from trustfabric.domain.ids import (
    AttestationId,
    ChallengeId,
    HistoryId,
    InstanceId,
    RunId,
    ServerId,
)
from trustfabric.domain.placement import (
    Accelerator,
    ActiveRun,
    Failure,
    Situation,
    Trust,
    decide,
)
from trustfabric.domain.refreshes import (
    Case,
    Claim,
    End,
    Enqueue,
    Moment,
    RefreshSettings,
    Requeue,
    Step,
    Verdict,
    step,
    veto_of,
)
from trustfabric.domain.trust import AttestationStatus, Lifecycle

SETTINGS = RefreshSettings(
    cadence=timedelta(minutes=30),
    look_ahead=timedelta(minutes=60),
    lease=timedelta(seconds=90),
)
AT = Moment(NOON, SETTINGS, 0.5)
VM = InstanceId(9)
VETO = "policy_hook:remediation_gate=active-run:3:running"


def a_job(status: JobStatus = JobStatus.QUEUED, **changes: Any) -> Job:
    job = Job(
        id=JobId(5), status=status, attempts=1, not_before=NOON, lease_expires_at=None
    )
    return replace(job, **changes)


def a_verdict(status: AttestationStatus) -> Verdict:
    return Verdict(
        attestation_id=AttestationId(7),
        challenge_id=ChallengeId(8),
        instance_id=VM,
        kind="tpm",
        status=status,
        code="ok",
        issued_at=NOON,
        verified_at=NOON,
        fresh_until=None,
        nonce_sha256="00",
        evidence_sha256=None,
        notes=(),
    )


def taken(case: Case) -> Step:
    found = step(case, AT)
    assert found is not None
    return found


def a_case(job: Job | None = None, **parts: Any) -> Case:
    changes = parts.pop("certification", {})
    return Case(certification=a_certification(**changes), job=job, **parts)


def test_what_is_new_is_due_now() -> None:
    case = a_case(certification={"next_refresh_at": None, "version": 1})

    assert taken(case).action == Enqueue(NOON)


@pytest.mark.parametrize(("minutes", "expected"), [(60, True), (61, False)])
def test_what_is_due_within_the_look_ahead_is_queued(
    minutes: int, *, expected: bool
) -> None:
    due = NOON + timedelta(minutes=minutes)

    found = step(a_case(certification={"next_refresh_at": due}), AT)

    assert (found is not None and found.action == Enqueue(due)) is expected


def test_what_nobody_planned_is_left_alone() -> None:
    assert step(a_case(certification={"next_refresh_at": None}), AT) is None


def test_a_queued_one_is_claimed_where_its_vm_runs() -> None:
    assert step(a_case(a_job()), AT) is None
    claim = taken(a_case(a_job(), challengeable=VM)).action
    assert claim == Claim(VM, NOON + SETTINGS.lease)


def test_a_queued_one_waits_for_its_time() -> None:
    later = a_job(not_before=NOON + timedelta(seconds=1))

    assert step(a_case(later, challengeable=VM), AT) is None


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.CLAIMED])
def test_a_veto_cancels_and_starts_the_fallback(status: JobStatus) -> None:
    found = taken(a_case(a_job(status), veto=VETO, challengeable=VM))

    assert found.action == End(JobStatus.CANCELLED, VETO)
    assert found.after.fallback_launched_at == NOON
    assert found.after.blocked_reason == VETO
    assert found.after.next_refresh_at == NOON + SETTINGS.cadence


def test_a_veto_that_is_known_changes_nothing() -> None:
    blocked = taken(a_case(veto=VETO)).after

    assert step(Case(certification=blocked, job=None, veto=VETO), AT) is None


def test_when_the_veto_goes_it_is_due_at_once() -> None:
    blocked = taken(a_case(veto=VETO)).after

    after = taken(Case(certification=blocked, job=None)).after

    assert after.next_refresh_at == NOON
    assert after.fallback_launched_at is None
    assert after.blocked_reason is None


def test_untrusted_is_never_certified() -> None:
    passed = {"status": CertificationStatus.PASS}
    case = a_case(
        certification=passed, veto="x", trust_status=AttestationStatus.UNTRUSTED
    )

    assert taken(case).after.status is CertificationStatus.FAIL


def test_lost_ones_are_tried_again_and_then_given_up() -> None:
    lost = a_job(JobStatus.CLAIMED, lease_expires_at=NOON)
    last = replace(lost, attempts=SETTINGS.attempts)

    assert taken(a_case(lost)).action == Requeue(
        NOON + SETTINGS.backoff, "no verdict in time"
    )
    found = taken(a_case(last))
    assert found.action == End(JobStatus.FAILED, "no verdict in time")
    assert found.after.next_refresh_at == NOON + 0.95 * SETTINGS.cadence


def test_a_lease_that_holds_is_left_alone() -> None:
    held = a_job(JobStatus.CLAIMED, lease_expires_at=NOON + timedelta(seconds=1))

    assert step(a_case(held, challengeable=VM), AT) is None


def test_a_verdict_keeps_what_people_noted_of_the_lineage() -> None:
    for before in ({"sbom": "x"}, ["x"], None):
        case = a_case(
            a_job(JobStatus.CLAIMED),
            certification={"evidence_lineage": before},
            verdict=a_verdict(AttestationStatus.TRUSTED),
        )
        lineage = taken(case).after.evidence_lineage
        assert lineage["attestation"]["attestation_id"] == 7
        assert before is None or "x" in str(lineage)


def test_a_cleared_plan_stays_cleared_through_a_verdict() -> None:
    case = a_case(
        a_job(JobStatus.CLAIMED),
        certification={"next_refresh_at": None},
        verdict=a_verdict(AttestationStatus.TRUSTED),
    )

    assert taken(case).after.next_refresh_at is None


# --- the veto -------------------------------------------------------------------------


def a_situation(**parts: Any) -> Situation:
    trust = Trust(
        status=parts.pop("status", AttestationStatus.TRUSTED),
        lifecycle=parts.pop("lifecycle", Lifecycle.RESTORED),
        previous_lifecycle=None,
        remediation_state="remediation:none",
        remediation_attempts=0,
        freshness_deadline=parts.pop("deadline", None),
        provenance_ref=None,
        event_id=HistoryId(1),
        reason="x",
    )
    return Situation(
        **{"server_id": ServerId(1), "trust": trust, "running": True, **parts}
    )


HOOK = "policy_hook:remediation_gate="
BAD_GPU = Accelerator("gpu-0", "tampered", ())


@pytest.mark.parametrize(
    ("parts", "veto"),
    [
        ({}, None),
        ({"trust": None}, None),
        ({"status": AttestationStatus.UNKNOWN, "lifecycle": Lifecycle.SUSPECT}, None),
        ({"deadline": NOON}, None),
        ({"accelerators": [BAD_GPU]}, None),
        ({"status": AttestationStatus.UNTRUSTED}, "trust:attestation:untrusted"),
        ({"lifecycle": Lifecycle.QUARANTINED}, "trust:lifecycle:quarantined"),
        ({"lifecycle": Lifecycle.REMEDIATING}, "trust:lifecycle:remediating"),
        (
            {"active_run": ActiveRun(RunId(3), "pending", awaits_approval=True)},
            f"{HOOK}active-run:3:pending",
        ),
        (
            {"failure": Failure("playbook-bug", NOON)},
            f"{HOOK}failure:playbook-bug:structural",
        ),
        ({"failure": Failure("timeout", NOON)}, f"{HOOK}failure:timeout:transient"),
        ({"failure": Failure("cancelled", NOON)}, None),
        (
            {"failure": Failure("cancelled", NOON), "accelerators": [BAD_GPU]},
            None,
        ),
        ({"holds": ["owner"]}, f"{HOOK}held:owner"),
        (
            {
                "lifecycle": Lifecycle.QUARANTINED,
                "running": False,
                "terminated_at": NOON,
                "released_at": NOON + timedelta(seconds=1),
            },
            None,
        ),
    ],
)
def test_what_vetoes_a_refresh(parts: dict[str, Any], veto: str | None) -> None:
    situation = a_situation(**parts)

    assert veto_of(situation, decide(situation, NOON)) == veto


# --- whatever happens -----------------------------------------------------------------


@dataclass
class Queue:
    """What is stored of one certification, written as db/refreshes.py does."""

    certification: Certification
    jobs: list[Job] = field(default_factory=list)

    def live(self) -> list[Job]:
        return [
            job
            for job in self.jobs
            if job.status in {JobStatus.QUEUED, JobStatus.CLAIMED}
        ]

    def take(self, found: Step) -> None:
        if found.after != self.certification:
            self.certification = replace(
                found.after, version=self.certification.version + 1
            )
        match found.action:
            case Enqueue(not_before):
                number = JobId(len(self.jobs))
                self.jobs.append(a_job(id=number, attempts=0, not_before=not_before))
            case Claim(until=until):
                (job,) = self.live()
                self._put(
                    job,
                    status=JobStatus.CLAIMED,
                    attempts=job.attempts + 1,
                    lease_expires_at=until,
                )
            case Requeue(not_before):
                (job,) = self.live()
                self._put(job, status=JobStatus.QUEUED, not_before=not_before)
            case End(status):
                (job,) = self.live()
                self._put(job, status=status)
            case None:
                pass

    def _put(self, job: Job, **changes: Any) -> None:
        self.jobs[self.jobs.index(job)] = replace(job, **changes)


HAPPENINGS = st.lists(
    st.tuples(
        st.integers(0, 5000),
        st.sampled_from([None, None, "a", "b"]),
        st.sampled_from([None, *AttestationStatus]),
        st.booleans(),
        st.floats(0, 1),
    ),
    max_size=40,
)


@given(HAPPENINGS)
def test_never_two_live_jobs_and_always_an_end(
    happenings: list[tuple[int, str | None, AttestationStatus | None, bool, float]],
) -> None:
    queue = Queue(a_certification(next_refresh_at=None, version=1))
    now, fallback = NOON, None
    for seconds, veto, answered, runs, jitter in happenings:
        now += timedelta(seconds=seconds)
        at = Moment(now, SETTINGS, jitter)
        notes = (queue.certification.governance_notes or "").count("\n")
        for turn in range(9):
            assert turn < 8, "the steps never end"
            job = next(iter(queue.live()), None)
            claimed = job is not None and job.status is JobStatus.CLAIMED
            found = step(
                Case(
                    certification=queue.certification,
                    job=job,
                    verdict=a_verdict(answered) if claimed and answered else None,
                    veto=veto,
                    challengeable=VM if runs and not answered else None,
                ),
                at,
            )
            if found is None:
                break
            queue.take(found)
            assert len(queue.live()) <= 1
        after = queue.certification
        if veto is None:
            assert after.blocked_reason is None
            assert after.fallback_launched_at is None
            fallback = None
        else:
            assert not queue.live()
            assert fallback in (None, after.fallback_launched_at)
            fallback = after.fallback_launched_at
        assert (after.governance_notes or "").count("\n") <= notes + 1
