"""What a verdict is judged by: policies, newest first, and sets of reference values.

It is kept whole beside the verdict, so that the same evidence can be judged by the
same again, by anybody, years later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from trustfabric.domain.attestation.appraisal import Expected, verify
from trustfabric.domain.attestation.checks import code_of
from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.attestation.policy import AppraisalPolicy, parse_policy
from trustfabric.domain.attestation.provenance import canonical
from trustfabric.domain.attestation.references import ReferenceSet
from trustfabric.domain.attestation.versions import EVERYBODY, Scope
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.model import EvidenceKind, JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy, and until when it is believed if it is deprecated."""

    policy: AppraisalPolicy
    until: datetime | None = None
    scope: Scope = EVERYBODY
    """Whom it is for; no part of what is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Everything but evidence, keys and time that a judgement depends on."""

    rules: tuple[Rule, ...]
    """At least one. What the first refuses may still satisfy a deprecated one."""
    references: tuple[ReferenceSet, ...] = ()

    @property
    def policy(self) -> AppraisalPolicy:
        return self.rules[0].policy

    def max_age_s(self, appraisal: Appraisal) -> int:
        """Return how long it counts: as the newest policy and its own both have it."""
        own = (appraisal.policy_id, appraisal.policy_version)
        judges = [
            rule.policy
            for rule in self.rules
            if (rule.policy.id, rule.policy.version) == own
        ]
        return min(policy.max_age_s for policy in (self.policy, *judges))

    def document(self) -> dict[str, JsonValue]:
        return {
            "policies": [
                {
                    "document": rule.policy.document(),
                    "until": None if rule.until is None else rule.until.isoformat(),
                }
                for rule in self.rules
            ],
            "references": [each.view() for each in self.references],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Basis":
        """Read what `document` wrote. InvalidError, KeyError or ValueError else."""
        rules = tuple(
            Rule(
                policy=parse_policy(each["document"]),
                until=None
                if each["until"] is None
                else datetime.fromisoformat(each["until"]),
            )
            for each in document["policies"]
        )
        if not rules:
            raise ValueError("no policy to judge by")
        return cls(
            rules=rules,
            references=tuple(
                ReferenceSet.from_view(each) for each in document["references"]
            ),
        )

    def canonical(self) -> bytes:
        return canonical(self.document())


def judge_by(
    basis: Basis,
    kind: EvidenceKind,
    evidence: bytes,
    *,
    expected: Expected,
    anchors: Anchors,
    now: datetime,
) -> Appraisal:
    """Verify evidence under the newest policy, else under one that is deprecated.

    What fails under all of them failed under the first. As `verify`, never raises.
    """
    first: Appraisal | None = None
    for rule in basis.rules:
        appraisal = verify(
            kind,
            evidence,
            expected=replace(expected, references=basis.references),
            anchors=anchors,
            policy=rule.policy,
            now=now,
        )
        if appraisal.accepted:
            return appraisal if rule.until is None else _warned(appraisal, rule.until)
        first = first or appraisal
        if appraisal.region_sha256 is None:
            break  # nothing was authenticated: no policy changes that
    assert first is not None
    return first


def _warned(appraisal: Appraisal, until: datetime) -> Appraisal:
    named = f"policy {appraisal.policy_id} version {appraisal.policy_version}"
    advisories = (
        *appraisal.advisories,
        f"{named} deprecated until {until.isoformat()}",
    )
    ends = until
    if appraisal.endorsed_until is not None:
        ends = min(until, appraisal.endorsed_until)
    return replace(
        appraisal,
        advisories=advisories,
        code=code_of(appraisal.checks, advisories),
        endorsed_until=ends,
    )
