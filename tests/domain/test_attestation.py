"""Codes and their consequences, bindings, policies and provenance."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.attestation.appraisal import (
    Expected,
    replayed,
    unreachable,
    verify,
)
from trustfabric.domain.attestation.binding import binding, expected_of, extra_data
from trustfabric.domain.attestation.checks import code_of
from trustfabric.domain.attestation.model import (
    CONSEQUENCES,
    Appraisal,
    Challenge,
    Check,
    Code,
    EvidenceKind,
    Tier,
    TrustVector,
)
from trustfabric.domain.attestation.policy import (
    DEFAULT_POLICY,
    DEMO_POLICY,
    parse_policy,
    with_measurements,
)
from trustfabric.domain.attestation.provenance import (
    Exchange,
    canonical,
    digest,
    provenance,
)
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.trust import AttestationStatus
from trustfabric.errors import InvalidError

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NONCE = bytes(range(32))


def a_challenge(kind: EvidenceKind = EvidenceKind.TPM) -> Challenge:
    return Challenge(
        kind=kind,
        instance_id="vm-1",
        boot_id="boot-1",
        nonce=NONCE,
        issued_at=NOON,
        expires_at=NOON + timedelta(seconds=60),
    )


def an_appraisal(code: Code = Code.OK, **changes: object) -> Appraisal:
    failed = Check(name="pcr", passed=False, code=code, expected="a", actual="b")
    fields: dict[str, object] = {
        "kind": EvidenceKind.TPM,
        "code": code,
        "checks": () if code is Code.OK else (failed,),
        "policy_id": "test",
        "policy_version": 3,
        "verified_at": NOON,
        **changes,
    }
    return Appraisal(**fields)  # type: ignore[arg-type]


def test_every_code_has_a_consequence() -> None:
    assert set(CONSEQUENCES) == set(Code)


def test_only_the_ok_codes_are_trusted() -> None:
    trusted = {
        code
        for code, consequence in CONSEQUENCES.items()
        if consequence.status is AttestationStatus.TRUSTED
    }

    assert trusted == {Code.OK, Code.OK_WITH_ADVISORIES}


@pytest.mark.parametrize("code", Code)
def test_the_tier_says_what_the_status_says(code: Code) -> None:
    consequence = CONSEQUENCES[code]

    allowed = {
        AttestationStatus.TRUSTED: {Tier.AFFIRMING, Tier.WARNING},
        AttestationStatus.UNTRUSTED: {Tier.WARNING, Tier.CONTRAINDICATED},
        AttestationStatus.UNKNOWN: {Tier.NONE},
    }
    assert consequence.vector.tier in allowed[consequence.status]


def test_reasons_are_the_codes_but_for_one() -> None:
    others = {
        code: consequence.reason
        for code, consequence in CONSEQUENCES.items()
        if consequence.reason != f"attestation:{code}"
    }

    assert others == {Code.EXPIRED: "attestation:endorsement-expired"}


@pytest.mark.parametrize(
    ("claim", "tier"),
    [
        (-1, Tier.NONE),
        (1, Tier.NONE),
        (2, Tier.AFFIRMING),
        (31, Tier.AFFIRMING),
        (32, Tier.WARNING),
        (95, Tier.WARNING),
        (96, Tier.CONTRAINDICATED),
        (127, Tier.CONTRAINDICATED),
    ],
)
def test_claims_fall_into_their_tier(claim: int, tier: Tier) -> None:
    assert Tier.of(claim) is tier


def test_a_vector_is_as_bad_as_its_worst_claim() -> None:
    assert TrustVector().tier is Tier.NONE
    assert TrustVector(hardware=2).tier is Tier.AFFIRMING
    assert TrustVector(hardware=2, executables=33).tier is Tier.WARNING


def test_silence_is_unknown_and_a_replay_is_untrusted() -> None:
    silent = unreachable(EvidenceKind.TPM, DEFAULT_POLICY, NOON, "no answer")
    replay = replayed(EvidenceKind.TPM, DEFAULT_POLICY, NOON, "used before")

    assert (silent.status, silent.reason) == ("unknown", "attestation:unreachable")
    assert (replay.status, replay.reason) == ("untrusted", "attestation:nonce-mismatch")


def test_notes_say_what_was_expected_and_found() -> None:
    appraisal = an_appraisal(Code.MEASUREMENT_UNKNOWN)

    assert appraisal.notes() == ["measurement-unknown: pcr expected a actual b"]


@given(st.text())
def test_s31_an_attester_s_words_can_be_kept_and_shown_anywhere(words: str) -> None:
    check = Check(name="x", passed=False, code=Code.MALFORMED, actual=words)
    appraisal = an_appraisal(
        Code.MALFORMED, checks=(check,), claims={words: [words, {"a": words}]}
    )

    told = [check.actual, *appraisal.claims, *appraisal.notes()]
    document = provenance(appraisal, an_exchange())
    assert all(text.isprintable() for text in told)
    assert "\\u0000" not in canonical(document).decode().replace("\\\\", "")
    assert check.actual == words or not words.isprintable()


def test_freshness_runs_from_the_challenge() -> None:
    fresh = an_appraisal().fresh_until(NOON, timedelta(seconds=300))

    assert fresh == NOON + timedelta(seconds=300)


@given(
    st.sampled_from(["kind", "instance_id", "boot_id", "nonce", "channel_key"]),
)
def test_every_part_of_a_challenge_counts(part: str) -> None:
    parts: dict[str, object] = {
        "kind": EvidenceKind.TPM,
        "instance_id": "vm-1",
        "boot_id": "boot-1",
        "nonce": NONCE,
        "channel_key": b"key",
    }
    other: dict[str, object] = {
        "kind": EvidenceKind.AMD_SEV_SNP,
        "instance_id": "vm-2",
        "boot_id": "boot-2",
        "nonce": bytes(32),
        "channel_key": b"",
    }

    one = binding(**parts)  # type: ignore[arg-type]

    assert one != binding(**parts | {part: other[part]})  # type: ignore[arg-type]
    assert len(one) == 64


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_nonce_of_another_size_is_a_bug(nonce: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        binding(EvidenceKind.TPM, "vm", "boot", nonce)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (EvidenceKind.AMD_SEV_SNP, 64),
        (EvidenceKind.INTEL_TDX, 64),
        (EvidenceKind.TPM, 32),
        (EvidenceKind.COMPOSITE_AZURE_VTPM, 32),
        (EvidenceKind.NVIDIA_GPU, 32),
        (EvidenceKind.EAR, 32),
    ],
)
def test_evidence_carries_as_much_as_it_has_room_for(
    kind: EvidenceKind, size: int
) -> None:
    assert len(expected_of(a_challenge(kind))) == size


def test_a_tpm_carries_the_digest_of_the_binding() -> None:
    whole = binding(EvidenceKind.TPM, "vm-1", "boot-1", NONCE)

    assert expected_of(a_challenge()) == extra_data(whole)


def test_a_challenge_never_shows_its_nonce() -> None:
    assert NONCE.hex() not in repr(a_challenge())
    assert repr(NONCE) not in repr(a_challenge())


@pytest.mark.parametrize("policy", [DEFAULT_POLICY, DEMO_POLICY], ids=lambda p: p.id)
def test_a_policy_comes_back_from_its_document(policy: object) -> None:
    assert isinstance(policy, type(DEFAULT_POLICY))

    assert parse_policy(policy.document()) == policy
    assert parse_policy(json.dumps(policy.document()).encode()) == policy


def test_the_default_policy_names_no_software_tpm() -> None:
    assert DEFAULT_POLICY.kinds.tpm.allow_software == ()
    assert DEFAULT_POLICY.max_age_s == 300


@pytest.mark.parametrize(
    "document",
    [
        {"id": "x"},
        {"version": 1},
        {"id": "x", "version": 0},
        {"id": "x", "version": "1"},
        {"id": "x", "version": True},
        {"id": "X y", "version": 1},
        {"id": "x", "version": 1, "unknown": 1},
        {"id": "x", "version": 1, "kinds": {"abacus": {}}},
        {"id": "x", "version": 1, "kinds": {"tpm": {"bank": ["sha256"]}}},
        {"id": "x", "version": 1, "kinds": {"tpm": {"banks": ["sha1"]}}},
        {"id": "x", "version": 1, "kinds": {"tpm": {"banks": []}}},
        {"id": "x", "version": 1, "kinds": {"tpm": {"pcrs": {"16": ["00" * 32]}}}},
        {"id": "x", "version": 1, "kinds": {"tpm": {"pcrs": {"24": ["00" * 32]}}}},
        {"id": "x", "version": 1, "kinds": {"tpm": {"pcrs": {"0": ["zz" * 32]}}}},
        {"id": "x", "version": 1, "kinds": {"tpm": {"required_pcrs": [23]}}},
        {"id": "x", "version": 1, "kinds": {"amd-sev-snp": {"max_vmpl": 4}}},
        {"id": "x", "version": 1, "kinds": {"amd-sev-snp": {"products": ["Rome"]}}},
        {"id": "x", "version": 1, "kinds": {"intel-tdx": {"grace_until": "soon"}}},
        {"id": "x", "version": 1, "max_age_s": 0},
        {"id": "x", "version": object()},
    ],
)
def test_a_policy_with_a_fault_is_invalid(document: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        parse_policy(document)


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b'{"id":"x","id":"y","version":1}', b"\xff", b"{" * 300_000],
    ids=range(5),
)
def test_a_policy_that_is_not_strict_json_is_invalid(document: bytes) -> None:
    with pytest.raises(InvalidError):
        parse_policy(document)


def test_measurements_are_added_to_what_the_policy_allows() -> None:
    digest_48 = "ab" * 48

    policy = with_measurements(DEFAULT_POLICY, (digest_48,))

    assert policy.kinds.amd_sev_snp.measurements == (digest_48,)
    assert policy.kinds.intel_tdx.mrtd == (digest_48,)
    assert policy.kinds.tpm == DEFAULT_POLICY.kinds.tpm


def an_exchange() -> Exchange:
    return Exchange(
        challenge_id=7,
        issued_at=NOON,
        received_at=NOON + timedelta(seconds=1),
        evidence_bytes=900,
        deadline=NOON + timedelta(seconds=300),
    )


def test_provenance_says_under_which_policy_and_by_whom() -> None:
    document = provenance(an_appraisal(), an_exchange())

    assert document["policy"] == {"id": "test", "version": 3}
    verifier = document["verifier"]
    assert isinstance(verifier, dict)
    assert verifier["name"] == "trustfabric"


def test_provenance_is_the_same_bytes_for_the_same_judgement() -> None:
    one, other = (provenance(an_appraisal(), an_exchange()) for _ in range(2))

    assert canonical(one) == canonical(other)
    assert digest(one) == digest(other)
    assert b" " not in canonical({"a": [1, 2], "b": None})


def test_provenance_stays_small_whatever_failed() -> None:
    checks = tuple(
        Check(
            name=f"pcr-sha512-{index}",
            passed=False,
            code=Code.MEASUREMENT_UNKNOWN,
            expected="ab" * 5000,
            actual="cd" * 64,
        )
        for index in range(24)
    )

    document = provenance(
        an_appraisal(Code.MEASUREMENT_UNKNOWN, checks=checks), an_exchange()
    )

    assert len(canonical(document)) < 16 * 1024


def test_provenance_stays_small_and_says_who_keeps_the_key_whatever_it_rests_on() -> (
    None
):
    sets = tuple({"id": n, "register": f"pcr-{n % 9}"} for n in range(900))
    claims = {
        "software": True,
        "pcrs": {f"sha512-{n}": "ab" * 64 for n in range(100)},
        "hardware": {"signer": "VLEK", "debug": False, "measurement": "cd" * 9000},
    }

    document = provenance(an_appraisal(references=sets, claims=claims), an_exchange())

    assert len(canonical(document)) < 16 * 1024
    assert document["references_in_all"] == 900
    assert document["claims"] == {
        "software": True,
        "pcrs": {},
        "hardware": {"signer": "VLEK", "debug": False},
    }


def test_what_the_verifier_lacks_hides_no_failure_of_the_attester() -> None:
    def failed(code: Code) -> Check:
        return Check(name=code, passed=False, code=code, expected="", actual="")

    lacks, missing = failed(Code.EXPIRED), failed(Code.NO_REFERENCE_VALUES)

    assert code_of([lacks, failed(Code.TCB_OUT_OF_DATE)]) is Code.TCB_OUT_OF_DATE
    assert code_of([missing, lacks]) is Code.EXPIRED
    assert code_of([missing]) is Code.NO_REFERENCE_VALUES


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        (
            EvidenceKind.NVIDIA_GPU,
            {"kind": "nvidia-gpu", "report": "", "chain": "\ud800"},
        ),
        (EvidenceKind.EAR, {"kind": "ear", "token": "\ud800"}),
    ],
)
def test_half_a_character_is_malformed(
    kind: EvidenceKind, document: dict[str, str]
) -> None:
    appraisal = verify(
        kind,
        json.dumps(document).encode(),
        expected=Expected(binding=bytes(32)),
        anchors=Anchors(),
        policy=DEFAULT_POLICY,
        now=NOON,
    )

    assert appraisal.code is Code.MALFORMED
