"""The whole judgement of one piece of evidence; it always comes to an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, assert_never

from trustfabric.domain.attestation.azure import judge_azure
from trustfabric.domain.attestation.checks import Judged, code_of
from trustfabric.domain.attestation.collateral import with_collateral
from trustfabric.domain.attestation.ear import judge_ear
from trustfabric.domain.attestation.launch import LaunchDigest
from trustfabric.domain.attestation.model import Appraisal, Check
from trustfabric.domain.attestation.nvidia import judge_nvidia
from trustfabric.domain.attestation.policy import AppraisalPolicy
from trustfabric.domain.attestation.references import (
    ReferenceSet,
    settle,
    with_references,
)
from trustfabric.domain.attestation.snp import judge_snp
from trustfabric.domain.attestation.tdx import judge_tdx
from trustfabric.domain.attestation.tpm import judge_tpm
from trustfabric.domain.evidence import azure, ear, nvidia, snp, tdx, tpm2
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import Code, EvidenceKind, Reject

Evidence: TypeAlias = (
    tpm2.TpmQuote
    | snp.SnpEvidence
    | tdx.TdxQuote
    | azure.AzureEvidence
    | nvidia.NvidiaEvidence
    | ear.EarToken
)
"""Parsed, not yet believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What fresh evidence must carry, and what older evidence already showed."""

    binding: bytes
    """As `binding.expected_of` computes it from the challenge."""
    last_seen: tpm2.TpmClock | None = None
    """The newest clock that this TPM showed in fresh evidence."""
    launch: LaunchDigest | None = None
    """The launch digest that was derived from what the guest was launched with."""
    references: Sequence[ReferenceSet] = ()
    """What it may measure beside what the policy itself allows."""
    device: str | None = None
    """Which device the accelerator was before, as `Appraisal.device` names it."""
    elsewhere: bool = False
    """That device, or the one that answers, is another accelerator at the same time."""


def verify(
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
        lambda: (_parse(kind, evidence), with_collateral(anchors)),
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
        wide = with_references(policy, kind, expected.references)
        judged = _judge(*present(), expected, wide, now)
        settled = settle(judged, policy, kind, expected.references, now)
    except Reject as reject:
        return _refused(kind, reject, policy, now)
    except Exception as error:  # noqa: BLE001 - total by promise: see verify
        fault = Reject(
            Code.VERIFIER_FAULT, "verifier", f"{type(error).__name__}: {error}"[:200]
        )
        return _refused(kind, fault, policy, now)
    judged = settled.judged
    return Appraisal(
        kind=kind,
        code=code_of(judged.checks, judged.advisories),
        checks=judged.checks,
        claims=judged.claims,
        advisories=judged.advisories,
        endorsements=judged.authenticated.endorsements,
        endorsed_until=_soonest(
            judged.authenticated.endorsed_until, settled.until, judged.until
        ),
        references=settled.matched,
        region_sha256=judged.authenticated.region_sha256,
        device=judged.device,
        policy_id=policy.id,
        policy_version=policy.version,
        verified_at=now,
    )


def _soonest(*ends: datetime | None) -> datetime | None:
    return min((each for each in ends if each is not None), default=None)


def unreachable(
    kind: EvidenceKind, policy: AppraisalPolicy, now: datetime, detail: str
) -> Appraisal:
    """No evidence came, or too late."""
    return _refused(kind, Reject(Code.UNREACHABLE, "evidence", detail), policy, now)


def no_witness(kind: EvidenceKind, policy: AppraisalPolicy, now: datetime) -> Appraisal:
    """Judge nothing: a device was to vouch for the VM that has it."""
    detail = "evidence of an accelerator proves nothing of the VM that has it"
    return _refused(kind, Reject(Code.UNSUPPORTED, "kind", detail), policy, now)


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
        case EvidenceKind.INTEL_TDX:
            return tdx.parse_document(evidence)
        case EvidenceKind.COMPOSITE_AZURE_VTPM:
            return azure.parse_document(evidence)
        case EvidenceKind.NVIDIA_GPU:
            return nvidia.parse_document(evidence)
        case EvidenceKind.EAR:
            return ear.parse_document(evidence)
        case _:
            assert_never(kind)


def _judge(
    evidence: Evidence,
    anchors: Anchors,
    expected: Expected,
    policy: AppraisalPolicy,
    now: datetime,
) -> Judged:
    kinds, binding = policy.kinds, expected.binding
    match evidence:
        case tpm2.TpmQuote():
            quoted = tpm2.authenticate(evidence, anchors.keys)
            return judge_tpm(quoted, kinds.tpm, binding, expected.last_seen)
        case snp.SnpEvidence():
            reported = snp.authenticate(evidence, anchors, now)
            return judge_snp(reported, kinds.amd_sev_snp, binding, expected.launch)
        case tdx.TdxQuote():
            return judge_tdx(
                tdx.authenticate(evidence, anchors, now), kinds.intel_tdx, binding, now
            )
        case azure.AzureEvidence():
            composed = azure.authenticate(evidence, anchors, now)
            return judge_azure(
                composed, kinds.composite_azure_vtpm, binding, now, expected.last_seen
            )
        case nvidia.NvidiaEvidence():
            return judge_nvidia(
                nvidia.authenticate(evidence, anchors, now),
                kinds.nvidia_gpu,
                binding,
                expected.device,
                elsewhere=expected.elsewhere,
            )
        case ear.EarToken():
            return judge_ear(
                ear.authenticate(evidence, anchors.keys), kinds.ear, binding, now
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
        identity=reject.identity,
    )
    return Appraisal(
        kind=kind,
        code=reject.code,
        checks=(failed,),
        policy_id=policy.id,
        policy_version=policy.version,
        verified_at=now,
    )
