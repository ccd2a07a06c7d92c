"""TPM quotes: what is believed of them, and what is not."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.evidence.tpm_quotes import (
    AK_ATTRIBUTES,
    ECDSA,
    NONCE,
    RSAPSS,
    RSASSA,
    FakeTpm,
)
from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import (
    AppraisalPolicy,
    Bank,
    Kinds,
    TpmPolicy,
)
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import Code, EvidenceKind, Reject
from trustfabric.domain.evidence.tpm2 import (
    TpmClock,
    authenticate,
    parse_document,
    write_document,
)
from trustfabric.domain.trust import AttestationStatus

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
TPM = FakeTpm(key=EC_KEY)
ZERO = {index: bytes(32) for index in range(9)}


def a_policy(tpm: TpmPolicy) -> AppraisalPolicy:
    return AppraisalPolicy(id="test", version=1, kinds=Kinds(tpm=tpm))


ZEROS = a_policy(TpmPolicy(pcrs=dict.fromkeys(range(9), ("00" * 32,))))


def evidence(
    tpm: FakeTpm = TPM,
    pcrs: Mapping[int, bytes] = ZERO,
    bank: str = "sha256",
    nonce: bytes = NONCE,
) -> bytes:
    attest = tpm.attest(pcrs, bank, nonce)
    return write_document(attest, tpm.sign(attest), {bank: pcrs})


def judge(
    document: bytes,
    *keys: EnrolledKey,
    policy: AppraisalPolicy = ZEROS,
    nonce: bytes = NONCE,
    last_seen: TpmClock | None = None,
) -> Appraisal:
    return verify(
        EvidenceKind.TPM,
        document,
        expected=Expected(binding=nonce, last_seen=last_seen),
        anchors=Anchors(keys=keys or (TPM.enrolled(),)),
        policy=policy,
        now=NOW,
    )


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize(
    ("key", "scheme"),
    [
        (EC_KEY, ECDSA),
        (ec.generate_private_key(ec.SECP384R1()), ECDSA),
        (ec.generate_private_key(ec.SECP521R1()), ECDSA),
        (RSA_KEY, RSASSA),
        (RSA_KEY, RSAPSS),
    ],
    ids=["p256", "p384", "p521", "rsassa", "rsapss"],
)
def test_every_scheme_and_hash_is_verified(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, scheme: int, digest: str
) -> None:
    tpm = FakeTpm(key=key, scheme=scheme, hash=digest)

    appraisal = judge(evidence(tpm), tpm.enrolled())

    assert appraisal.code is Code.OK
    assert appraisal.reason == "attestation:ok"


@pytest.mark.parametrize(("bank", "size"), [("sha384", 48), ("sha512", 64)])
def test_larger_banks_count_where_the_policy_names_them(bank: Bank, size: int) -> None:
    policy = a_policy(TpmPolicy(banks=(bank,), pcrs={0: ("00" * size,)}))

    document = evidence(pcrs={0: bytes(size)}, bank=bank)

    assert judge(document, policy=policy).code is Code.OK
    assert judge(document).code is Code.POLICY_VIOLATION


def test_a_sha1_bank_is_unsupported_whatever_signed_it() -> None:
    attest = TPM.attest({0: bytes(20)}, "sha1")
    document = json.loads(write_document(attest, TPM.sign(attest), {"sha256": ZERO}))

    appraisal = judge(json.dumps(document).encode())

    assert (appraisal.code, appraisal.checks[0].name) == (Code.UNSUPPORTED, "pcr-bank")


def test_a_key_beside_the_quote_is_never_believed() -> None:
    stranger = FakeTpm(key=ec.generate_private_key(ec.SECP256R1()))

    assert judge(evidence(stranger)).code is Code.SIGNATURE_INVALID


def test_any_of_several_enrolled_keys_may_sign() -> None:
    other = FakeTpm(key=RSA_KEY, scheme=RSASSA)

    assert judge(evidence(), other.enrolled(), TPM.enrolled()).accepted


def test_without_an_enrolled_key_there_is_no_verdict() -> None:
    appraisal = verify(
        EvidenceKind.TPM,
        evidence(),
        expected=Expected(binding=NONCE),
        anchors=Anchors(),
        policy=ZEROS,
        now=NOW,
    )

    assert appraisal.status is AttestationStatus.UNKNOWN


@pytest.mark.parametrize("nonce", [b"", b"\0", NONCE[:-1], NONCE + b"\0", bytes(32)])
def test_any_other_nonce_is_refused(nonce: bytes) -> None:
    assert judge(evidence(nonce=nonce)).code is Code.NONCE_MISMATCH


def test_a_nonce_too_short_to_be_fresh_is_refused_though_it_is_the_right_one() -> None:
    appraisal = judge(evidence(nonce=b"abc"), nonce=b"abc")

    assert appraisal.code is Code.NONCE_MISMATCH


def test_a_register_that_changed_is_an_unknown_measurement() -> None:
    appraisal = judge(evidence(pcrs=ZERO | {8: b"\x01" * 32}))

    assert appraisal.code is Code.MEASUREMENT_UNKNOWN
    (failed,) = appraisal.failures
    assert (failed.expected, failed.actual) == ("00" * 32, "01" * 32)


def test_values_other_than_the_quoted_ones_are_refused() -> None:
    attest = TPM.attest(ZERO | {8: b"\x01" * 32})

    appraisal = judge(write_document(attest, TPM.sign(attest), {"sha256": ZERO}))

    assert appraisal.checks[0].name == "pcr-digest"
    assert appraisal.status is AttestationStatus.UNTRUSTED
    assert appraisal.claims == {}


def test_a_required_register_that_was_not_quoted_violates_the_policy() -> None:
    assert judge(evidence(pcrs={0: bytes(32)})).code is Code.POLICY_VIOLATION


def test_registers_that_nobody_quoted_are_dropped() -> None:
    attest = TPM.attest({0: bytes(32)})
    beside = {"sha256": ZERO | {1: b"\x01" * 32}}
    quote = parse_document(write_document(attest, TPM.sign(attest), beside))

    authenticated = authenticate(quote, [TPM.enrolled()])

    assert authenticated.claims.pcrs == {"sha256": {0: bytes(32)}}


def test_a_software_tpm_is_refused_unless_the_policy_names_it() -> None:
    key = TPM.enrolled("swtpm")
    named = a_policy(ZEROS.kinds.tpm.model_copy(update={"allow_software": ("swtpm",)}))

    assert judge(evidence(), key).code is Code.POLICY_VIOLATION
    assert judge(evidence(), key, policy=named).code is Code.OK


def test_all_independent_failures_are_reported_and_the_first_names_the_code() -> None:
    appraisal = judge(
        evidence(pcrs=ZERO | {3: b"\x03" * 32}, nonce=bytes(32)), TPM.enrolled("swtpm")
    )

    assert [check.name for check in appraisal.failures] == [
        "nonce",
        "endorser",
        "pcr-sha256-3",
    ]
    assert appraisal.code is Code.NONCE_MISMATCH


def test_without_reference_values_there_is_no_verdict() -> None:
    appraisal = judge(evidence(), policy=a_policy(TpmPolicy()))

    assert appraisal.code is Code.NO_REFERENCE_VALUES
    assert appraisal.status is AttestationStatus.UNKNOWN


def test_what_fails_outweighs_what_is_missing() -> None:
    appraisal = judge(evidence(), TPM.enrolled("swtpm"), policy=a_policy(TpmPolicy()))

    assert appraisal.status is AttestationStatus.UNTRUSTED


@pytest.mark.parametrize(
    ("resets", "restarts", "clock", "back"),
    [
        (7, 0, 1000, False),
        (7, 0, 999, True),
        (7, 1, 0, False),
        (8, 0, 0, False),
        (6, 9, 5000, True),
        (2**32 - 1, 0, 5000, True),
    ],
)
def test_a_clock_that_went_back_violates_the_policy(
    resets: int, restarts: int, clock: int, *, back: bool
) -> None:
    tpm = replace(TPM, resets=resets, restarts=restarts, clock=clock)
    seen = TpmClock(reset_count=7, restart_count=0, clock=1000)

    appraisal = judge(evidence(tpm), last_seen=seen)

    assert appraisal.code is (Code.POLICY_VIOLATION if back else Code.OK)


def test_a_count_may_wrap_around() -> None:
    before = TpmClock(reset_count=2**32 - 1, restart_count=0, clock=9)
    after = TpmClock(reset_count=0, restart_count=0, clock=0)

    assert before.is_before(after)
    assert not after.is_before(before)


def test_a_described_key_signs_as_it_says() -> None:
    assert judge(evidence(), EnrolledKey.from_tpmt(TPM.public(), "maker")).accepted
    other = EnrolledKey.from_tpmt(TPM.public(scheme_hash="sha384"), "maker")
    assert judge(evidence(), other).code is Code.SIGNATURE_INVALID


@pytest.mark.parametrize("bit", [0x2, 0x10, 0x1_0000, 0x4_0000, 0x2_0000])
def test_a_key_that_could_sign_a_forgery_is_not_enrolled(bit: int) -> None:
    with pytest.raises(Reject) as refused:
        EnrolledKey.from_tpmt(TPM.public(attributes=AK_ATTRIBUTES ^ bit), "maker")

    assert refused.value.code is Code.ENDORSEMENT_MISMATCH


def test_a_short_rsa_key_is_not_enrolled() -> None:
    weak = FakeTpm(key=rsa.generate_private_key(65537, 1024), scheme=RSASSA)

    with pytest.raises(Reject):
        weak.enrolled()


@pytest.mark.parametrize("tpm", [TPM, FakeTpm(key=RSA_KEY, scheme=RSASSA)])
def test_an_enrolled_key_comes_back_from_its_document(tpm: FakeTpm) -> None:
    for key in (tpm.enrolled(), EnrolledKey.from_tpmt(tpm.public(), "maker")):
        again = EnrolledKey.from_document(json.loads(json.dumps(key.document())))

        assert again == key


def test_a_document_whose_two_keys_differ_is_refused() -> None:
    other = FakeTpm(key=ec.generate_private_key(ec.SECP256R1()))
    document = EnrolledKey.from_tpmt(TPM.public(), "maker").document()

    with pytest.raises(Reject):
        EnrolledKey.from_document(
            document | {"spki": other.enrolled().document()["spki"]}
        )


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "amd-sev-snp"},
        {"key": "mine"},
        {"attest": "not base64!"},
        {"attest": 7},
        {"pcrs": []},
        {"pcrs": {"sha256": {"00": "00" * 32}}},
        {"pcrs": {"sha256": {"32": "00" * 32}}},
        {"pcrs": {"sha256": {"-1": "00" * 32}}},
        {"pcrs": {"sha256": {"0": "00"}}},
        {"pcrs": {"sha256": {"0": "zz" * 32}}},
        {"pcrs": {"md5": {}}},
    ],
)
def test_a_document_of_another_shape_is_refused(change: dict[str, object]) -> None:
    document = json.dumps(json.loads(evidence()) | change).encode()

    appraisal = judge(document)

    assert appraisal.code in {Code.MALFORMED, Code.UNSUPPORTED}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[" * 30_000,
        b'{"kind":"tpm","kind":"tpm"}',
        b'{"kind":"tpm","attest":NaN}',
        evidence() + b" " * 65536,
        evidence()[:-1],
        b"\xef\xbb\xbf" + evidence(),
        evidence().replace(b"tpm", b"\xff\xfe"),
    ],
    ids=range(9),
)
def test_s13_a_document_that_is_not_strict_json_is_malformed(document: bytes) -> None:
    assert judge(document).code is Code.MALFORMED


@given(st.data())
def test_no_changed_bit_of_the_attest_is_accepted(data: st.DataObject) -> None:
    attest = TPM.attest(ZERO)
    bit = data.draw(st.integers(0, 8 * len(attest) - 1))
    changed = bytearray(attest)
    changed[bit // 8] ^= 1 << bit % 8

    appraisal = judge(
        write_document(bytes(changed), TPM.sign(attest), {"sha256": ZERO})
    )

    assert not appraisal.accepted


def test_one_bit_decides_whether_a_blob_was_made_by_a_tpm() -> None:
    attest = b"\xfe" + TPM.attest(ZERO)[1:]

    appraisal = judge(write_document(attest, TPM.sign(attest), {"sha256": ZERO}))

    assert (appraisal.code, appraisal.checks[0].name) == (Code.MALFORMED, "magic")


@given(st.sets(st.integers(0, 8)), st.sets(st.integers(0, 8)))
def test_a_stricter_policy_never_accepts_more(some: set[int], more: set[int]) -> None:
    document = evidence(pcrs=ZERO | {4: b"\x04" * 32})
    loose = TpmPolicy(pcrs=dict.fromkeys(some, ("00" * 32,)), measured=False)
    strict = TpmPolicy(pcrs=dict.fromkeys(some | more, ("00" * 32,)), measured=False)

    accepted_by_strict = judge(document, policy=a_policy(strict)).accepted

    assert judge(document, policy=a_policy(loose)).accepted or not accepted_by_strict
