"""TDX quotes: what dcap-qvl says, and what we make of it."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import dcap_qvl
import pytest

from tests.domain.test_attestation_vectors import CASES, read
from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.checks import Judged
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import AppraisalPolicy, Kinds, TdxPolicy
from trustfabric.domain.attestation.references import (
    ReferenceSet,
    settle,
    with_references,
)
from trustfabric.domain.attestation.versions import State
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import Code, EvidenceKind
from trustfabric.domain.evidence.packaged import packaged_anchors
from trustfabric.domain.evidence.tdx import _CAUSES
from trustfabric.domain.trust import AttestationStatus

UP_TO_DATE = CASES["intel-tdx/v4-uptodate-phala/good"]
OUT_OF_DATE = CASES["intel-tdx/v4-outofdate-automata/good"]
ADVISORIES = ("INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986")


def judge(
    case: dict[str, Any],
    *,
    quote: bytes | None = None,
    anchors: Anchors | None = None,
    **policy: Any,
) -> Appraisal:
    if anchors is None:
        anchors = Anchors(
            intel=packaged_anchors().intel, intel_collateral=read(case["collateral"])
        )
    raw = read(case["quote"]) if quote is None else quote
    section = TdxPolicy(**{"mrtd": tuple(case["policy"]["mrtd"]), **policy})
    document = {"kind": "intel-tdx", "quote": base64.b64encode(raw).decode()}
    return verify(
        EvidenceKind.INTEL_TDX,
        json.dumps(document).encode(),
        expected=Expected(binding=bytes.fromhex(case["policy"]["report_data"])),
        anchors=anchors,
        policy=AppraisalPolicy(id="test", version=1, kinds=Kinds(intel_tdx=section)),
        now=datetime.fromisoformat(case["now"]),
    )


def test_a_quote_is_verified_until_its_collateral_runs_out() -> None:
    appraisal = judge(UP_TO_DATE)

    assert appraisal.code is Code.OK
    assert appraisal.endorsed_until == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)
    assert appraisal.claims["mrtd"] == UP_TO_DATE["policy"]["mrtd"][0]


def test_what_the_guest_measured_is_compared_where_the_policy_names_it() -> None:
    rtmrs = cast("list[str]", judge(UP_TO_DATE).claims["rtmrs"])
    assert len(rtmrs) == 4

    good = judge(UP_TO_DATE, rtmrs={1: ("ab" * 48, rtmrs[1]), 2: (rtmrs[2],)})
    bad = judge(UP_TO_DATE, rtmrs={1: (rtmrs[1],), 2: ("ab" * 48,)})

    assert good.code is Code.OK
    assert bad.code is Code.MEASUREMENT_UNKNOWN
    assert [check.name for check in bad.failures] == ["rtmr-2"]


def test_no_value_for_a_register_of_the_guest_is_no_verdict() -> None:
    assert judge(UP_TO_DATE, rtmrs={1: ()}).code is Code.NO_REFERENCE_VALUES


@pytest.mark.parametrize("state", [State.ACTIVE, State.REVOKED])
def test_a_set_s_register_is_looked_up_by_its_state(state: State) -> None:
    appraisal = judge(UP_TO_DATE)
    value = cast("list[str]", appraisal.claims["rtmrs"])[1]
    one = ReferenceSet(
        id=1,
        name="kernels",
        number=1,
        state=state,
        until=None,
        kind=EvidenceKind.INTEL_TDX,
        values={"rtmr-1": (value,)},
    )
    before = AppraisalPolicy(id="test", version=1)

    joined = with_references(before, EvidenceKind.INTEL_TDX, [one])
    judged = judge(UP_TO_DATE, rtmrs=joined.kinds.intel_tdx.rtmrs)
    (told,) = [check for check in judged.checks if check.name == "rtmr-1"]
    settled = settle(
        Judged(authenticated=cast("Any", None), checks=judged.checks, claims={}),
        before,
        EvidenceKind.INTEL_TDX,
        [one],
        datetime(2025, 7, 1, tzinfo=UTC),
    )

    assert told.passed
    (after,) = [check for check in settled.judged.checks if check.name == "rtmr-1"]
    assert after.passed is (state is State.ACTIVE)


def test_an_older_platform_is_accepted_with_a_warning_where_allowed() -> None:
    appraisal = judge(OUT_OF_DATE, allow_status=("UpToDate", "OutOfDate"))

    assert appraisal.code is Code.OK_WITH_ADVISORIES
    assert appraisal.tier.value == "warning"
    assert appraisal.advisories == ("OutOfDate", *ADVISORIES)


def test_each_advisory_must_be_accepted_where_the_policy_lists_them() -> None:
    statuses = ("UpToDate", "OutOfDate")

    some = judge(OUT_OF_DATE, allow_status=statuses, accept_advisories=ADVISORIES[:2])
    every = judge(OUT_OF_DATE, allow_status=statuses, accept_advisories=ADVISORIES)

    assert (some.code, every.accepted) == (Code.TCB_OUT_OF_DATE, True)


def test_a_grace_date_holds_until_it_comes() -> None:
    now = datetime.fromisoformat(OUT_OF_DATE["now"])

    before = judge(OUT_OF_DATE, grace_until=now + timedelta(seconds=1))
    after = judge(OUT_OF_DATE, grace_until=now)

    assert (before.code, after.code) == (Code.OK_WITH_ADVISORIES, Code.TCB_OUT_OF_DATE)


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {
            "allow_status": ("UpToDate", "OutOfDate"),
            "accept_advisories": ADVISORIES[:2],
        },
    ],
    ids=["status", "advisories"],
)
def test_a_verdict_that_only_a_grace_allows_ends_with_it(policy: Any) -> None:
    now = datetime.fromisoformat(OUT_OF_DATE["now"])
    soon = now + timedelta(seconds=90)

    appraisal = judge(OUT_OF_DATE, grace_until=soon, **policy)

    assert appraisal.code is Code.OK_WITH_ADVISORIES
    assert appraisal.fresh_until(now, timedelta(minutes=5)) == soon
    assert appraisal.advisories[-1] == f"in grace until {soon.isoformat()}"


def test_what_needs_no_grace_does_not_end_with_it() -> None:
    now = datetime.fromisoformat(UP_TO_DATE["now"])

    appraisal = judge(UP_TO_DATE, grace_until=now + timedelta(seconds=90))

    assert appraisal.code is Code.OK
    assert appraisal.endorsed_until == datetime(2025, 7, 19, 10, 0, 35, tzinfo=UTC)


def test_a_grace_that_is_longer_than_the_collateral_extends_nothing() -> None:
    now = datetime.fromisoformat(OUT_OF_DATE["now"])

    appraisal = judge(OUT_OF_DATE, grace_until=now + timedelta(days=900))

    assert appraisal.endorsed_until == datetime(2025, 8, 6, 9, 6, 43, tzinfo=UTC)


def test_collateral_of_an_older_evaluation_gives_no_verdict() -> None:
    appraisal = judge(UP_TO_DATE, min_eval=18)

    assert appraisal.status is AttestationStatus.UNKNOWN


@pytest.mark.parametrize(
    "anchors",
    [
        Anchors(),
        Anchors(intel=packaged_anchors().intel),
        Anchors(intel=packaged_anchors().intel, intel_collateral=b"{}"),
        Anchors(intel=packaged_anchors().intel, intel_collateral=b"\xff"),
        Anchors(intel=packaged_anchors().intel, intel_collateral=b" " * 300_000),
    ],
    ids=range(5),
)
def test_what_we_lack_is_not_the_guests_fault(anchors: Anchors) -> None:
    assert judge(UP_TO_DATE, anchors=anchors).code is Code.VERIFIER_FAULT


def test_another_root_is_refused() -> None:
    anchors = Anchors(
        intel=packaged_anchors().nvidia, intel_collateral=read(UP_TO_DATE["collateral"])
    )

    assert judge(UP_TO_DATE, anchors=anchors).code is Code.CHAIN_INVALID


def test_padding_changes_neither_the_verdict_nor_the_identity() -> None:
    padded = judge(UP_TO_DATE, quote=read(UP_TO_DATE["quote"]) + bytes(100))

    assert padded.accepted
    assert padded.region_sha256 == judge(UP_TO_DATE).region_sha256


def test_the_quote_of_an_enclave_is_unsupported() -> None:
    quote = bytearray(read(UP_TO_DATE["quote"]))
    quote[4:8] = bytes(4)

    assert not judge(UP_TO_DATE, quote=bytes(quote)).accepted


@pytest.mark.parametrize(
    "sentence", [sentence for _, sentences in _CAUSES for sentence in sentences]
)
def test_the_library_still_says_it_so(sentence: str) -> None:
    folder = Path(dcap_qvl.__file__).parent

    assert any(sentence.encode() in so.read_bytes() for so in folder.glob("*.so"))
