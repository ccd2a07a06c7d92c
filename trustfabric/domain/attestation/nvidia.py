"""Appraisal of NVIDIA device evidence."""

from collections.abc import Iterator

from trustfabric.domain.attestation.checks import Judged, check, measured, nonce_check
from trustfabric.domain.attestation.model import Check, Code
from trustfabric.domain.attestation.policy import NvidiaPolicy
from trustfabric.domain.evidence.model import Authenticated
from trustfabric.domain.evidence.nvidia import NvidiaClaims

_NONCE = 32


def judge_nvidia(
    measured_by: Authenticated[NvidiaClaims],
    policy: NvidiaPolicy,
    nonce: bytes,
    device: str | None = None,
    *,
    elsewhere: bool = False,
) -> Judged:
    """Check a device's claims; `device` is the one that stood there before.

    It is refused where it stands `elsewhere` too: one device is one accelerator.
    """
    claims = measured_by.claims
    return Judged(
        authenticated=measured_by,
        device=claims.identity,
        checks=(
            nonce_check(nonce, claims.nonce, _NONCE),
            Check(
                name="device",
                passed=device in (None, claims.identity),
                code=Code.ENDORSEMENT_MISMATCH,
                expected=device or claims.identity,
                actual=claims.identity,
                identity=True,
            ),
            check(
                "device-once",
                Code.ENDORSEMENT_MISMATCH,
                passed=not elsewhere,
                expected="one accelerator",
                actual="another one, too" if elsewhere else "one accelerator",
            ),
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
