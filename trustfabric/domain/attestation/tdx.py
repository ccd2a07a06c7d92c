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
from trustfabric.domain.attestation.policy import TdxPolicy, still_in_grace
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
    return Judged(
        authenticated=quoted,
        checks=(
            nonce_check(report_data, claims.report_data, _REPORT_DATA),
            *tdx_platform_checks(claims, policy, now),
        ),
        claims=tdx_view(claims),
        advisories=quoted.advisories,
    )


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
    grace = still_in_grace(policy, now)
    yield check(
        "tcb-status",
        Code.TCB_OUT_OF_DATE,
        passed=grace or claims.tcb_status in policy.allow_status,
        expected=" or ".join(policy.allow_status),
        actual=" ".join((claims.tcb_status, *claims.advisories)),
    )
    if policy.accept_advisories is not None:
        yield check(
            "advisories",
            Code.TCB_OUT_OF_DATE,
            passed=grace or set(claims.advisories) <= set(policy.accept_advisories),
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
