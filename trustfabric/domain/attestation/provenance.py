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
VERIFIER_VERSION = "1.0"
"""Rises whenever the same evidence could be judged otherwise."""
_MAX_DETAIL = 256


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


def provenance(appraisal: Appraisal, exchange: Exchange) -> dict[str, JsonValue]:
    """Return the document; the same evidence judged the same way gives the same."""
    return {
        "schema": SCHEMA,
        "kind": appraisal.kind.value,
        "verifier": {"name": VERIFIER, "version": VERIFIER_VERSION},
        "policy": {"id": appraisal.policy_id, "version": appraisal.policy_version},
        "challenge": {
            "id": exchange.challenge_id,
            "issued_at": exchange.issued_at.isoformat(),
            "received_at": exchange.received_at.isoformat(),
            "verified_at": appraisal.verified_at.isoformat(),
        },
        "evidence": {
            "sha256": appraisal.region_sha256,
            "bytes": exchange.evidence_bytes,
        },
        "endorsements": dict(appraisal.endorsements),
        "claims": dict(appraisal.claims),
        "claims_sha256": digest(appraisal.claims),
        "advisories": list(appraisal.advisories),
        "checks": [_shortened(check.view()) for check in appraisal.checks],
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


def _shortened(view: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {
        key: value[:_MAX_DETAIL] if isinstance(value, str) else value
        for key, value in view.items()
    }
