"""What makers publish, put beside the roots: damaged, of others, expired, stored."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.domain.evidence.snp_platform import MEASUREMENT, NOW, REPORT_DATA, Platform
from tests.domain.test_attestation_vectors import CASES, read
from trustfabric.domain.attestation.appraisal import Expected
from trustfabric.domain.attestation.basis import Basis, Rule, judge_by
from trustfabric.domain.attestation.collateral import (
    ends_of,
    most_bytes,
    needed_by,
)
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import (
    AppraisalPolicy,
    Kinds,
    SnpPolicy,
    TdxPolicy,
)
from trustfabric.domain.attestation.stored import (
    Inputs,
    StoredVerdict,
    dump,
    judge_again,
    parse_stored,
)
from trustfabric.domain.evidence import snp, tdx
from trustfabric.domain.evidence.anchors import Anchors, Collateral
from trustfabric.domain.evidence.model import Code, EvidenceKind
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.domain.trust import AttestationStatus
from trustfabric.errors import MalformedError

MILAN = Platform()
UP_TO_DATE = CASES["intel-tdx/v4-uptodate-phala/good"]
FMSPC = "intel/b0c06f000000.json"
PARTS = tuple(json.loads(read(UP_TO_DATE["collateral"])))

QUOTE = tdx.write_document(read(UP_TO_DATE["quote"]))
REPORT = snp.write_document(MILAN.report(), MILAN.leaf())


def basis(case: dict[str, Any] = UP_TO_DATE) -> Basis:
    kinds = Kinds(
        intel_tdx=TdxPolicy(mrtd=tuple(case["policy"]["mrtd"])),
        amd_sev_snp=SnpPolicy(measurements=(MEASUREMENT.hex(),)),
    )
    policy = AppraisalPolicy(id="test", version=1, kinds=kinds)
    return Basis(rules=(Rule(policy=policy),))


def judge_tdx(collateral: Collateral | None, **later: float) -> Appraisal:
    return judge_by(
        basis(),
        EvidenceKind.INTEL_TDX,
        QUOTE,
        expected=Expected(binding=bytes.fromhex(UP_TO_DATE["policy"]["report_data"])),
        anchors=replace(packaged_anchors(), collateral=collateral),
        now=datetime.fromisoformat(UP_TO_DATE["now"]) + timedelta(**later),
    )


def intel(name: str = FMSPC, **parts: str) -> Collateral:
    whole = json.loads(read(UP_TO_DATE["collateral"])) | parts
    content = json.dumps(whole).encode() if parts else read(UP_TO_DATE["collateral"])
    return Collateral(name=name, content=content)


def judge_snp(crl: bytes | None, now: datetime = NOW) -> Appraisal:
    named = None if crl is None else Collateral(name="amd/Milan.crl", content=crl)
    return judge_by(
        basis(),
        EvidenceKind.AMD_SEV_SNP,
        REPORT,
        expected=Expected(binding=REPORT_DATA),
        anchors=replace(MILAN.anchors(), collateral=named),
        now=now,
    )


def damaged(part: str) -> str:
    """Return a part with one letter of its signature, key or text exchanged."""
    text: str = json.loads(read(UP_TO_DATE["collateral"]))[part]
    if part in {"tcb_info", "qe_identity"}:
        return text.replace('"version":', '"version": ', 1)
    at = len(text) // 3 if "chain" in part else len(text) - 3
    return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]


# --- which file ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "raw", "name"),
    [
        (EvidenceKind.INTEL_TDX, QUOTE, FMSPC),
        (EvidenceKind.AMD_SEV_SNP, REPORT, "amd/Milan.crl"),
        (EvidenceKind.AMD_SEV_SNP, QUOTE, None),
        (EvidenceKind.INTEL_TDX, b"noise", None),
        (EvidenceKind.TPM, QUOTE, None),
        (EvidenceKind.EAR, b"", None),
    ],
    ids=["tdx", "snp", "another kind", "noise", "tpm", "ear"],
)
def test_evidence_says_which_file_is_its_platform_s(
    kind: EvidenceKind, raw: bytes, name: str | None
) -> None:
    assert needed_by(kind, raw) == name


@pytest.mark.parametrize(
    "name",
    [
        "amd/../Milan.crl",
        "amd/milan.crl",
        "amd/Rome.crl",
        "intel/B0C06F000000.json",
        "intel/b0c06f.json",
        "intel/b0c06f000000.json\n",
        "b0c06f000000.json",
    ],
)
def test_a_file_of_another_name_is_never_read(name: str) -> None:
    assert most_bytes(name) is None


# --- Intel's ------------------------------------------------------------------------


def test_a_quote_is_trusted_until_the_first_part_of_its_collateral_runs_out() -> None:
    appraisal = judge_tdx(intel())

    assert appraisal.code is Code.OK
    assert appraisal.endorsed_until == ends_of(intel(), packaged_anchors())
    assert appraisal.endorsed_until == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)


def test_without_its_collateral_a_quote_is_no_failure_and_the_file_is_named() -> None:
    appraisal = judge_tdx(None)

    assert appraisal.code is Code.VERIFIER_FAULT
    assert appraisal.status is AttestationStatus.UNKNOWN
    assert "b0c06f000000" in appraisal.notes()[0]


def test_collateral_that_ran_out_gives_no_verdict() -> None:
    assert judge_tdx(intel(), days=60).code is Code.EXPIRED


@pytest.mark.parametrize("part", PARTS)
def test_damage_to_our_collateral_is_not_the_guest_s_fault(part: str) -> None:
    appraisal = judge_tdx(intel(**{part: damaged(part)}))

    assert appraisal.code is Code.VERIFIER_FAULT
    assert FMSPC in appraisal.notes()[0]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_missing_is_not_the_guest_s_fault(part: str) -> None:
    assert judge_tdx(intel(**{part: ""})).code is Code.VERIFIER_FAULT


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b" " * 300_000])
def test_rubbish_is_not_the_guest_s_fault(content: bytes) -> None:
    found = Collateral(name=FMSPC, content=content)

    assert judge_tdx(found).code is Code.VERIFIER_FAULT


def test_collateral_of_another_platform_under_this_one_s_name_is_our_fault() -> None:
    other = read("intel-tdx/v4-uptodate-phala.wrong-fmspc.collateral.json")

    appraisal = judge_tdx(Collateral(name=FMSPC, content=other))

    assert appraisal.code is Code.VERIFIER_FAULT
    assert "50806f000000" in appraisal.notes()[0]


def test_collateral_that_another_root_signed_is_our_fault() -> None:
    appraisal = judge_by(
        basis(),
        EvidenceKind.INTEL_TDX,
        QUOTE,
        expected=Expected(binding=b""),
        anchors=Anchors(intel=packaged_anchors().nvidia, collateral=intel()),
        now=datetime.fromisoformat(UP_TO_DATE["now"]),
    )

    assert appraisal.code is Code.VERIFIER_FAULT


def test_a_forged_quote_is_still_the_guest_s_fault() -> None:
    forged = CASES["intel-tdx/v4-uptodate-phala/flip-quote-sig"]

    appraisal = judge_by(
        basis(),
        EvidenceKind.INTEL_TDX,
        tdx.write_document(read(forged["quote"])),
        expected=Expected(binding=b""),
        anchors=replace(packaged_anchors(), collateral=intel()),
        now=datetime.fromisoformat(forged["now"]),
    )

    assert appraisal.code is Code.SIGNATURE_INVALID


# --- AMD's --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crl", "code"),
    [
        (None, Code.OK),
        (MILAN.crl(), Code.OK),
        (MILAN.crl(101), Code.REVOKED),
        (MILAN.crl(next_update=NOW - timedelta(days=1)), Code.EXPIRED),
        (MILAN.crl(role="ask"), Code.VERIFIER_FAULT),
        (Platform(product="Genoa").crl(), Code.VERIFIER_FAULT),
        (MILAN.crl().replace(b"\2\1\1", b"\2\1\0", 1), Code.VERIFIER_FAULT),
        (b"no list", Code.VERIFIER_FAULT),
        (b"", Code.VERIFIER_FAULT),
    ],
    ids=[
        *("none", "empty", "ask", "old", "forged", "of another"),
        *("version", "garbage", "nothing"),
    ],
)
def test_only_a_list_that_the_root_signed_accuses_anybody(
    crl: bytes | None, code: Code
) -> None:
    assert judge_snp(crl).code is code


def test_a_verdict_ends_with_the_list_that_it_rests_on() -> None:
    soon = NOW + timedelta(minutes=2)

    appraisal = judge_snp(MILAN.crl(next_update=soon))

    assert appraisal.accepted
    assert appraisal.fresh_until(NOW, timedelta(minutes=5)) == soon


def test_the_list_of_a_product_without_a_root_can_t_be_used() -> None:
    crl = Collateral(name="amd/Turin.crl", content=MILAN.crl())

    appraisal = judge_by(
        basis(),
        EvidenceKind.AMD_SEV_SNP,
        REPORT,
        expected=Expected(binding=REPORT_DATA),
        anchors=replace(MILAN.anchors(), collateral=crl),
        now=NOW,
    )

    assert appraisal.code is Code.VERIFIER_FAULT


# --- kept ---------------------------------------------------------------------------


def a_stored(collateral: Collateral | None, code: Code) -> StoredVerdict:
    return StoredVerdict(
        attestation_id=3,
        instance="vm-1",
        kind=EvidenceKind.INTEL_TDX,
        evidence=QUOTE,
        binding=bytes.fromhex(UP_TO_DATE["policy"]["report_data"]),
        inputs=Inputs(collateral=collateral),
        basis=basis(),
        verified_at=datetime.fromisoformat(UP_TO_DATE["now"]),
        code=code,
        status="trusted",
    )


@pytest.mark.parametrize(
    ("collateral", "code"),
    [
        (intel(), Code.OK),
        (None, Code.VERIFIER_FAULT),
        (Collateral(name=FMSPC, content=b""), Code.VERIFIER_FAULT),
    ],
)
def test_a_stored_verdict_brings_the_collateral_that_it_rests_on(
    collateral: Collateral | None, code: Code
) -> None:
    stored = parse_stored(dump(a_stored(collateral, code)))

    assert judge_again(stored, packaged_anchors()).code is code


def test_a_stored_verdict_with_other_collateral_is_malformed() -> None:
    document = json.loads(dump(a_stored(intel(), Code.OK)))
    document["stored"]["collateral"]["content"] = ""

    with pytest.raises(MalformedError, match="other collateral"):
        parse_stored(json.dumps(document).encode())


def test_a_verdict_that_was_stored_before_there_was_collateral_is_read() -> None:
    document = json.loads(dump(a_stored(None, Code.VERIFIER_FAULT)))
    document["stored"]["schema"] = 1
    del document["stored"]["collateral"]
    del document["stored"]["inputs"]["collateral"]

    assert parse_stored(json.dumps(document).encode()).inputs == Inputs()
