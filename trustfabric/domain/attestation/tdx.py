"""Appraisal of TDX quotes. Debug and other dangerous attributes never get this far."""

from collections.abc import Iterator
from datetime import datetime

from trustfabric.domain.attestation.checks import (
    Judged,
    check,
    measured,
    nonce_check,
)
from trustfabric.domain.attestation.model import Check, Code, JsonValue
from trustfabric.domain.attestation.policy import TdxPolicy
from trustfabric.domain.evidence.model import Authenticated
from trustfabric.domain.evidence.tdx import TdxClaims

_REPORT_DATA = 64


def judge_tdx(
    quoted: Authenticated[TdxClaims],
    policy: TdxPolicy,
    report_data: bytes,
    now: datetime,
) -> Judged:
    claims = quoted.claims
    grace = tdx_grace(claims, policy, now)
    return Judged(
        authenticated=quoted,
        checks=(
            nonce_check(report_data, claims.report_data, _REPORT_DATA),
            *tdx_platform_checks(claims, policy, now),
        ),
        claims=tdx_view(claims),
        advisories=(*quoted.advisories, *grace_note(grace)),
        until=grace,
    )


def tdx_grace(claims: TdxClaims, policy: TdxPolicy, now: datetime) -> datetime | None:
    """Return until when a platform is let pass that would not be; None: it is not."""
    until = policy.grace_until
    if until is None or now >= until:
        return None
    return None if _allowed(claims, policy) and _accepted(claims, policy) else until


def grace_note(until: datetime | None) -> Iterator[str]:
    if until is not None:
        yield f"in grace until {until.isoformat()}"


def _allowed(claims: TdxClaims, policy: TdxPolicy) -> bool:
    return claims.tcb_status in policy.allow_status


def _accepted(claims: TdxClaims, policy: TdxPolicy) -> bool:
    accepted = policy.accept_advisories
    return accepted is None or set(claims.advisories) <= set(accepted)


def tdx_view(claims: TdxClaims) -> dict[str, JsonValue]:
    """Return the claims as they are recorded."""
    return {
        "mrtd": claims.mrtd,
        "rtmrs": list(claims.rtmrs),
        "mrseam": claims.mrseam,
        "td_attributes": claims.td_attributes,
        "tcb_status": claims.tcb_status,
        "advisories": list(claims.advisories),
        "tcb_evaluation_number": claims.evaluation,
        "fmspc": claims.fmspc,
        "quote_version": claims.quote_version,
    }


def tdx_platform_checks(
    claims: TdxClaims, policy: TdxPolicy, now: datetime
) -> Iterator[Check]:
    """All but the nonce: what holds for a quote that something else makes fresh."""
    grace = tdx_grace(claims, policy, now) is not None
    yield check(
        "tcb-status",
        Code.TCB_OUT_OF_DATE,
        passed=grace or _allowed(claims, policy),
        expected=" or ".join(policy.allow_status),
        actual=" ".join((claims.tcb_status, *claims.advisories)),
    )
    if policy.accept_advisories is not None:
        yield check(
            "advisories",
            Code.TCB_OUT_OF_DATE,
            passed=grace or _accepted(claims, policy),
            expected=" ".join(policy.accept_advisories) or "none",
            actual=" ".join(claims.advisories) or "none",
        )
    yield check(
        "tcb-evaluation",
        Code.EXPIRED,
        passed=claims.evaluation >= policy.min_eval,
        expected=f"at least {policy.min_eval}",
        actual=str(claims.evaluation),
    )
    yield measured("mrtd", policy.mrtd, claims.mrtd, needed=policy.measured)
    for index, allowed in policy.rtmrs.items():
        yield measured(f"rtmr-{index}", allowed, claims.rtmrs[index], needed=True)
