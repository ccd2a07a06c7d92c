"""Appraisal of Azure's composite: the worse of its two halves.

The quote is fresh by its nonce, the report by vouching for the quote's key.
"""

from collections.abc import Iterator
from datetime import datetime

from trustfabric.domain.attestation.checks import Judged
from trustfabric.domain.attestation.model import Check, JsonValue
from trustfabric.domain.attestation.policy import AzurePolicy
from trustfabric.domain.attestation.snp import snp_platform_checks, snp_view
from trustfabric.domain.attestation.tdx import (
    grace_note,
    tdx_grace,
    tdx_platform_checks,
    tdx_view,
)
from trustfabric.domain.attestation.tpm import tpm_checks, tpm_view
from trustfabric.domain.evidence.azure import AzureClaims
from trustfabric.domain.evidence.model import Authenticated
from trustfabric.domain.evidence.snp import SnpClaims
from trustfabric.domain.evidence.tdx import TdxClaims
from trustfabric.domain.evidence.tpm2 import TpmClock


def judge_azure(
    composed: Authenticated[AzureClaims],
    policy: AzurePolicy,
    nonce: bytes,
    now: datetime,
    last_seen: TpmClock | None,
) -> Judged:
    claims = composed.claims
    grace = _grace(claims.hardware, policy, now)
    return Judged(
        authenticated=composed,
        checks=(
            *tpm_checks(claims.tpm, policy.tpm, nonce, last_seen),
            *_hardware_checks(claims.hardware, policy, now),
        ),
        claims={
            "hardware": _hardware_view(claims.hardware),
            "tpm": tpm_view(claims.tpm),
            "secure_boot": claims.secure_boot,
        },
        advisories=(*composed.advisories, *grace_note(grace)),
        until=grace,
    )


def _grace(
    claims: SnpClaims | TdxClaims, policy: AzurePolicy, now: datetime
) -> datetime | None:
    if isinstance(claims, SnpClaims):
        return None
    return tdx_grace(claims, policy.tdx, now)


def _hardware_checks(
    claims: SnpClaims | TdxClaims, policy: AzurePolicy, now: datetime
) -> Iterator[Check]:
    if isinstance(claims, SnpClaims):
        return snp_platform_checks(claims, policy.snp)
    return tdx_platform_checks(claims, policy.tdx, now)


def _hardware_view(claims: SnpClaims | TdxClaims) -> dict[str, JsonValue]:
    return snp_view(claims) if isinstance(claims, SnpClaims) else tdx_view(claims)
