"""Appraisal of TPM quotes."""

from collections.abc import Iterator, Mapping

from trustfabric.domain.attestation.checks import (
    Judged,
    check,
    measured,
    nonce_check,
    one_of,
)
from trustfabric.domain.attestation.model import Check, Code, JsonValue
from trustfabric.domain.attestation.policy import TpmPolicy
from trustfabric.domain.evidence.model import Authenticated
from trustfabric.domain.evidence.tpm2 import TpmClaims, TpmClock


def judge_tpm(
    quoted: Authenticated[TpmClaims],
    policy: TpmPolicy,
    nonce: bytes,
    last_seen: TpmClock | None,
) -> Judged:
    return Judged(
        authenticated=quoted,
        checks=tuple(tpm_checks(quoted.claims, policy, nonce, last_seen)),
        claims=tpm_view(quoted.claims),
    )


def tpm_checks(
    claims: TpmClaims,
    policy: TpmPolicy,
    nonce: bytes,
    last_seen: TpmClock | None = None,
) -> list[Check]:
    """Everything after authentication, in the order that names the code."""
    return [
        nonce_check(nonce, claims.extra_data, policy.min_nonce),
        _endorser(claims, policy),
        one_of(
            "signature-hash",
            Code.POLICY_VIOLATION,
            policy.hashes,
            claims.signature_hash,
        ),
        *(
            one_of("pcr-bank", Code.POLICY_VIOLATION, policy.banks, bank)
            for bank in claims.pcrs
        ),
        *_required(claims, policy),
        *_clock(claims, last_seen),
        *_measurements(claims, policy),
    ]


def _endorser(claims: TpmClaims, policy: TpmPolicy) -> Check:
    return check(
        "endorser",
        Code.POLICY_VIOLATION,
        passed=not claims.software or claims.endorser in policy.allow_software,
        expected=" or ".join(("a hardware TPM", *policy.allow_software)),
        actual=claims.endorser,
    )


def _required(claims: TpmClaims, policy: TpmPolicy) -> Iterator[Check]:
    quoted = {index for values in claims.pcrs.values() for index in values}
    required = set(policy.required_pcrs) | set(policy.pcrs)
    if required:
        yield check(
            "pcrs-quoted",
            Code.POLICY_VIOLATION,
            passed=required <= quoted,
            expected=_indexes(required),
            actual=_indexes(quoted),
        )


def _clock(claims: TpmClaims, last_seen: TpmClock | None) -> Iterator[Check]:
    if last_seen is not None and last_seen.key_id in (None, claims.key_id):
        yield check(
            "tpm-clock",
            Code.POLICY_VIOLATION,
            passed=not claims.clock.is_before(last_seen),
            expected=f"not before {_ticks(last_seen)}",
            actual=_ticks(claims.clock),
        )


def _measurements(claims: TpmClaims, policy: TpmPolicy) -> Iterator[Check]:
    if not policy.pcrs:
        yield measured("pcrs", (), "", needed=policy.measured)
    for bank, values in claims.pcrs.items():
        for index, value in values.items():
            if index in policy.pcrs:
                yield measured(
                    f"pcr-{bank}-{index}", policy.pcrs[index], value.hex(), needed=True
                )


def tpm_view(claims: TpmClaims) -> dict[str, JsonValue]:
    """Return the claims as they are recorded."""
    return {
        "endorser": claims.endorser,
        "software": claims.software,
        "reset_count": claims.clock.reset_count,
        "restart_count": claims.clock.restart_count,
        "clock_ms": claims.clock.clock,
        "firmware_version": f"{claims.firmware_version:016x}",
        "pcrs": {
            bank: {str(index): value.hex() for index, value in values.items()}
            for bank, values in claims.pcrs.items()
        },
    }


def recorded_clock(claims: Mapping[str, object]) -> TpmClock | None:
    """Return the clock that `tpm_view` recorded: no later quote may precede it."""
    resets, restarts, clock = (
        claims.get(key) for key in ("reset_count", "restart_count", "clock_ms")
    )
    if isinstance(resets, int) and isinstance(restarts, int) and isinstance(clock, int):
        return TpmClock(reset_count=resets, restart_count=restarts, clock=clock)
    return None


def _indexes(indexes: set[int]) -> str:
    return ",".join(map(str, sorted(indexes))) or "none"


def _ticks(clock: TpmClock) -> str:
    return f"reset {clock.reset_count} restart {clock.restart_count} +{clock.clock} ms"
