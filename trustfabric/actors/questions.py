"""What an appraisal begins with, the challenge it is about, and what is kept of it."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from trustfabric.db import agents, attestations, verdicts, vms
from trustfabric.domain.attestation.basis import Basis
from trustfabric.domain.attestation.binding import expected_of
from trustfabric.domain.attestation.memory import Memory
from trustfabric.domain.attestation.model import Appraisal, Challenge
from trustfabric.domain.attestation.provenance import canonical
from trustfabric.domain.attestation.stored import Inputs
from trustfabric.domain.attestation.versions import Scope
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.vms import PowerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who is judged, by what, as it was read at one moment."""

    instance: vms.Instance
    kind: EvidenceKind
    inputs: Inputs
    memory: Memory
    basis: Basis
    pushes: bool
    """Some agent of it has a token to push evidence with."""

    @property
    def attestable(self) -> bool:
        return self.instance.power_state is PowerState.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A challenge that was issued."""

    challenge: Challenge
    issued: attestations.IssuedChallenge
    purpose: str


def question_of(asked: agents.Asked, nonce: bytes) -> Question:
    """Return the challenge that an agent was told with a nonce of its own."""
    challenge = Challenge(
        kind=EvidenceKind(asked.kind),
        instance_id=asked.instance_name,
        boot_id=str(asked.boot_id),
        nonce=nonce,
        issued_at=asked.issued_at,
        expires_at=asked.expires_at,
    )
    return Question(challenge=challenge, issued=asked.issued, purpose=asked.purpose)


def scope_of(instance: vms.Instance) -> Scope:
    return Scope(
        owner_id=instance.owner_id, image=instance.image, tier=instance.isolation_tier
    )


def kept_basis(basis: Basis) -> verdicts.KeepBasis:
    """Return what keeps a basis beside the verdicts that rest on it."""
    document = basis.document()
    return verdicts.KeepBasis(
        sha256=hashlib.sha256(canonical(document)).digest(), document=document
    )


def verdict_of(  # noqa: PLR0913, PLR0917 (all of it is kept)
    question: Question,
    inputs: Inputs,
    raw: bytes | None,
    appraisal: Appraisal,
    deadline: datetime | None,
    basis: verdicts.KeepBasis,
    accelerator_id: str | None = None,
) -> attestations.RecordVerdict:
    """Return what records a verdict and consumes its challenge."""
    challenge = question.challenge
    return attestations.RecordVerdict(
        challenge=question.issued,
        kind=appraisal.kind,
        status=appraisal.status,
        code=appraisal.code,
        evidence=raw,
        claims=appraisal.claims,
        signer=appraisal.endorsements,
        nonce_digest=None if raw is None else hashlib.sha256(challenge.nonce).digest(),
        deadline=deadline,
        notes=appraisal.notes(),
        remedies=[appraisal.consequence.remedy] if not appraisal.accepted else [],
        now=appraisal.verified_at,
        judged_by=attestations.JudgedBy(
            policy_id=appraisal.policy_id,
            policy_version=appraisal.policy_version,
            basis_sha256=basis.sha256,
            binding=None if raw is None else expected_of(challenge),
            inputs=None if raw is None else inputs.document(),
        ),
        accelerator_id=accelerator_id,
    )
