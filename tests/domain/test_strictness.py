"""A stricter policy never accepts more, whatever the evidence is."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.evidence.snp_platform import (
    MEASUREMENT,
    NOW,
    REPORT_DATA,
    Platform,
    Versions,
)
from tests.domain.evidence.tpm_quotes import NONCE, FakeTpm
from trustfabric.domain.attestation.appraisal import Expected
from trustfabric.domain.attestation.basis import Basis, Rule, judge_by
from trustfabric.domain.attestation.policy import (
    AppraisalPolicy,
    Kinds,
    SnpPolicy,
    TcbFloor,
    TpmPolicy,
)
from trustfabric.domain.attestation.references import ReferenceSet
from trustfabric.domain.attestation.versions import State
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.evidence.snp import write_document as write_snp
from trustfabric.domain.evidence.tpm2 import write_document as write_tpm

MILAN = Platform()
TPM = FakeTpm(key=ec.generate_private_key(ec.SECP256R1()))
VALUES = tuple(bytes([number]) * 32 for number in range(3))
DIGESTS = (MEASUREMENT.hex(), "11" * 48, "22" * 48)
DEBUG, MIGRATE = 1 << 19, 1 << 18
PRODUCTS = ("Milan", "Genoa", "Turin")

# --- evidence -----------------------------------------------------------------------


@cache
def a_report(*, debug: bool, migrate: bool, vmpl: int, committed: int) -> bytes:
    policy = 0x3_0000 | DEBUG * debug | MIGRATE * migrate
    report = MILAN.report(policy=policy, vmpl=vmpl, committed=Versions(ucode=committed))
    return write_snp(report, MILAN.leaf())


reports = st.builds(
    a_report,
    debug=st.booleans(),
    migrate=st.booleans(),
    vmpl=st.integers(0, 3),
    committed=st.sampled_from([100, 200]),
)


@cache
def a_quote(value: bytes, bank: str) -> bytes:
    pcrs = {0: VALUES[0], 7: value}
    attest = TPM.attest(pcrs, bank=bank)
    return write_tpm(attest, TPM.sign(attest), {bank: pcrs})


quotes = st.builds(a_quote, st.sampled_from(VALUES), st.just("sha256"))
endorsers = st.sampled_from(["maker", "swtpm"])

# --- policies and their tightening --------------------------------------------------


def subset(values: tuple[Any, ...]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Some of them, at least one: without any, the check would be another."""
    return st.lists(st.sampled_from(values), min_size=1, unique=True).map(tuple)


@st.composite
def two_snp(draw: st.DrawFn) -> tuple[SnpPolicy, SnpPolicy]:
    """A policy, and one that is at least as strict in each of its members."""
    debug, migrate, crl = (draw(st.booleans()) for _ in range(3))
    floor = draw(st.integers(0, 255))
    vmpl = draw(st.integers(0, 3))
    products, digests = draw(subset(PRODUCTS)), draw(subset(DIGESTS))
    loose = SnpPolicy(
        products=products,
        max_vmpl=vmpl,
        allow_debug=debug,
        allow_migrate=migrate,
        vlek=draw(st.sampled_from(["allow", "deny"])),
        min_tcb={"Milan": TcbFloor(ucode=floor)},
        require_crl=crl,
        measurements=digests,
    )
    strict = SnpPolicy(
        products=draw(subset(products)),
        max_vmpl=draw(st.integers(0, vmpl)),
        allow_debug=debug and draw(st.booleans()),
        allow_migrate=migrate and draw(st.booleans()),
        vlek="deny"
        if loose.vlek == "deny"
        else draw(st.sampled_from(["allow", "deny"])),
        min_tcb={"Milan": TcbFloor(ucode=draw(st.integers(floor, 255)))},
        require_crl=crl or draw(st.booleans()),
        measurements=draw(subset(digests)),
    )
    return loose, strict


@st.composite
def two_tpm(draw: st.DrawFn) -> tuple[TpmPolicy, TpmPolicy]:
    allowed: Mapping[int, tuple[str, ...]] = {
        index: draw(subset(tuple(value.hex() for value in VALUES)))
        for index in draw(st.sets(st.sampled_from([0, 7]), min_size=1))
    }
    least = draw(st.integers(0, 40))
    software = draw(st.sampled_from([(), ("swtpm",)]))
    required = draw(st.sets(st.sampled_from([0, 7, 9])))
    hashes = draw(subset(("sha256", "sha384")))
    loose = TpmPolicy(
        hashes=hashes,
        min_nonce=least,
        required_pcrs=tuple(required),
        pcrs=allowed,
        allow_software=software,
    )
    more = draw(st.sets(st.sampled_from([0, 7, 9])))
    strict = TpmPolicy(
        hashes=draw(subset(hashes)),
        min_nonce=draw(st.integers(least, 64)),
        required_pcrs=tuple(required | more),
        pcrs={index: draw(subset(values)) for index, values in allowed.items()}
        | ({0: (VALUES[0].hex(),)} if 0 not in allowed and draw(st.booleans()) else {}),
        allow_software=software if draw(st.booleans()) else (),
    )
    return loose, strict


def accepts(
    kind: EvidenceKind,
    evidence: bytes,
    kinds: Kinds,
    *,
    anchors: Anchors,
    sets: tuple[ReferenceSet, ...] = (),
    now: datetime = NOW,
) -> bool:
    policy = AppraisalPolicy(id="x", version=1, kinds=kinds)
    return judge_by(
        Basis(rules=(Rule(policy=policy),), references=sets),
        kind,
        evidence,
        expected=Expected(binding=NONCE if kind is EvidenceKind.TPM else REPORT_DATA),
        anchors=anchors,
        now=now,
    ).accepted


@cache
def milan_anchors() -> Anchors:
    return MILAN.anchors()


@given(reports, two_snp())
def test_a_stricter_policy_accepts_no_more_reports(
    report: bytes, policies: tuple[SnpPolicy, SnpPolicy]
) -> None:
    loose, strict = (
        accepts(
            EvidenceKind.AMD_SEV_SNP,
            report,
            Kinds(amd_sev_snp=policy),
            anchors=milan_anchors(),
        )
        for policy in policies
    )

    assert loose or not strict


@given(quotes, endorsers, two_tpm())
def test_a_stricter_policy_accepts_no_more_quotes(
    quote: bytes, endorser: str, policies: tuple[TpmPolicy, TpmPolicy]
) -> None:
    anchors = Anchors(keys=(TPM.enrolled(endorser),))
    loose, strict = (
        accepts(EvidenceKind.TPM, quote, Kinds(tpm=policy), anchors=anchors)
        for policy in policies
    )

    assert loose or not strict


# --- sets ---------------------------------------------------------------------------

STATES = st.sampled_from([State.ACTIVE, State.DEPRECATED, State.REVOKED])
HOURS = st.integers(-2, 2)
START = datetime(2026, 11, 22, 12, tzinfo=UTC)


@st.composite
def some_sets(draw: st.DrawFn) -> tuple[ReferenceSet, ...]:
    sets = []
    for number in range(draw(st.integers(1, 4))):
        state = draw(STATES)
        until = START + timedelta(hours=draw(HOURS))
        sets.append(
            ReferenceSet(
                id=number,
                name="set",
                number=number + 1,
                state=state,
                until=until if state is State.DEPRECATED else None,
                kind=EvidenceKind.TPM,
                values={"pcr-7": draw(subset(tuple(v.hex() for v in VALUES)))},
            )
        )
    return tuple(sets)


@given(quotes, some_sets(), st.integers(0, 3), HOURS)
def test_ending_a_set_accepts_no_more(
    quote: bytes, sets: tuple[ReferenceSet, ...], which: int, hours: int
) -> None:
    """Deprecated where it was active, revoked where it was anything, time going on."""
    at = which % len(sets)
    order = (State.ACTIVE, State.DEPRECATED, State.REVOKED)
    worse = order[min(order.index(sets[at].state) + 1, 2)]
    until = START + timedelta(hours=hours) if worse is State.DEPRECATED else None
    ended = replace(sets[at], state=worse, until=until)
    anchors = Anchors(keys=(TPM.enrolled(),))

    before, after = (
        accepts(
            EvidenceKind.TPM,
            quote,
            Kinds(),
            anchors=anchors,
            sets=each,
            now=START,
        )
        for each in (sets, (*sets[:at], ended, *sets[at + 1 :]))
    )

    assert before or not after
