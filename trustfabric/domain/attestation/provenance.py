"""Provenance: everything a verdict rests on, in one canonical JSON document."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from trustfabric.domain.attestation.model import Appraisal
from trustfabric.domain.evidence.model import JsonValue

SCHEMA = 1
VERIFIER = "trustfabric"
VERIFIER_VERSION = "1.2"
"""Rises whenever the same evidence could be judged otherwise."""
MAX_DOCUMENT = 16 * 1024
"""Bytes of a document in canonical form."""
_DETAILS = (256, 64, 16)
"""Characters kept of each text, less where it would not fit otherwise."""
_MOST_CHECKS = 64
_MOST_REFERENCES = 16
_NEEDED = ("signer", "software")
"""Of nested claims, what results say something by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """When a challenge went out and what came back."""

    challenge_id: int | str
    """The row's, never the nonce."""
    issued_at: datetime
    received_at: datetime
    evidence_bytes: int
    deadline: datetime | None = None
    """Until when the verdict counts; only a trusted one has it."""
    basis_sha256: str | None = None
    """Of what it was judged by, as it is kept."""


def provenance(appraisal: Appraisal, exchange: Exchange) -> dict[str, JsonValue]:
    """Return the document; the same evidence judged the same way gives the same.

    Where it would be too large, texts are cut; of the checks, those that passed go
    first, then most references; of the claims only single facts stay, never none: what
    is read from them (that a program keeps the key, who signed) may not get lost.
    """
    whole = _whole(appraisal, exchange)
    for detail in _DETAILS:
        whole["checks"] = [_cut(check.view(), detail) for check in appraisal.checks]
        if _fits(whole):
            return whole
    kept = sorted(appraisal.checks, key=lambda check: check.passed)[:_MOST_CHECKS]
    whole["checks"] = [_cut(check.view(), _DETAILS[-1]) for check in kept]
    if not _fits(whole):
        whole["references"] = list(appraisal.references[:_MOST_REFERENCES])
        whole["references_in_all"] = len(appraisal.references)
    if not _fits(whole):
        whole["claims"] = _facts(appraisal.claims)
    return whole


def _facts(claims: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Leave registers and lists out; of what is nested, the facts of one level stay."""
    kept: dict[str, JsonValue] = {}
    for name, value in claims.items():
        if isinstance(value, Mapping):
            kept[name] = {
                inner: each
                for inner, each in value.items()
                if isinstance(each, bool) or inner in _NEEDED
            }
        elif not isinstance(value, list | tuple):
            kept[name] = value[: _DETAILS[0]] if isinstance(value, str) else value
    return kept


def _whole(appraisal: Appraisal, exchange: Exchange) -> dict[str, JsonValue]:
    return {
        "schema": SCHEMA,
        "kind": appraisal.kind.value,
        "verifier": {"name": VERIFIER, "version": VERIFIER_VERSION},
        "policy": {"id": appraisal.policy_id, "version": appraisal.policy_version},
        "references": list(appraisal.references),
        "basis_sha256": exchange.basis_sha256,
        "challenge": {
            "id": exchange.challenge_id,
            "issued_at": exchange.issued_at.isoformat(),
            "received_at": exchange.received_at.isoformat(),
            "verified_at": appraisal.verified_at.isoformat(),
        },
        "evidence": {
            "sha256": appraisal.region_sha256,
            "bytes": exchange.evidence_bytes,
            "report_id": appraisal.claims.get("report_id"),
            "format": appraisal.claims.get("report_version")
            or appraisal.claims.get("quote_version"),
        },
        "endorsements": dict(appraisal.endorsements),
        "claims": dict(appraisal.claims),
        "claims_sha256": digest(appraisal.claims),
        "advisories": list(appraisal.advisories),
        "checks": [],
        "code": appraisal.code.value,
        "tier": appraisal.tier.value,
        "status": appraisal.status.value,
        "deadline": None
        if exchange.deadline is None
        else exchange.deadline.isoformat(),
    }


def canonical(document: Mapping[str, JsonValue]) -> bytes:
    """Sorted keys, no white space, ASCII: one form for one content."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode("ascii")


def digest(document: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(canonical(document)).hexdigest()


def _fits(document: Mapping[str, JsonValue]) -> bool:
    return len(canonical(document)) <= MAX_DOCUMENT


def _cut(view: Mapping[str, JsonValue], detail: int) -> dict[str, JsonValue]:
    return {
        key: value[:detail] if isinstance(value, str) else value
        for key, value in view.items()
    }
