"""What a judgement of evidence says, and what follows from each of its codes."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from trustfabric.domain.evidence.documents import plain, plain_text
from trustfabric.domain.evidence.model import Code, EvidenceKind, JsonValue
from trustfabric.domain.trust import AttestationStatus

__all__ = [
    "CONSEQUENCES",
    "Appraisal",
    "AttestationStatus",
    "Challenge",
    "Check",
    "Code",
    "Consequence",
    "EvidenceKind",
    "JsonValue",
    "Tier",
    "TrustVector",
]


class Tier(StrEnum):
    """AR4SI's coarse scale of a trust claim."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"

    @classmethod
    def of(cls, claim: int) -> "Tier":
        if -1 <= claim <= 1:
            return cls.NONE
        if claim < 32:  # noqa: PLR2004 - AR4SI's own bounds
            return cls.AFFIRMING
        return cls.WARNING if claim < 96 else cls.CONTRAINDICATED  # noqa: PLR2004


_BY_SEVERITY = (Tier.NONE, Tier.AFFIRMING, Tier.WARNING, Tier.CONTRAINDICATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustVector:
    """AR4SI claims about the attester; 0 says nothing."""

    instance_identity: int = 0
    hardware: int = 0
    executables: int = 0
    configuration: int = 0

    @property
    def tier(self) -> Tier:
        """The worst claim; one that says nothing doesn't count."""
        claims = (
            self.instance_identity,
            self.hardware,
            self.executables,
            self.configuration,
        )
        return max((Tier.of(claim) for claim in claims), key=_BY_SEVERITY.index)


@dataclass(frozen=True, slots=True)
class Consequence:
    """What one code means to the rest of the product."""

    status: AttestationStatus
    vector: TrustVector
    reason: str
    """The history's `transition_reason`."""
    transient: bool
    """Whether asking again may bring another answer by itself."""
    remedy: str


def _all(claim: int) -> TrustVector:
    return TrustVector(
        instance_identity=claim, hardware=claim, executables=claim, configuration=claim
    )


_TRUSTED = AttestationStatus.TRUSTED
_UNTRUSTED = AttestationStatus.UNTRUSTED
_UNKNOWN = AttestationStatus.UNKNOWN
_AFFIRMED = TrustVector(hardware=2, executables=3, configuration=2)
_WARNED = TrustVector(hardware=32, executables=3, configuration=2)
_FORGED = TrustVector(instance_identity=99, hardware=99)
_CONFIGURED = TrustVector(configuration=96)

CONSEQUENCES: dict[Code, Consequence] = {
    Code.OK: Consequence(_TRUSTED, _AFFIRMED, "attestation:ok", False, ""),
    Code.OK_WITH_ADVISORIES: Consequence(
        _TRUSTED,
        _WARNED,
        "attestation:ok-with-advisories",
        False,
        "update the host's firmware before the policy's deadline",
    ),
    Code.UNREACHABLE: Consequence(
        _UNKNOWN, _all(0), "attestation:unreachable", True, "retry with back-off"
    ),
    Code.VERIFIER_FAULT: Consequence(
        _UNKNOWN,
        _all(-1),
        "attestation:verifier-fault",
        True,
        "retry; the fault is the verifier's, not the tenant's",
    ),
    Code.NO_REFERENCE_VALUES: Consequence(
        _UNKNOWN,
        _all(0),
        "attestation:no-reference-values",
        False,
        "publish reference values, or enrol the key",
    ),
    Code.UNSUPPORTED: Consequence(
        _UNKNOWN,
        _all(1),
        "attestation:unsupported",
        False,
        "choose a supported host, bank or evidence kind",
    ),
    Code.EXPIRED: Consequence(
        _UNKNOWN,
        _all(0),
        "attestation:endorsement-expired",
        True,
        "refresh certificates and revocation lists",
    ),
    Code.MALFORMED: Consequence(
        _UNTRUSTED,
        TrustVector(instance_identity=99),
        "attestation:malformed",
        False,
        "relaunch",
    ),
    Code.SIGNATURE_INVALID: Consequence(
        _UNTRUSTED,
        _FORGED,
        "attestation:signature-invalid",
        False,
        "relaunch elsewhere; quarantine the host",
    ),
    Code.CHAIN_INVALID: Consequence(
        _UNTRUSTED,
        _FORGED,
        "attestation:chain-invalid",
        False,
        "relaunch elsewhere; quarantine the host",
    ),
    Code.ENDORSEMENT_MISMATCH: Consequence(
        _UNTRUSTED,
        _FORGED,
        "attestation:endorsement-mismatch",
        False,
        "relaunch elsewhere; quarantine the host",
    ),
    Code.NONCE_MISMATCH: Consequence(
        _UNTRUSTED,
        TrustVector(instance_identity=99),
        "attestation:nonce-mismatch",
        True,
        "challenge again; a second mismatch is a replay",
    ),
    Code.REVOKED: Consequence(
        _UNTRUSTED,
        TrustVector(hardware=96),
        "attestation:revoked",
        False,
        "leave the host",
    ),
    Code.DEBUG_ENABLED: Consequence(
        _UNTRUSTED,
        _CONFIGURED,
        "attestation:debug-enabled",
        False,
        "fix the launch configuration and relaunch",
    ),
    Code.POLICY_VIOLATION: Consequence(
        _UNTRUSTED,
        _CONFIGURED,
        "attestation:policy-violation",
        False,
        "fix the launch configuration and relaunch",
    ),
    Code.TCB_OUT_OF_DATE: Consequence(
        _UNTRUSTED,
        TrustVector(hardware=96),
        "attestation:tcb-out-of-date",
        False,
        "migrate, or update the host's firmware",
    ),
    Code.MEASUREMENT_UNKNOWN: Consequence(
        _UNTRUSTED,
        TrustVector(hardware=2, executables=33),
        "attestation:measurement-unknown",
        False,
        "register the image, or relaunch",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at; `code` is what a failure of it is called."""

    name: str
    passed: bool
    code: Code
    expected: str = ""
    actual: str = ""
    identity: bool = False
    """They tell one piece of hardware from all others: see `Appraisal.pseudonymous`."""

    def __post_init__(self) -> None:
        # Each may be an attester's own words.
        object.__setattr__(self, "name", plain_text(self.name))
        object.__setattr__(self, "expected", plain_text(self.expected))
        object.__setattr__(self, "actual", plain_text(self.actual))

    def view(self) -> dict[str, JsonValue]:
        return {
            "name": self.name,
            "result": "pass" if self.passed else "fail",
            "code": None if self.passed else self.code.value,
            "expected": self.expected,
            "actual": self.actual,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What one VM was asked, once. The nonce is stored as its digest only."""

    kind: EvidenceKind
    instance_id: str
    boot_id: str
    nonce: bytes = field(repr=False)
    """32 random bytes that nothing was asked with before."""
    issued_at: datetime
    expires_at: datetime
    channel_key: bytes = b""
    """The public key that secrets would be released to, if there is one."""

    @property
    def nonce_sha256(self) -> str:
        return hashlib.sha256(self.nonce).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """The judgement of one piece of evidence under one policy."""

    kind: EvidenceKind
    code: Code
    """Of the first check that failed, or ok."""
    checks: tuple[Check, ...] = ()
    """Every check that was made. After an early refusal: that one only."""
    claims: Mapping[str, JsonValue] = field(default_factory=dict)
    """Authenticated ones. Empty where nothing could be authenticated."""
    advisories: tuple[str, ...] = ()
    endorsements: Mapping[str, JsonValue] = field(default_factory=dict)
    endorsed_until: datetime | None = None
    """When the first of what it rests on runs out."""
    references: tuple[Mapping[str, JsonValue], ...] = ()
    """The sets that its measurements stand in: id, name, version, state, check."""
    region_sha256: str | None = None
    device: str | None = field(default=None, repr=False)
    """Which piece of hardware an accelerator is; it is shown to nobody."""
    policy_id: str
    policy_version: int
    verified_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "claims", plain(self.claims))
        object.__setattr__(self, "endorsements", plain(self.endorsements))

    @property
    def consequence(self) -> Consequence:
        return CONSEQUENCES[self.code]

    @property
    def status(self) -> AttestationStatus:
        return self.consequence.status

    @property
    def accepted(self) -> bool:
        return self.status is AttestationStatus.TRUSTED

    @property
    def tier(self) -> Tier:
        return self.consequence.vector.tier

    @property
    def reason(self) -> str:
        return self.consequence.reason

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def notes(self) -> list[str]:
        """One line per failed check, for the verification notes of a record."""
        return [
            f"{check.code}: {check.name}"
            + (f" expected {check.expected}" if check.expected else "")
            + (f" actual {check.actual}" if check.actual else "")
            for check in self.failures
        ]

    def pseudonymous(self, key: bytes) -> "Appraisal":
        """Return it as it may be shown: hardware has names that only the key gives.

        The same hardware has the same name each time. The value is in the evidence.
        """
        if not any(check.identity for check in self.checks):
            return self
        checks = (
            replace(
                check,
                expected=_pseudonym(key, check.expected),
                actual=_pseudonym(key, check.actual),
            )
            if check.identity
            else check
            for check in self.checks
        )
        return replace(self, checks=tuple(checks))

    def fresh_until(self, issued_at: datetime, max_age: timedelta) -> datetime:
        """From the challenge, never from the attester's clock."""
        deadline = issued_at + max_age
        if self.endorsed_until is None:
            return deadline
        return min(deadline, self.endorsed_until)


def _pseudonym(key: bytes, identity: str) -> str:
    return f"hmac:{hmac.new(key, identity.encode(), 'sha256').hexdigest()[:32]}"
