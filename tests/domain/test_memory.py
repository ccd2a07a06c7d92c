"""What an appraisal leaves to be remembered, and what a memory tells of the next."""

from dataclasses import replace

import pytest

from tests.domain.evidence.test_tpm2 import TPM, evidence, judge
from tests.domain.test_attestation_vectors import CASES, read
from trustfabric.domain.attestation.appraisal import Expected
from trustfabric.domain.attestation.appraisal import judge as judge_question
from trustfabric.domain.attestation.case_kinds import QUESTIONS
from trustfabric.domain.attestation.casefile import Case
from trustfabric.domain.attestation.memory import NOTHING, Memory, fresh_clock
from trustfabric.domain.attestation.model import Appraisal, Code
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.domain.evidence.tpm2 import TpmClock

SEEN = TpmClock(
    reset_count=7, restart_count=0, clock=1000, key_id=TPM.enrolled().key_id
)


def vector(name: str) -> Appraisal:
    case = CASES[name]
    question = QUESTIONS[case["kind"]](Case(case, read), packaged_anchors())
    return judge_question(
        question.kind,
        question.present,
        expected=Expected(binding=question.binding),
        policy=question.policy,
        now=question.now,
    )


def test_fresh_evidence_leaves_its_clock_and_whose_it_is() -> None:
    assert fresh_clock(judge(evidence())) == SEEN
    clock = fresh_clock(judge(evidence()))
    assert clock is not None
    assert clock.key_id == SEEN.key_id


def test_evidence_that_a_policy_refuses_leaves_its_clock_too() -> None:
    tampered = judge(evidence(pcrs={0: b"\x01" * 32}))

    assert not tampered.accepted
    assert fresh_clock(tampered) == SEEN


def test_a_replay_leaves_nothing() -> None:
    assert fresh_clock(judge(evidence(nonce=bytes(32)))) is None


def test_a_tpm_that_was_put_back_leaves_nothing() -> None:
    earlier = evidence(replace(TPM, clock=999))

    assert fresh_clock(judge(earlier, last_seen=SEEN)) is None


@pytest.mark.parametrize("document", [b"", b"{}", evidence()[:-1]])
def test_nothing_that_was_not_authenticated_is_remembered(document: bytes) -> None:
    assert fresh_clock(judge(document)) is None


def test_a_composite_s_clock_is_its_tpm_s() -> None:
    appraisal = vector("composite-azure-vtpm/snp-v0/good")

    clock = fresh_clock(appraisal)

    assert clock is not None
    assert clock.key_id == appraisal.endorsements["ak_sha256"]


def test_evidence_without_a_clock_leaves_none() -> None:
    assert fresh_clock(vector("amd-sev-snp/genoa-v3-ms/good")) is None


def test_the_clock_of_another_tpm_is_no_measure() -> None:
    later = replace(SEEN, clock=9000, key_id="00" * 32)

    assert judge(evidence(), last_seen=later).accepted
    same = judge(evidence(), last_seen=replace(later, key_id=SEEN.key_id))
    assert same.code is Code.POLICY_VIOLATION


@pytest.mark.parametrize(
    ("memory", "saw"),
    [
        (NOTHING, False),
        (Memory(clock=replace(SEEN, reset_count=6), boot_id="b"), True),
        (Memory(clock=replace(SEEN, reset_count=6), boot_id="another"), False),
        (Memory(clock=replace(SEEN, reset_count=6, key_id="x"), boot_id="b"), False),
        (Memory(clock=SEEN, boot_id="b"), False),
        (Memory(clock=replace(SEEN, reset_count=8), boot_id="b"), False),
        (Memory(clock=replace(SEEN, reset_count=2**32 - 1), boot_id="b"), True),
    ],
)
def test_a_reset_within_one_boot_is_a_reboot(memory: Memory, *, saw: bool) -> None:
    assert memory.saw_reboot(judge(evidence()), "b") is saw
