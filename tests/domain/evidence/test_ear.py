"""Results of other verifiers: whose they must be, and what they must say."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import AppraisalPolicy, EarPolicy, Kinds
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import Code, EvidenceKind, Reject

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SECONDS = int(NOW.timestamp())
NONCE = bytes(range(32))
KEY = ec.generate_private_key(ec.SECP256R1())
CLAIMS = {
    "eat_profile": "tag:github.com,2023:veraison/ear",
    "iat": SECONDS - 10,
    "eat_nonce": base64.urlsafe_b64encode(NONCE).rstrip(b"=").decode(),
    "ear.verifier-id": {"developer": "them", "build": "1"},
    "submods": {"vm": {"ear.status": "affirming"}},
}

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def enrolled(key: PrivateKey = KEY) -> EnrolledKey:
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return EnrolledKey.from_pem(pem, "verifier")


def token(key: PrivateKey = KEY, algorithm: str = "ES256", **changes: Any) -> str:
    claims = {
        name: value for name, value in (CLAIMS | changes).items() if value is not None
    }
    return jwt.encode(claims, key, algorithm)


def judge(
    result: str, *keys: EnrolledKey, policy: EarPolicy | None = None
) -> Appraisal:
    return verify(
        EvidenceKind.EAR,
        json.dumps({"kind": "ear", "token": result}).encode(),
        expected=Expected(binding=NONCE),
        anchors=Anchors(keys=keys or (enrolled(),)),
        policy=AppraisalPolicy(
            id="test", version=1, kinds=Kinds(ear=policy or EarPolicy())
        ),
        now=NOW,
    )


def test_an_affirming_result_is_trusted() -> None:
    assert judge(token()).code is Code.OK
    assert judge(token(eat_nonce=NONCE.hex())).code is Code.OK


def test_a_key_on_a_larger_curve_signs_with_its_own_algorithm() -> None:
    key = ec.generate_private_key(ec.SECP384R1())

    assert judge(token(key, "ES384"), enrolled(), enrolled(key)).accepted


@pytest.mark.parametrize(
    ("submods", "code"),
    [
        ({"vm": {"ear.status": 2}}, Code.OK),
        ({"vm": {"ear.status": "warning"}}, Code.OK_WITH_ADVISORIES),
        ({"vm": {"ear.status": "contraindicated"}}, Code.POLICY_VIOLATION),
        ({"vm": {"ear.status": "none"}}, Code.NO_REFERENCE_VALUES),
        (
            {"vm": {"ear.status": "affirming"}, "gpu": {"ear.status": 96}},
            Code.POLICY_VIOLATION,
        ),
        (
            {
                "vm": {
                    "ear.status": "affirming",
                    "ear.trustworthiness-vector": {"hardware": 2, "executables": 33},
                }
            },
            Code.OK_WITH_ADVISORIES,
        ),
        (
            {
                "vm": {
                    "ear.status": "affirming",
                    "ear.trustworthiness-vector": {"hardware": -97},
                }
            },
            Code.POLICY_VIOLATION,
        ),
        (
            {"vm": {"ear.status": 0, "ear.trustworthiness-vector": {"hardware": 2}}},
            Code.NO_REFERENCE_VALUES,
        ),
        (
            {"vm": {"ear.status": 0, "ear.trustworthiness-vector": {"hardware": 96}}},
            Code.POLICY_VIOLATION,
        ),
        ({}, Code.MALFORMED),
        ({"vm": {}}, Code.MALFORMED),
        ({"vm": {"ear.status": "splendid"}}, Code.MALFORMED),
        ({"vm": {"ear.status": True}}, Code.MALFORMED),
        ({"vm": "affirming"}, Code.MALFORMED),
        (
            {"vm": {"ear.status": 2, "ear.trustworthiness-vector": {"x": 200}}},
            Code.MALFORMED,
        ),
        (
            {"vm": {"ear.status": 2, "ear.trustworthiness-vector": {"x": "2"}}},
            Code.MALFORMED,
        ),
    ],
)
def test_the_worst_that_is_said_counts(submods: object, code: Code) -> None:
    assert judge(token(submods=submods)).code is code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"eat_nonce": None}, Code.NONCE_MISMATCH),
        ({"eat_nonce": "AAAA"}, Code.NONCE_MISMATCH),
        ({"eat_nonce": ["AAAA", NONCE.hex()]}, Code.OK),
        ({"eat_profile": "mine"}, Code.UNSUPPORTED),
        ({"eat_profile": None}, Code.MALFORMED),
        ({"iat": None}, Code.MALFORMED),
        ({"iat": "now"}, Code.MALFORMED),
        ({"iat": True}, Code.MALFORMED),
        ({"iat": SECONDS - 301}, Code.EXPIRED),
        ({"iat": SECONDS + 61}, Code.EXPIRED),
        ({"exp": SECONDS - 1}, Code.EXPIRED),
        ({"nbf": SECONDS + 61}, Code.EXPIRED),
        ({"ear.verifier-id": None}, Code.MALFORMED),
    ],
)
def test_a_result_must_be_fresh_and_whole(changes: dict[str, Any], code: Code) -> None:
    assert judge(token(**changes)).code is code


@pytest.mark.parametrize(
    ("changes", "policy", "seconds"),
    [
        ({"exp": SECONDS + 5}, EarPolicy(), 5),
        ({"exp": SECONDS + 900}, EarPolicy(), 290),
        ({"exp": 2**40 - 1}, EarPolicy(max_age_s=60), 50),
        ({}, EarPolicy(max_age_s=None), None),
    ],
)
def test_a_verdict_never_outlives_the_result_it_rests_on(
    changes: dict[str, Any], policy: EarPolicy, seconds: int | None
) -> None:
    ends = None if seconds is None else NOW + timedelta(seconds=seconds)

    appraisal = judge(token(**changes), policy=policy)

    assert (appraisal.code, appraisal.endorsed_until) == (Code.OK, ends)


def test_a_result_without_a_near_end_is_judged_all_the_same() -> None:
    appraisal = judge(token(exp=2**40 - 1), policy=EarPolicy(max_age_s=None))

    assert appraisal.code is Code.OK


def test_s31_a_submodule_s_name_can_be_kept_and_shown_anywhere() -> None:
    submods = {
        name: {"ear.status": "contraindicated"}
        for name in ("a\0b", "\ud800", "\x1b]52;c;AAAA\7")
    }

    appraisal = judge(token(submods=submods))

    assert len(appraisal.notes()) == 3
    assert all(note.isprintable() for note in appraisal.notes())


def test_a_stranger_cannot_sign() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())

    assert judge(token(stranger)).code is Code.SIGNATURE_INVALID


def test_s2_the_token_never_chooses_the_algorithm() -> None:
    confused = jwt.encode(CLAIMS, b"a shared secret of 32 bytes or more", "HS256")
    unsigned = jwt.encode(CLAIMS, "", "none")

    assert judge(confused).code is Code.SIGNATURE_INVALID
    assert judge(unsigned).code is Code.SIGNATURE_INVALID


def test_s2_a_key_inside_the_token_is_never_believed() -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key()))

    forged = jwt.encode(CLAIMS, stranger, "ES256", headers={"jwk": jwk})

    assert judge(forged).code is Code.SIGNATURE_INVALID


def test_a_key_that_is_not_on_a_curve_is_unsupported() -> None:
    key = rsa.generate_private_key(65537, 2048)

    assert judge(token(key, "RS256"), enrolled(key)).code is Code.UNSUPPORTED


def test_without_a_known_verifier_there_is_no_verdict() -> None:
    appraisal = verify(
        EvidenceKind.EAR,
        json.dumps({"kind": "ear", "token": token()}).encode(),
        expected=Expected(binding=NONCE),
        anchors=Anchors(),
        policy=AppraisalPolicy(id="test", version=1),
        now=NOW,
    )

    assert appraisal.code is Code.NO_REFERENCE_VALUES


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "AAAA"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-256", "x": "!", "y": "AA"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "e": "AQAB"},
    ],
)
def test_a_jwk_that_is_no_key_is_not_enrolled(jwk: dict[str, str]) -> None:
    with pytest.raises(Reject):
        EnrolledKey.from_jwk(jwk, "verifier")
