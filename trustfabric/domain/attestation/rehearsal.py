"""What a new policy or set of reference values would make of evidence we have."""

from dataclasses import dataclass, replace

from trustfabric.domain.attestation.basis import Basis, Rule
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.rules import policy_of, reference_set_of
from trustfabric.domain.attestation.stored import StoredVerdict, judge_again
from trustfabric.domain.attestation.versions import Noun, Version
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.ids import InstanceId, ServerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """An instance's last evidence, judged by what is in force and by a proposal."""

    instance_id: InstanceId
    server_id: ServerId
    stored: StoredVerdict
    now: Appraisal
    would_be: Appraisal
    accelerator_id: str | None = None
    """Which of its accelerators' evidence it is; None: its own."""

    @property
    def changes(self) -> bool:
        return self.now.status is not self.would_be.status


def with_proposal(now: Basis, proposed: Version, kind: EvidenceKind) -> Basis:
    """Return what evidence would be judged by if the proposal were in its state.

    A policy that is more specific than the proposal stays in its place.
    """
    if proposed.noun is Noun.POLICIES:
        rule = now.rules[0]
        outranked = rule.scope.rank > proposed.scope.rank
        if outranked and rule.policy.id != proposed.name:
            return now
        return replace(now, rules=(Rule(policy=policy_of(proposed)),))
    proposal = reference_set_of(proposed)
    if proposal.kind is not kind:
        return now
    others = (each for each in now.references if each.id != proposal.id)
    return replace(now, references=(proposal, *others))


def rehearse(
    instance_id: InstanceId,
    server_id: ServerId,
    stored: StoredVerdict,
    anchors: Anchors,
    now: Basis,
    would_be: Basis,
) -> Rehearsed:
    """Judge the stored evidence twice, each time as of when it was verified."""
    return Rehearsed(
        instance_id=instance_id,
        server_id=server_id,
        stored=stored,
        now=judge_again(stored, anchors, now),
        would_be=judge_again(stored, anchors, would_be),
    )
