"""Appraisal of NVIDIA device evidence."""

from collections.abc import Iterator

from trustfabric.domain.attestation.checks import Judged, check, measured, nonce_check
from trustfabric.domain.attestation.model import Check, Code
from trustfabric.domain.attestation.policy import NvidiaPolicy
from trustfabric.domain.evidence.model import Authenticated
from trustfabric.domain.evidence.nvidia import NvidiaClaims

_NONCE = 32


def judge_nvidia(
    measured_by: Authenticated[NvidiaClaims], policy: NvidiaPolicy, nonce: bytes
) -> Judged:
    claims = measured_by.claims
    return Judged(
        authenticated=measured_by,
        checks=(
            nonce_check(nonce, claims.nonce, _NONCE),
            *_measurements(claims, policy),
        ),
        claims={
            "device": claims.device,
            "driver": claims.driver,
            "vbios": claims.vbios,
            "measurements": {
                str(index): value.hex() for index, value in claims.measurements.items()
            },
        },
    )


def _measurements(claims: NvidiaClaims, policy: NvidiaPolicy) -> Iterator[Check]:
    if not policy.measurements:
        yield measured("measurements", (), "", needed=policy.measured)
    for index, allowed in policy.measurements.items():
        value = claims.measurements.get(index)
        if value is None:
            yield check(
                f"measurement-{index}",
                Code.POLICY_VIOLATION,
                passed=False,
                expected="a measurement",
                actual="none",
            )
        else:
            yield measured(f"measurement-{index}", allowed, value.hex(), needed=True)
