"""Why an instance is not trusted, not remediated, not placed, with the facts of it.

What is read at one moment goes in, reasons come out; nothing is decided here that is
not decided elsewhere. Placement's are the gate's own blocking notes, one reason each,
so an instance without a blocking one is an instance that the gate lets launch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trustfabric.domain.reasons import (
    About,
    Facts,
    Reason,
    Rules,
    attest,
    start,
    ways_out,
)
from trustfabric.domain.trust import AttestationStatus, Lifecycle, is_stale
from trustfabric.domain.why_placement import placement
from trustfabric.domain.why_remediation import remediation


@dataclass(frozen=True, slots=True)
class Explanation:
    trusted: bool
    placeable: bool
    reasons: tuple[Reason, ...]


def explain(facts: Facts, rules: Rules, now: datetime) -> Explanation:
    """Return every reason, those of trust first; none where all is well."""
    trust = tuple(_trust(facts, now))
    return Explanation(
        trusted=not trust,
        placeable=facts.decision is not None and facts.decision.allowed,
        reasons=(*trust, *remediation(facts, rules, now), *placement(facts)),
    )


def _trust(facts: Facts, now: datetime) -> Iterator[Reason]:
    row, by = facts.snapshot, facts.lifecycle_by
    if facts.terminated_at is not None:
        yield Reason(
            about=About.TRUST,
            code="terminated",
            text="it was removed; its server's next launch makes a new instance",
            source=f"instance:{row.instance_id}",
            since=facts.terminated_at,
            next=(start(facts),),
        )
        return
    if row.lifecycle is not Lifecycle.RESTORED:
        yield Reason(
            about=About.TRUST,
            code=f"lifecycle-{row.lifecycle}",
            text=f"it is {row.lifecycle}: {by.reason}",
            source=f"history:{by.id}",
            since=by.at,
            fact={"actor": by.actor, "transition_reason": by.reason},
            next=ways_out(facts),
        )
    if row.attestation_status is not AttestationStatus.TRUSTED:
        yield _no_verdict(facts)
    if is_stale(row.freshness_deadline, now):
        yield Reason(
            about=About.TRUST,
            code="evidence-stale",
            text="its evidence has run out and none came after it",
            source=f"registry:{row.version}",
            since=row.freshness_deadline,
            fact={"provenance_ref": row.provenance_ref},
            next=(attest(facts),),
        )


def _no_verdict(facts: Facts) -> Reason:
    status, verdict = facts.snapshot.attestation_status, facts.verdict
    texts = {
        AttestationStatus.PENDING: "there is no verdict on its evidence yet",
        AttestationStatus.UNTRUSTED: "its evidence was judged and refused",
        AttestationStatus.UNKNOWN: "no verdict on its evidence could be reached",
    }
    fact: dict[str, Any] = {}
    said = ""
    source = f"history:{facts.status_by.id}"
    if verdict is not None:
        fact = {
            "attestation_kind": verdict.kind,
            "verdict": verdict.status,
            "verdict_at": verdict.at,
            "failed_checks": list(verdict.notes),
        }
        source = f"attestation:{verdict.id}"
        if verdict.status == status and verdict.notes:
            said = f": {verdict.notes[0]}"
    if facts.question is not None:
        fact["challenged_at"] = facts.question.issued_at
    return Reason(
        about=About.TRUST,
        code=f"attestation-{status}",
        text=texts.get(status, f"its evidence is {status}") + said,
        source=source,
        since=facts.status_by.at,
        until=None if facts.question is None else facts.question.expires_at,
        fact=fact,
        next=(attest(facts),),
    )
