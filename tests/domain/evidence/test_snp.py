"""SEV-SNP reports of every product and version, from a platform of our own."""

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.evidence.snp_platform import (
    MEASUREMENT,
    NOW,
    REPORT_DATA,
    YEAR,
    Platform,
    Versions,
    integer,
)
from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import (
    AppraisalPolicy,
    Kinds,
    SnpPolicy,
    TcbFloor,
)
from trustfabric.domain.evidence import snp
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import Code, EvidenceKind, Reject
from trustfabric.domain.evidence.snp_report import Tcb

MILAN = Platform()
TURIN = Platform(product="Turin")


def judge(
    report: bytes,
    leaf: bytes,
    anchors: Anchors,
    *,
    intermediate: bytes | None = None,
    **policy: Any,
) -> Appraisal:
    document = {
        "kind": "amd-sev-snp",
        "report": base64.b64encode(report).decode(),
        "leaf": base64.b64encode(leaf).decode(),
    }
    if intermediate is not None:
        document["intermediate"] = base64.b64encode(intermediate).decode()
    section = SnpPolicy(**{"measurements": (MEASUREMENT.hex(),), **policy})
    return verify(
        EvidenceKind.AMD_SEV_SNP,
        json.dumps(document).encode(),
        expected=Expected(binding=REPORT_DATA),
        anchors=anchors,
        policy=AppraisalPolicy(id="test", version=1, kinds=Kinds(amd_sev_snp=section)),
        now=NOW,
    )


def of(platform: Platform, **policy: Any) -> Appraisal:
    return judge(platform.report(), platform.leaf(), platform.anchors(), **policy)


@pytest.mark.parametrize("version", [2, 3, 5])
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
def test_every_product_and_version_is_verified(product: str, version: int) -> None:
    platform = Platform(product=product)

    appraisal = judge(
        platform.report(version=version), platform.leaf(), platform.anchors()
    )

    assert appraisal.code is Code.OK, appraisal.notes()
    assert appraisal.claims["reported_tcb"] == (
        f"fmc={1 if product == 'Turin' else 0} bl=10 tee=2 snp=23 ucode=200"
    )


def test_a_chip_id_inside_an_octet_string_is_read() -> None:
    for platform in (MILAN, TURIN):
        leaf = platform.leaf(wrapped=True)

        assert judge(platform.report(), leaf, platform.anchors()).accepted


def test_a_report_of_version_5_may_carry_mitigation_vectors() -> None:
    vectors = {0x1F8: b"\x07" * 16}

    newer = judge(
        MILAN.report(version=5, changes=vectors), MILAN.leaf(), MILAN.anchors()
    )
    older = judge(
        MILAN.report(version=3, changes=vectors), MILAN.leaf(), MILAN.anchors()
    )

    assert (newer.code, older.code) == (Code.OK, Code.MALFORMED)


def test_a_cloud_providers_key_counts_where_the_policy_says_so() -> None:
    report, leaf = MILAN.report(flags=1 << 2), MILAN.leaf(signer="VLEK")

    denied = judge(report, leaf, MILAN.anchors())
    allowed = judge(report, leaf, MILAN.anchors(), vlek="allow")

    assert (denied.code, allowed.code) == (Code.POLICY_VIOLATION, Code.OK)


def test_a_report_for_the_other_sort_of_key_is_refused() -> None:
    appraisal = judge(
        MILAN.report(), MILAN.leaf(signer="VLEK"), MILAN.anchors(), vlek="allow"
    )

    assert appraisal.code is Code.ENDORSEMENT_MISMATCH


@pytest.mark.parametrize("part", ["fmc", "bl", "tee", "snp", "ucode"])
def test_each_component_must_reach_its_floor(part: str) -> None:
    now = {"fmc": 1, "bl": 10, "tee": 2, "snp": 23, "ucode": 200}
    floor = TcbFloor(**now)
    raised = TcbFloor(**now | {part: now[part] + 1})

    assert of(TURIN, min_tcb={"Turin": floor}).code is Code.OK
    assert of(TURIN, min_tcb={"Turin": raised}).code is Code.TCB_OUT_OF_DATE


def test_what_is_committed_must_reach_the_floor_too() -> None:
    report = MILAN.report(committed=Versions(snp=22))

    appraisal = judge(
        report, MILAN.leaf(), MILAN.anchors(), min_tcb={"Milan": TcbFloor(snp=23)}
    )

    assert [check.name for check in appraisal.failures] == ["committed-tcb"]


tcbs = st.builds(Tcb, *[st.integers(0, 3)] * 5)


@given(tcbs, tcbs, tcbs)
def test_reaching_a_tcb_is_a_partial_order(a: Tcb, b: Tcb, c: Tcb) -> None:
    assert a.reaches(a)
    assert not (a.reaches(b) and b.reaches(a)) or a == b
    assert not (a.reaches(b) and b.reaches(c)) or a.reaches(c)


@pytest.mark.parametrize(
    ("policy_bits", "vmpl", "code"),
    [
        (0x3_0000 | 1 << 19, 0, Code.DEBUG_ENABLED),
        (0x3_0000 | 1 << 18, 0, Code.POLICY_VIOLATION),
        (0x1_0000, 0, Code.MALFORMED),
        (0x3_0000 | 1 << 40, 0, Code.UNSUPPORTED),
        (0x3_0000, 1, Code.POLICY_VIOLATION),
        (0x3_0000, 0xFFFF_FFFF, Code.POLICY_VIOLATION),
    ],
)
def test_a_dangerous_configuration_is_refused(
    policy_bits: int, vmpl: int, code: Code
) -> None:
    report = MILAN.report(policy=policy_bits, vmpl=vmpl)

    assert judge(report, MILAN.leaf(), MILAN.anchors()).code is code


@pytest.mark.parametrize("offset", [0x18B, 0x1F8, 0x29F, 0x04C])
def test_reserved_bytes_must_be_zero(offset: int) -> None:
    report = MILAN.report(changes={offset: b"\x01"})

    assert judge(report, MILAN.leaf(), MILAN.anchors()).code is Code.MALFORMED


@pytest.mark.parametrize("offset", [0x2A0 + 48, 0x2E8 + 71, 0x330, 0x49F])
def test_bytes_that_nobody_signs_must_be_zero(offset: int) -> None:
    report = MILAN.report(unsigned={offset: b"\x01"})

    assert judge(report, MILAN.leaf(), MILAN.anchors()).code is Code.MALFORMED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"3.3": integer(24)}, Code.ENDORSEMENT_MISMATCH),
        ({"3.3": None}, Code.MALFORMED),
        ({"4": b"\xc2" * 64}, Code.ENDORSEMENT_MISMATCH),
        ({"4": None}, Code.MALFORMED),
        ({"4": b"\xc1" * 63}, Code.MALFORMED),
        ({"5": b"\x16\x05cloud"}, Code.MALFORMED),
        ({"2": b"\x16\x05Genoa"}, Code.UNSUPPORTED),
    ],
)
def test_a_certificate_about_something_else_is_refused(
    changes: dict[str, bytes | None], code: Code
) -> None:
    leaf = MILAN.leaf(changes=changes)

    assert judge(MILAN.report(), leaf, MILAN.anchors()).code is code


def test_a_processor_of_another_product_is_refused() -> None:
    report = MILAN.report(product="Turin")

    appraisal = judge(report, MILAN.leaf(), MILAN.anchors())

    assert appraisal.code is Code.ENDORSEMENT_MISMATCH


def test_a_root_that_is_not_ours_is_refused() -> None:
    theirs = Platform(authority="attacker", chip_key=MILAN.chip_key)

    appraisal = judge(theirs.report(), theirs.leaf(), MILAN.anchors())

    assert appraisal.code is Code.CHAIN_INVALID


def test_an_intermediate_that_comes_along_is_believed_only_under_our_root() -> None:
    theirs = Platform(authority="attacker", chip_key=MILAN.chip_key)
    forged, real = (
        platform.authority_certificate("ask") for platform in (theirs, MILAN)
    )
    report = MILAN.report()

    assert (
        judge(report, theirs.leaf(), MILAN.anchors(), intermediate=forged).code
        is Code.CHAIN_INVALID
    )
    assert judge(report, MILAN.leaf(), MILAN.anchors(), intermediate=real).accepted


def test_a_leaf_may_not_sign_others() -> None:
    appraisal = judge(
        MILAN.report(), MILAN.leaf(), MILAN.anchors(), intermediate=MILAN.leaf()
    )

    assert appraisal.code is Code.CHAIN_INVALID


@pytest.mark.parametrize(
    ("crl", "code"),
    [
        (None, Code.OK),
        (MILAN.crl(), Code.OK),
        (MILAN.crl(7), Code.OK),
        (MILAN.crl(101), Code.REVOKED),
        (MILAN.crl(102), Code.OK),
        (MILAN.crl(next_update=NOW - timedelta(days=1)), Code.EXPIRED),
        (MILAN.crl(role="ask"), Code.CHAIN_INVALID),
        (b"no list", Code.MALFORMED),
    ],
    ids=["none", "empty", "other", "ask", "asvk", "old", "forged", "garbage"],
)
def test_revocation(crl: bytes | None, code: Code) -> None:
    assert judge(MILAN.report(), MILAN.leaf(), MILAN.anchors(crl)).code is code


def test_a_policy_may_insist_on_a_revocation_list() -> None:
    with_list = judge(
        MILAN.report(), MILAN.leaf(), MILAN.anchors(MILAN.crl()), require_crl=True
    )

    assert of(MILAN, require_crl=True).code is Code.EXPIRED
    assert with_list.accepted
    assert with_list.endorsed_until == NOW + YEAR


def test_a_certificate_may_be_a_minute_out_of_date_but_no_more() -> None:
    report, anchors = MILAN.report(), MILAN.anchors()

    just = judge(report, MILAN.leaf(after=timedelta(seconds=-50)), anchors)
    past = judge(report, MILAN.leaf(after=timedelta(seconds=-70)), anchors)

    assert (just.code, past.code) == (Code.OK, Code.EXPIRED)


def test_a_chain_that_is_remembered_still_runs_out_and_is_still_revoked() -> None:
    report, leaf = MILAN.report(), MILAN.leaf(after=timedelta(hours=1))
    evidence = snp.parse(report, leaf)

    def code(anchors: Anchors, **later: float) -> Code | None:
        try:
            snp.authenticate(evidence, anchors, NOW + timedelta(**later))
        except Reject as reject:
            return reject.code
        return None

    assert code(MILAN.anchors()) is None
    assert code(MILAN.anchors(), hours=2) is Code.EXPIRED
    assert code(MILAN.anchors(MILAN.crl(101))) is Code.REVOKED
    assert code(Platform(authority="attacker").anchors()) is Code.CHAIN_INVALID
    assert code(MILAN.anchors()) is None


def test_a_chain_that_failed_is_not_remembered_as_good() -> None:
    theirs = Platform(authority="attacker", chip_key=MILAN.chip_key)
    codes = [
        judge(theirs.report(), theirs.leaf(), MILAN.anchors()).code for _ in range(3)
    ]

    assert codes == [Code.CHAIN_INVALID] * 3


def test_the_verdict_ends_with_the_first_of_its_certificates() -> None:
    leaf = MILAN.leaf(after=timedelta(hours=1))

    appraisal = judge(MILAN.report(), leaf, MILAN.anchors())

    assert appraisal.endorsed_until == NOW + timedelta(hours=1)
    assert appraisal.fresh_until(NOW, timedelta(days=1)) == NOW + timedelta(hours=1)


floors = st.builds(TcbFloor, **dict.fromkeys(("bl", "tee", "snp"), st.integers(0, 30)))
policies = st.fixed_dictionaries(
    {
        "max_vmpl": st.integers(0, 3),
        "allow_debug": st.booleans(),
        "allow_migrate": st.booleans(),
        "vlek": st.sampled_from(["allow", "deny"]),
        "require_crl": st.booleans(),
        "measurements": st.sampled_from([(MEASUREMENT.hex(),), ("00" * 48,)]),
        "min_tcb": st.builds(lambda floor: {"Milan": floor}, floors),
    }
)


def stricter(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what allows only what both do."""
    floor, further = one["min_tcb"]["Milan"], other["min_tcb"]["Milan"]
    return {
        "max_vmpl": min(one["max_vmpl"], other["max_vmpl"]),
        "allow_debug": one["allow_debug"] and other["allow_debug"],
        "allow_migrate": one["allow_migrate"] and other["allow_migrate"],
        "vlek": "deny" if "deny" in (one["vlek"], other["vlek"]) else "allow",
        "require_crl": one["require_crl"] or other["require_crl"],
        "measurements": one["measurements"]
        if one["measurements"] == other["measurements"]
        else ("00" * 48,),
        "min_tcb": {
            "Milan": TcbFloor(
                **{
                    part: max(getattr(floor, part), getattr(further, part))
                    for part in ("bl", "tee", "snp")
                }
            )
        },
    }


@given(policies, policies, st.integers(0, 3), st.booleans(), st.booleans())
def test_a_stricter_policy_never_accepts_more(
    one: dict[str, Any],
    other: dict[str, Any],
    vmpl: int,
    debug: bool,  # noqa: FBT001 - hypothesis draws it
    listed: bool,  # noqa: FBT001
) -> None:
    report = MILAN.report(vmpl=vmpl, policy=0x3_0000 | debug << 19)
    anchors = MILAN.anchors(MILAN.crl() if listed else None)

    def accepts(policy: dict[str, Any]) -> bool:
        return judge(report, MILAN.leaf(), anchors, **policy).accepted

    if accepts(stricter(one, other)):
        assert accepts(one)
        assert accepts(other)
