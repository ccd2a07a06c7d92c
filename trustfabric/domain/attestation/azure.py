"""Appraisal of Azure's composite: the worse of its two halves.

The quote is fresh by its nonce, the report by vouching for the quote's key.
"""

from trustfabric.domain.attestation.checks import Judged
from trustfabric.domain.attestation.policy import AzurePolicy
from trustfabric.domain.attestation.snp import platform_checks, snp_view
from trustfabric.domain.attestation.tpm import tpm_checks, tpm_view
from trustfabric.domain.evidence.azure import AzureClaims
from trustfabric.domain.evidence.model import Authenticated
from trustfabric.domain.evidence.tpm2 import TpmClock


def judge_azure(
    composed: Authenticated[AzureClaims],
    policy: AzurePolicy,
    nonce: bytes,
    last_seen: TpmClock | None,
) -> Judged:
    claims = composed.claims
    return Judged(
        authenticated=composed,
        checks=(
            *tpm_checks(claims.tpm, policy.tpm, nonce, last_seen),
            *platform_checks(claims.hardware, policy.snp),
        ),
        claims={
            "hardware": snp_view(claims.hardware),
            "tpm": tpm_view(claims.tpm),
            "secure_boot": claims.secure_boot,
        },
    )
