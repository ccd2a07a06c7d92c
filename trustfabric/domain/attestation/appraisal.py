"""The whole judgement of one piece of evidence; it always comes to an answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, assert_never

from trustfabric.domain.attestation.checks import code_of
from trustfabric.domain.attestation.model import Appraisal, Check
from trustfabric.domain.attestation.policy import AppraisalPolicy
from trustfabric.domain.attestation.snp import snp_checks, snp_view
from trustfabric.domain.attestation.tpm import tpm_checks, tpm_view
from trustfabric.domain.evidence import snp, tpm2
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import (
    Authenticated,
    Code,
    EvidenceKind,
    JsonValue,
    Reject,
)

Evidence: TypeAlias = tpm2.TpmQuote | snp.SnpEvidence
"""Parsed, not yet believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What fresh evidence must carry, and what older evidence already showed."""

    binding: bytes
    """As `binding.expected_of` computes it from the challenge."""
    last_seen: tpm2.TpmClock | None = None
    """The newest clock that this TPM showed in accepted evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Authenticated evidence after its checks."""

    authenticated: Authenticated[object]
    checks: Sequence[Check]
    claims: Mapping[str, JsonValue]


def verify(  # noqa: PLR0913 - the whole of what a verdict depends on
    kind: EvidenceKind,
    evidence: bytes,
    *,
    expected: Expected,
    anchors: Anchors,
    policy: AppraisalPolicy,
    now: datetime,
) -> Appraisal:
    """Parse, authenticate and appraise an evidence document of the kind asked for.

    Never raises: a fault of ours is the code verifier-fault, and nothing but the
    end of all checks is ever trusted.
    """
    return judge(
        kind,
        lambda: (_parse(kind, evidence), anchors),
        expected=expected,
        policy=policy,
        now=now,
    )


def judge(
    kind: EvidenceKind,
    present: Callable[[], tuple[Evidence, Anchors]],
    *,
    expected: Expected,
    policy: AppraisalPolicy,
    now: datetime,
) -> Appraisal:
    """As `verify`, for evidence and keys that come in another wrapping."""
    try:
        judged = _judge(*present(), expected, policy, now)
    except Reject as reject:
        return _refused(kind, reject, policy, now)
    except Exception as error:  # noqa: BLE001 - total by promise: see verify
        fault = Reject(Code.VERIFIER_FAULT, "verifier", f"{type(error).__name__}")
        return _refused(kind, fault, policy, now)
    return Appraisal(
        kind=kind,
        code=code_of(judged.checks, judged.authenticated.advisories),
        checks=tuple(judged.checks),
        claims=judged.claims,
        advisories=judged.authenticated.advisories,
        endorsements=judged.authenticated.endorsements,
        endorsed_until=judged.authenticated.endorsed_until,
        region_sha256=judged.authenticated.region_sha256,
        policy_id=policy.id,
        policy_version=policy.version,
        verified_at=now,
    )


def unreachable(
    kind: EvidenceKind, policy: AppraisalPolicy, now: datetime, detail: str
) -> Appraisal:
    """No evidence came, or too late."""
    return _refused(kind, Reject(Code.UNREACHABLE, "evidence", detail), policy, now)


def replayed(
    kind: EvidenceKind, policy: AppraisalPolicy, now: datetime, detail: str
) -> Appraisal:
    """Evidence came for a challenge that was used before, or that we never issued."""
    return _refused(kind, Reject(Code.NONCE_MISMATCH, "challenge", detail), policy, now)


def _parse(kind: EvidenceKind, evidence: bytes) -> Evidence:
    match kind:
        case EvidenceKind.TPM:
            return tpm2.parse_document(evidence)
        case EvidenceKind.AMD_SEV_SNP:
            return snp.parse_document(evidence)
        case _:
            raise Reject(Code.UNSUPPORTED, "kind", f"{kind} evidence is not verified")


def _judge(
    evidence: Evidence,
    anchors: Anchors,
    expected: Expected,
    policy: AppraisalPolicy,
    now: datetime,
) -> Judged:
    match evidence:
        case tpm2.TpmQuote():
            quoted = tpm2.authenticate(evidence, anchors.keys)
            return Judged(
                authenticated=quoted,
                checks=tpm_checks(
                    quoted.claims,
                    policy.kinds.tpm,
                    expected.binding,
                    expected.last_seen,
                ),
                claims=tpm_view(quoted.claims),
            )
        case snp.SnpEvidence():
            reported = snp.authenticate(evidence, anchors, now)
            return Judged(
                authenticated=reported,
                checks=tuple(
                    snp_checks(
                        reported.claims, policy.kinds.amd_sev_snp, expected.binding
                    )
                ),
                claims=snp_view(reported.claims),
            )
        case _:
            assert_never(evidence)


def _refused(
    kind: EvidenceKind, reject: Reject, policy: AppraisalPolicy, now: datetime
) -> Appraisal:
    failed = Check(
        name=reject.check,
        passed=False,
        code=reject.code,
        expected=reject.expected or "",
        actual=reject.actual or reject.detail,
    )
    return Appraisal(
        kind=kind,
        code=reject.code,
        checks=(failed,),
        policy_id=policy.id,
        policy_version=policy.version,
        verified_at=now,
    )
