"""Appraisal of another verifier's result."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime

from trustfabric.domain.attestation.checks import Judged, check, one_of
from trustfabric.domain.attestation.model import Check, Code
from trustfabric.domain.attestation.policy import EarPolicy
from trustfabric.domain.evidence.ear import STATUSES, EarClaims
from trustfabric.domain.evidence.model import Authenticated

_SKEW_S = 60
_LAST = 253_402_300_799
"""Of the year 9999."""
_CODES = {
    "none": Code.NO_REFERENCE_VALUES,
    "contraindicated": Code.POLICY_VIOLATION,
}


def judge_ear(
    result: Authenticated[EarClaims],
    policy: EarPolicy,
    binding: bytes,
    now: datetime,
) -> Judged:
    claims = result.claims
    worst = max(claims.submodules.values(), key=STATUSES.index)
    ends = _ends(claims, policy)
    return Judged(
        authenticated=result,
        checks=tuple(_checks(claims, policy, binding, int(now.timestamp()))),
        claims={
            "profile": claims.profile,
            "verifier": claims.verifier,
            "issued_at": claims.issued_at,
            "submodules": dict(claims.submodules),
        },
        advisories=("warning",) if worst == "warning" else (),
        until=None if ends is None else datetime.fromtimestamp(ends, UTC),
    )


def _checks(
    claims: EarClaims, policy: EarPolicy, binding: bytes, now: int
) -> Iterator[Check]:
    if policy.nonce:
        asked = (binding.hex(), base64.urlsafe_b64encode(binding).rstrip(b"=").decode())
        yield check(
            "nonce",
            Code.NONCE_MISMATCH,
            passed=bool(binding) and not set(asked).isdisjoint(claims.nonces),
            expected=asked[0],
            actual=" ".join(claims.nonces) or "none",
        )
    yield one_of("profile", Code.UNSUPPORTED, policy.profiles, claims.profile)
    yield from _dates(claims, policy, now)
    for name, status in claims.submodules.items():
        yield check(
            f"submodule-{name}",
            _CODES.get(status, Code.POLICY_VIOLATION),
            passed=status in ("affirming", "warning"),
            expected="affirming or warning",
            actual=status,
        )


def _ends(claims: EarClaims, policy: EarPolicy) -> int | None:
    """Return the last second in which it holds; None: it has no end."""
    ends = [] if claims.expires_at is None else [claims.expires_at]
    if policy.max_age_s is not None:
        ends.append(claims.issued_at + policy.max_age_s)
    return min([*ends, _LAST]) if ends else None


def _dates(claims: EarClaims, policy: EarPolicy, now: int) -> Iterator[Check]:
    first = max(claims.issued_at, claims.not_before or 0)
    ends = _ends(claims, policy)
    last = now if ends is None else ends
    yield check(
        "validity",
        Code.EXPIRED,
        passed=first - _SKEW_S <= now <= last,
        expected=f"{first} to {last}",
        actual=str(now),
    )
