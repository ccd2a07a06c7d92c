"""The words of evidence: its kinds, the codes of a judgement, the one way to refuse.

Parsers and authenticators raise nothing but `Reject`, and hand out claims only inside
an `Authenticated`, which nothing but an authenticator can make.
"""

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Generic, TypeAlias, TypeVar

JsonValue: TypeAlias = (
    str | int | bool | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None
)


class EvidenceKind(StrEnum):
    """What sort of evidence a challenge asks for; evidence never chooses its own."""

    TPM = "tpm"
    AMD_SEV_SNP = "amd-sev-snp"
    INTEL_TDX = "intel-tdx"
    COMPOSITE_AZURE_VTPM = "composite-azure-vtpm"
    NVIDIA_GPU = "nvidia-gpu"
    EAR = "ear"
    """A verdict signed by another verifier (an entity attestation result)."""

    @property
    def of_accelerator(self) -> bool:
        """It proves a device, and nothing of the VM that the device is in."""
        return self is EvidenceKind.NVIDIA_GPU


class Code(StrEnum):
    """What came of a judgement; `attestation.model` maps each to its consequences."""

    OK = "ok"
    OK_WITH_ADVISORIES = "ok-with-advisories"
    UNREACHABLE = "unreachable"
    VERIFIER_FAULT = "verifier-fault"
    NO_REFERENCE_VALUES = "no-reference-values"
    UNSUPPORTED = "unsupported"
    EXPIRED = "expired"
    MALFORMED = "malformed"
    SIGNATURE_INVALID = "signature-invalid"
    CHAIN_INVALID = "chain-invalid"
    ENDORSEMENT_MISMATCH = "endorsement-mismatch"
    NONCE_MISMATCH = "nonce-mismatch"
    REVOKED = "revoked"
    DEBUG_ENABLED = "debug-enabled"
    POLICY_VIOLATION = "policy-violation"
    TCB_OUT_OF_DATE = "tcb-out-of-date"
    MEASUREMENT_UNKNOWN = "measurement-unknown"


class Reject(Exception):  # noqa: N818 - a judgement, not a fault of ours
    """Evidence did not hold: which check, with which code, and why."""

    def __init__(
        self,
        code: Code,
        check: str,
        detail: str,
        *,
        expected: str | None = None,
        actual: str | None = None,
        identity: bool = False,
    ) -> None:
        super().__init__(f"{check}: {detail}")
        self.code = code
        self.check = check
        self.detail = detail
        self.expected = expected
        self.actual = actual
        self.identity = identity
        """What was expected and found tells one piece of hardware from all others."""


Claims_co = TypeVar("Claims_co", covariant=True)

_AUTHENTICATOR: Final = object()
"""Held by the authenticators of this package; see `Authenticated`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticated(Generic[Claims_co]):
    """Claims whose signature, chain and endorsement all held.

    The token keeps anybody but an authenticator from making one, so claims of
    evidence that nobody verified can't reach an appraiser by mistake.
    """

    kind: EvidenceKind
    claims: Claims_co
    region_sha256: str
    """Of the signed bytes: they stay where raw evidence could be padded."""
    endorsements: Mapping[str, JsonValue]
    """What vouched for it: digests of key, leaf and root, dates of lists."""
    endorsed_until: datetime | None = None
    """When the first of the endorsements runs out; None: they don't."""
    advisories: tuple[str, ...] = ()
    """What a policy may still refuse, or accept with a warning."""
    token: InitVar[object] = None

    def __post_init__(self, token: object) -> None:
        if token is not _AUTHENTICATOR:
            raise TypeError("only an authenticator makes authenticated claims")
