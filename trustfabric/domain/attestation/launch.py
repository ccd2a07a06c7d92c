"""What a SEV-SNP guest is launched with, and the digest that makes it report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trustfabric.domain.evidence.model import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchDigest:
    """The measurement that the processor will sign."""

    measurement: bytes
    boots_kernel: bool
    """It covers the kernel too; otherwise the firmware, and what that boots is
    measured by nobody here."""
    guest_policy: int
    """What the processor was told to allow: the report shows the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What was made of one definition: a digest, or why there is none."""

    digest: LaunchDigest | None
    why_none: str | None = None
    inputs: Mapping[str, JsonValue] = field(default_factory=dict)
    """What it was derived from, files by their SHA-256."""
