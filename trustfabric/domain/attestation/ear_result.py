"""Our own verdicts as entity attestation results (EAR), for parties outside.

What is said is AR4SI's: a claim is affirming only where a check behind it passed, so
a result may be worse than the verdict, which is the policy's, and never better.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from trustfabric.domain.attestation.model import (
    CONSEQUENCES,
    Consequence,
    Tier,
    TrustVector,
)
from trustfabric.domain.attestation.provenance import VERIFIER, VERIFIER_VERSION
from trustfabric.domain.attestation.snp import FIRMWARE_CHECK, LAUNCH_CHECK
from trustfabric.domain.evidence.model import Code, EvidenceKind, JsonValue
from trustfabric.domain.trust import AttestationStatus, Lifecycle
from trustfabric.errors import ConflictError

PROFILE: Final = "tag:github.com,2023:veraison/ear"
LONGEST: Final = timedelta(minutes=5)
"""That a result holds, whatever the verdict behind it does."""

_GENUINE, _BOOTED, _APPROVED, _OPAQUE, _VULNERABLE = 2, 3, 2, 2, 32
_EXECUTABLES: Final[Mapping[EvidenceKind, tuple[str, ...]]] = {
    EvidenceKind.TPM: ("pcr-sha",),
    EvidenceKind.AMD_SEV_SNP: ("measurement", LAUNCH_CHECK),
    EvidenceKind.INTEL_TDX: ("rtmr-",),
    EvidenceKind.COMPOSITE_AZURE_VTPM: ("pcr-sha",),
    EvidenceKind.NVIDIA_GPU: ("measurement-",),
}
"""What checks of executables against reference values begin with. The launch digests
of TDX, and of Azure, cover firmware and paravisor only."""
_CONFIDENTIAL: Final = frozenset(
    {
        EvidenceKind.AMD_SEV_SNP,
        EvidenceKind.INTEL_TDX,
        EvidenceKind.COMPOSITE_AZURE_VTPM,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A verdict as it was recorded, and what became of its instance since."""

    instance: str
    """The hypervisor's name of it: the result's submodule."""
    provenance: Mapping[str, JsonValue]
    status: AttestationStatus
    deadline: datetime | None
    simulated: bool
    """Nothing runs: whatever its evidence says, it isn't about a VM."""
    newest: bool
    """No later verdict was recorded of this instance."""
    same_boot: bool
    """It is alive, and still in the boot that was asked."""
    lifecycle: Lifecycle


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is to be signed, and what it comes to."""

    claims: Mapping[str, JsonValue]
    status: Tier
    issued_at: datetime
    expires_at: datetime


def result_of(
    recorded: Recorded, now: datetime, *, issuer: str, nonce: str | None
) -> Result:
    """Return the result of a verdict. ConflictError where that has gone by."""
    why = _why_not(recorded, now)
    if why is not None:
        raise ConflictError(f"no result can be issued: {why}")
    ends = now + LONGEST
    if recorded.deadline is not None:
        ends = min(ends, recorded.deadline)
    vector = trust_vector(recorded.provenance, simulated=recorded.simulated)
    status = _status(recorded.provenance, vector)
    claims: dict[str, JsonValue] = {
        "eat_profile": PROFILE,
        "iss": issuer,
        "iat": int(now.timestamp()),
        "exp": int(ends.timestamp()),
        "ear.verifier-id": {"developer": VERIFIER, "build": VERIFIER_VERSION},
        "submods": {
            recorded.instance: {
                "ear.status": status.value,
                "ear.trustworthiness-vector": dict(vector),
                "ear.appraisal-policy-id": _policy(recorded.provenance),
            }
        },
    }
    if nonce is not None:
        claims["eat_nonce"] = nonce
    return Result(claims=claims, status=status, issued_at=now, expires_at=ends)


def _why_not(recorded: Recorded, now: datetime) -> str | None:
    if not recorded.newest:
        return "a later verdict was recorded"
    if not recorded.same_boot:
        return "the boot that it was about is over"
    if recorded.status is not AttestationStatus.TRUSTED:
        return None
    if recorded.deadline is None or recorded.deadline <= now + timedelta(seconds=1):
        return "its freshness deadline passed"
    if recorded.lifecycle is not Lifecycle.RESTORED:
        return f"the instance is {recorded.lifecycle}"
    return None


def _policy(provenance: Mapping[str, JsonValue]) -> str:
    policy = provenance.get("policy")
    named = policy if isinstance(policy, Mapping) else {}
    return f"policy:{named.get('id')}:{named.get('version')}"


def _status(provenance: Mapping[str, JsonValue], vector: Mapping[str, int]) -> Tier:
    """Return the worst claim's tier; whom we don't trust nobody shall accept."""
    untrusted = _consequence(provenance).status is AttestationStatus.UNTRUSTED
    return Tier.CONTRAINDICATED if untrusted else worst(vector)


def _consequence(provenance: Mapping[str, JsonValue]) -> Consequence:
    return CONSEQUENCES[Code(str(provenance["code"]))]


def worst(vector: Mapping[str, int]) -> Tier:
    """Return the status of a submodule; without any claim it is none."""
    order = (Tier.NONE, Tier.AFFIRMING, Tier.WARNING, Tier.CONTRAINDICATED)
    return max((Tier.of(claim) for claim in (0, *vector.values())), key=order.index)


def trust_vector(
    provenance: Mapping[str, JsonValue], *, simulated: bool
) -> dict[str, int]:
    """Return AR4SI's claims for a verdict; one that says nothing is left out."""
    claims = provenance.get("claims")
    claims = claims if isinstance(claims, Mapping) else {}
    consequence = _consequence(provenance)
    if consequence.status is not AttestationStatus.TRUSTED:
        sound = not simulated and not _is_software(claims)
        return _said(consequence.vector, affirms=sound)
    if simulated:
        return {}
    kind = EvidenceKind(str(provenance["kind"]))
    checks = _checks(provenance)
    # The launch digest of such a guest ends with its firmware, whoever allows it.
    firmware = any(each.get("name") == FIRMWARE_CHECK for each in checks)
    booted = not firmware and any(_is_measured(each, kind) for each in checks)
    # Without claims nobody knows that it is hardware at all, or whose.
    unproven = not claims or _is_software(claims)
    weak = bool(provenance.get("advisories")) or unproven
    vector = {"hardware": _VULNERABLE if weak else _GENUINE}
    if "VLEK" not in _signers(claims) and not unproven:
        vector["instance-identity"] = _GENUINE
    if booted:
        vector["executables"] = _BOOTED
    if booted or kind in _CONFIDENTIAL:
        vector["configuration"] = _APPROVED
    if kind in _CONFIDENTIAL:
        vector["runtime-opaque"] = _OPAQUE
    return vector


def _said(vector: TrustVector, *, affirms: bool) -> dict[str, int]:
    claims = {
        "instance-identity": vector.instance_identity,
        "hardware": vector.hardware,
        "executables": vector.executables,
        "configuration": vector.configuration,
    }
    return {
        name: claim
        for name, claim in claims.items()
        if claim != 0 and (affirms or Tier.of(claim) is not Tier.AFFIRMING)
    }


def _signers(claims: Mapping[str, JsonValue]) -> list[JsonValue]:
    """Return who signed the report, also one that is a part of the evidence."""
    hardware = claims.get("hardware")
    parts = [claims, hardware if isinstance(hardware, Mapping) else {}]
    return [part.get("signer") for part in parts]


def _is_software(claims: Mapping[str, JsonValue]) -> bool:
    """Tell whether a program keeps the key: it protects from nobody who runs it."""
    return claims.get("software") is True


def _checks(provenance: Mapping[str, JsonValue]) -> list[Mapping[str, JsonValue]]:
    checks = provenance.get("checks")
    if not isinstance(checks, list):
        return []
    return [each for each in checks if isinstance(each, Mapping)]


def _is_measured(check: Mapping[str, JsonValue], kind: EvidenceKind) -> bool:
    """Tell whether something was compared; firmware alone is no executable's check."""
    name = str(check.get("name"))
    return (
        check.get("result") == "pass"
        and bool(check.get("expected"))
        and name.startswith(_EXECUTABLES.get(kind, ()))
    )
