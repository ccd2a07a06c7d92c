"""Reference values in versions, policies that overlap, and verdicts judged again."""

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.evidence.tpm_quotes import NONCE, FakeTpm
from trustfabric.domain.attestation.appraisal import Expected
from trustfabric.domain.attestation.basis import Basis, Rule, judge_by
from trustfabric.domain.attestation.model import Appraisal, Code
from trustfabric.domain.attestation.policy import (
    AppraisalPolicy,
    Kinds,
    TpmPolicy,
    parse_policy,
)
from trustfabric.domain.attestation.provenance import (
    MAX_DOCUMENT,
    Exchange,
    canonical,
    provenance,
)
from trustfabric.domain.attestation.references import (
    MOST_VALUES,
    ReferenceSet,
    parse_references,
)
from trustfabric.domain.attestation.rehearsal import rehearse, with_proposal
from trustfabric.domain.attestation.rules import read_policy
from trustfabric.domain.attestation.stored import (
    Inputs,
    StoredVerdict,
    dump,
    judge_again,
    parse_stored,
    verdict_view,
)
from trustfabric.domain.attestation.versions import (
    EVERYBODY,
    Noun,
    Scope,
    State,
    Version,
    moved,
)
from trustfabric.domain.evidence.anchors import NO_ANCHORS, Anchors
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.evidence.tpm2 import write_document
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.trust import AttestationStatus
from trustfabric.errors import ConflictError, InvalidError, MalformedError

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATER = NOON + timedelta(days=1)
GOOD, OTHER, BAD = (bytes([number]) * 32 for number in (1, 2, 3))
TPM = FakeTpm(key=ec.generate_private_key(ec.SECP256R1()))
KEY = TPM.enrolled()


def quoted(value: bytes = GOOD, nonce: bytes = NONCE) -> bytes:
    attest = TPM.attest({0: GOOD, 7: value}, nonce=nonce)
    return write_document(attest, TPM.sign(attest), {"sha256": {0: GOOD, 7: value}})


def a_set(
    *values: bytes,
    state: State = State.ACTIVE,
    until: datetime | None = None,
    number: int = 1,
) -> ReferenceSet:
    return ReferenceSet(
        id=number,
        name="images",
        number=number,
        state=state,
        until=until,
        kind=EvidenceKind.TPM,
        values={"pcr-7": tuple(value.hex() for value in values)},
    )


def a_rule(
    version: int = 1,
    until: datetime | None = None,
    scope: Scope = EVERYBODY,
    **tpm: Any,
) -> Rule:
    kinds = Kinds(tpm=TpmPolicy(**tpm))
    policy = AppraisalPolicy(id="prod", version=version, kinds=kinds)
    return Rule(policy=policy, until=until, scope=scope)


def judged(
    *sets: ReferenceSet,
    rules: tuple[Rule, ...] = (),
    evidence: bytes | None = None,
    now: datetime = NOON,
) -> Appraisal:
    return judge_by(
        Basis(rules=rules or (a_rule(),), references=sets),
        EvidenceKind.TPM,
        quoted() if evidence is None else evidence,
        expected=Expected(binding=NONCE),
        anchors=Anchors(keys=(KEY,)),
        now=now,
    )


# --- sets ---------------------------------------------------------------------------


def test_without_any_set_there_is_no_verdict() -> None:
    assert judged().code is Code.NO_REFERENCE_VALUES


def test_a_value_of_an_active_set_is_trusted() -> None:
    appraisal = judged(a_set(OTHER, GOOD, number=4))

    assert appraisal.code is Code.OK
    assert appraisal.references == (
        {"id": 4, "name": "images", "version": 4, "state": "active", "check": "pcr-7"},
    )


def test_another_value_is_unknown() -> None:
    appraisal = judged(a_set(OTHER))

    assert appraisal.code is Code.MEASUREMENT_UNKNOWN
    assert appraisal.failures[0].expected == OTHER.hex()
    assert appraisal.failures[0].actual == GOOD.hex()


def test_two_active_sets_are_one_list() -> None:
    assert judged(a_set(OTHER), a_set(GOOD, number=2)).code is Code.OK


def test_a_deprecated_value_is_trusted_with_a_warning_until_its_date() -> None:
    appraisal = judged(a_set(GOOD, state=State.DEPRECATED, until=LATER))

    assert appraisal.code is Code.OK_WITH_ADVISORIES
    assert "deprecated until" in appraisal.advisories[0]
    assert appraisal.fresh_until(NOON, timedelta(days=9)) == LATER


def test_deprecated_past_its_date_counts_as_not_there() -> None:
    over = a_set(GOOD, state=State.DEPRECATED, until=NOON)

    assert judged(over).code is Code.MEASUREMENT_UNKNOWN
    assert judged(over, a_set(OTHER, number=2)).code is Code.MEASUREMENT_UNKNOWN


def test_a_value_that_an_active_set_has_too_is_not_deprecated() -> None:
    old = a_set(GOOD, state=State.DEPRECATED, until=LATER)

    appraisal = judged(old, a_set(GOOD, number=2))

    assert appraisal.code is Code.OK
    assert appraisal.endorsed_until is None


def test_the_deprecated_set_that_lasts_longest_carries_a_value() -> None:
    soon = a_set(GOOD, state=State.DEPRECATED, until=NOON + timedelta(hours=1))
    late = a_set(GOOD, state=State.DEPRECATED, until=LATER, number=2)

    assert judged(soon, late).endorsed_until == LATER


@pytest.mark.parametrize("own", [(), (GOOD.hex(),)])
def test_a_revoked_value_is_refused_whoever_allows_it(own: tuple[str, ...]) -> None:
    revoked = a_set(GOOD, state=State.REVOKED)
    rule = a_rule(pcrs={7: own} if own else {})

    appraisal = judged(revoked, a_set(GOOD, number=2), rules=(rule,))

    assert appraisal.status is AttestationStatus.UNTRUSTED
    assert "revoked" in appraisal.failures[0].expected


def test_sets_add_to_what_the_policy_allows() -> None:
    rule = a_rule(pcrs={7: (GOOD.hex(),)})

    assert judged(a_set(OTHER), rules=(rule,)).code is Code.OK
    assert judged(a_set(OTHER), rules=(rule,), evidence=quoted(OTHER)).code is Code.OK
    assert (
        judged(a_set(OTHER), rules=(rule,), evidence=quoted(BAD)).code
        is Code.MEASUREMENT_UNKNOWN
    )


def test_as_many_sets_count_as_there_may_be() -> None:
    sets = [
        a_set(
            *(number.to_bytes(4, "big") * 8 for number in range(first, first + 1024)),
            number=first,
        )
        for first in range(1024, 9 * 1024, 1024)
    ]

    assert judged(a_set(GOOD), *sets).code is Code.OK
    failed = judged(*sets)
    assert failed.code is Code.MEASUREMENT_UNKNOWN
    assert failed.failures[0].expected.endswith(f" or {8 * 1024 - 16} more")
    assert len(failed.notes()[0]) < 2048


def test_a_set_of_another_kind_is_none_of_its() -> None:
    other = replace(a_set(GOOD), kind=EvidenceKind.NVIDIA_GPU)

    assert judged(other).code is Code.NO_REFERENCE_VALUES


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ({"values": {"pcr-0": [GOOD.hex()]}}, "kind"),
        ({"kind": "tpm", "values": {}}, "values"),
        ({"kind": "tpm", "values": {"pcr-0": []}}, "no value"),
        ({"kind": "tpm", "values": {"mrtd": [GOOD.hex()]}}, "no such check"),
        ({"kind": "tpm", "values": {"pcr-07": [GOOD.hex()]}}, "no such check"),
        (
            {"kind": "nvidia-gpu", "values": {"measurement-009": [GOOD.hex()]}},
            "no such check",
        ),
        (
            {"kind": "composite-azure-vtpm", "values": {"pcr-07": [GOOD.hex()]}},
            "no such check",
        ),
        ({"kind": "tpm", "values": {"pcr-16": [GOOD.hex()]}}, "reset by the guest"),
        ({"kind": "tpm", "values": {"pcr-77": [GOOD.hex()]}}, "77"),
        ({"kind": "tpm", "values": {"pcr-0": ["zz" * 32]}}, "hex"),
        ({"kind": "ear", "values": {"pcr-0": [GOOD.hex()]}}, "no reference values"),
        ({"kind": "tpm", "values": {"pcr-0": [GOOD.hex()]}, "x": 1}, "x"),
        (
            {"kind": "tpm", "values": {"pcr-0": [f"{n:064x}" for n in range(1025)]}},
            f"more than {MOST_VALUES}",
        ),
    ],
)
def test_a_set_that_can_t_be_used_is_refused_by_its_place(
    document: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InvalidError, match=fault):
        parse_references(document)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("amd-sev-snp", "measurement", "ab" * 48),
        ("intel-tdx", "mrtd", "ab" * 48),
        ("intel-tdx", "rtmr-3", "ab" * 48),
        ("tpm", "pcr-7", "ab" * 32),
        ("nvidia-gpu", "measurement-9", "ab" * 48),
        ("composite-azure-vtpm", "measurement", "ab" * 48),
        ("composite-azure-vtpm", "mrtd", "ab" * 48),
        ("composite-azure-vtpm", "rtmr-0", "ab" * 48),
        ("composite-azure-vtpm", "pcr-4", "ab" * 32),
    ],
)
def test_every_kind_that_measures_has_reference_values(
    kind: str, name: str, value: str
) -> None:
    assert parse_references({"kind": kind, "values": {name: [value]}}).values == {
        name: (value,)
    }


# --- policies that overlap ----------------------------------------------------------


def test_what_only_a_deprecated_policy_accepts_is_trusted_with_a_warning() -> None:
    strict = a_rule(2, pcrs={7: (OTHER.hex(),)})
    old = a_rule(1, until=LATER, pcrs={7: (GOOD.hex(),)})

    appraisal = judged(rules=(strict, old))

    assert appraisal.code is Code.OK_WITH_ADVISORIES
    assert appraisal.policy_version == 1
    assert appraisal.endorsed_until == LATER


@pytest.mark.parametrize(("newest", "older"), [(300, 20), (20, 300)])
def test_what_a_deprecated_policy_accepts_counts_no_longer_than_either_lets_it(
    newest: int, older: int
) -> None:
    strict = a_rule(2, pcrs={7: (OTHER.hex(),)})
    old = a_rule(1, until=LATER, pcrs={7: (GOOD.hex(),)})
    rules = tuple(
        replace(rule, policy=rule.policy.model_copy(update={"max_age_s": seconds}))
        for rule, seconds in ((strict, newest), (old, older))
    )

    assert Basis(rules=rules).max_age_s(judged(rules=rules)) == 20


def test_what_no_policy_accepts_failed_under_the_newest() -> None:
    rules = tuple(a_rule(number, pcrs={7: (BAD.hex(),)}) for number in (3, 2, 1))

    assert judged(rules=rules).policy_version == 3


def test_an_older_policy_doesn_t_save_what_nobody_could_authenticate() -> None:
    forged = quoted().replace(b'"attest":"/1', b'"attest":"/2')

    appraisal = judged(rules=(a_rule(2), a_rule(1, measured=False)), evidence=forged)

    assert appraisal.status is AttestationStatus.UNTRUSTED
    assert appraisal.policy_version == 2


@pytest.mark.parametrize("member", ["id", "version"])
def test_a_policy_s_name_and_number_are_not_its_own_to_say(member: str) -> None:
    with pytest.raises(InvalidError, match=member):
        read_policy("prod", 3, {member: 1})


# --- versions -----------------------------------------------------------------------


def a_version(state: State = State.STAGED, **changes: Any) -> Version:
    version = Version(
        id=5,
        noun=Noun.POLICIES,
        name="prod",
        number=2,
        scope=EVERYBODY,
        state=state,
        deprecated_until=LATER if state is State.DEPRECATED else None,
        document={},
        note=None,
        created_by="user:1",
        version=1,
        created_at=NOON,
        updated_at=NOON,
    )
    return replace(version, **changes)


LEGAL = {
    (State.STAGED, State.ACTIVE),
    (State.STAGED, State.REVOKED),
    (State.ACTIVE, State.DEPRECATED),
    (State.ACTIVE, State.REVOKED),
    (State.DEPRECATED, State.ACTIVE),
    (State.DEPRECATED, State.DEPRECATED),
    (State.DEPRECATED, State.REVOKED),
}


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_a_version_moves_as_the_states_allow(before: State, after: State) -> None:
    if (before, after) not in LEGAL:
        with pytest.raises(ConflictError):
            moved(a_version(before), after, LATER)
        return

    assert moved(a_version(before), after, LATER).state is after


def test_a_deprecation_needs_a_date() -> None:
    with pytest.raises(InvalidError, match="until"):
        moved(a_version(State.ACTIVE), State.DEPRECATED)


def test_deprecated_is_in_force_until_its_date() -> None:
    version = a_version(State.DEPRECATED)

    assert version.in_force(LATER - timedelta(seconds=1))
    assert not version.in_force(LATER)


# --- judged again -------------------------------------------------------------------


def a_stored(value: bytes = GOOD) -> StoredVerdict:
    basis = Basis(
        rules=(a_rule(2), a_rule(1, until=LATER)),
        references=(
            a_set(GOOD, state=State.DEPRECATED, until=LATER),
            a_set(BAD, state=State.REVOKED, number=2),
        ),
    )
    return StoredVerdict(
        attestation_id=17,
        instance="vm-1",
        kind=EvidenceKind.TPM,
        evidence=quoted(value),
        binding=NONCE,
        inputs=Inputs(keys=(KEY,)),
        basis=basis,
        verified_at=NOON,
        code="ok-with-advisories",
        status="trusted",
    )


def test_a_stored_verdict_is_come_to_again_from_its_document() -> None:
    read = parse_stored(dump(a_stored()))

    again = judge_again(read, NO_ANCHORS)

    assert verdict_view(read, again)["agrees"] is True
    assert again.accepted


def test_the_document_of_a_basis_is_all_of_it() -> None:
    basis = a_stored().basis

    read = Basis.from_document(json.loads(json.dumps(basis.document())))

    assert read == basis
    assert read.canonical() == basis.canonical()


def test_evidence_that_was_exchanged_doesn_t_agree() -> None:
    stored = a_stored()
    forged = replace(stored, evidence=quoted(nonce=b"\1" * 32))

    view = verdict_view(forged, judge_again(forged, NO_ANCHORS))

    assert view["agrees"] is False
    assert view["accept"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 3},
        {"kind": "unheard-of"},
        {"evidence": "***"},
        {"binding": "xyz"},
        {"inputs": {}},
        {"basis": {"policies": [], "references": []}},
        {"basis": {"policies": [{}], "references": []}},
        {"verified_at": "noon"},
        {"verified_at": None},
    ],
)
def test_a_document_that_is_no_stored_verdict_is_refused(
    change: dict[str, Any],
) -> None:
    document = json.loads(dump(a_stored()))
    document["stored"] |= change

    with pytest.raises(MalformedError):
        parse_stored(json.dumps(document).encode())


def test_s13_a_number_too_large_to_be_one_is_refused() -> None:
    document = dump(a_stored()).replace(
        b'"attestation_id": 17', b'"attestation_id": 1e400'
    )

    with pytest.raises(MalformedError, match="too large a number"):
        parse_stored(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.data())
def test_a_document_with_anything_in_it_is_read_or_refused(data: st.DataObject) -> None:
    document = json.loads(dump(a_stored()))
    inner: Any = document
    while isinstance(inner, dict | list) and inner:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(inner[key], dict | list) or data.draw(st.booleans()):
            inner[key] = data.draw(JSON)
            break
        inner = inner[key]

    with suppress(MalformedError):
        judge_again(parse_stored(json.dumps(document).encode()), NO_ANCHORS)


@given(st.dictionaries(st.sampled_from(["kind", "values"]) | st.text(), JSON))
def test_a_set_with_anything_in_it_is_read_or_refused(
    document: dict[str, Any],
) -> None:
    with suppress(InvalidError):
        parse_references(document)


# --- rehearsals ---------------------------------------------------------------------


def a_proposal(document: dict[str, Any], **changes: Any) -> Version:
    return a_version(State.ACTIVE, document=document, **changes)


def test_a_rehearsal_says_what_a_policy_would_change() -> None:
    stored = a_stored()
    strict = a_proposal({"kinds": {"tpm": {"pcrs": {"0": [OTHER.hex()]}}}})
    would_be = with_proposal(stored.basis, strict, stored.kind)

    row = rehearse(
        InstanceId(1), ServerId(1), stored, NO_ANCHORS, stored.basis, would_be
    )

    assert row.now.accepted
    assert row.would_be.code is Code.MEASUREMENT_UNKNOWN
    assert row.changes
    assert [check.name for check in row.would_be.failures] == ["pcr-sha256-0"]


def test_a_more_specific_policy_stays_in_its_place() -> None:
    mine = a_rule(scope=Scope(owner_id=OwnerId(7)), measured=False)
    basis = Basis(rules=(mine,))
    shared = a_proposal({}, name="shared", scope=Scope(image="demo", tier="sev"))

    assert with_proposal(basis, shared, EvidenceKind.TPM) is basis


def test_a_set_is_rehearsed_in_the_place_of_itself() -> None:
    basis = Basis(rules=(a_rule(),), references=(a_set(GOOD, number=5),))
    document = {"kind": "tpm", "values": {"pcr-7": [GOOD.hex()]}}
    revoked = replace(
        a_proposal(document, noun=Noun.REFERENCES), state=State.REVOKED, id=5
    )

    would_be = with_proposal(basis, revoked, EvidenceKind.TPM)

    assert [each.state for each in would_be.references] == [State.REVOKED]


# --- provenance ---------------------------------------------------------------------


def test_provenance_names_policy_sets_and_basis() -> None:
    appraisal = judged(a_set(GOOD, number=4))
    exchange = Exchange(
        challenge_id=1,
        issued_at=NOON,
        received_at=NOON,
        evidence_bytes=10,
        basis_sha256="ab",
    )

    document = provenance(appraisal, exchange)

    assert document["policy"] == {"id": "prod", "version": 1}
    assert document["references"] == list(appraisal.references)
    assert document["basis_sha256"] == "ab"


def test_provenance_stays_within_its_bound() -> None:
    appraisal = judged(a_set(GOOD))
    many = replace(
        appraisal,
        checks=tuple(
            replace(appraisal.checks[0], name=f"check-{number}", expected="x" * 999)
            for number in range(400)
        ),
    )
    exchange = Exchange(
        challenge_id=1, issued_at=NOON, received_at=NOON, evidence_bytes=10
    )

    assert len(canonical(provenance(many, exchange))) <= MAX_DOCUMENT


def test_a_policy_reads_back_from_its_document() -> None:
    policy = a_rule(pcrs={7: (GOOD.hex(),)}).policy

    assert parse_policy(policy.document()) == policy
