"""What evidence is authenticated with: enrolled or shipped, never the evidence's."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trustfabric.domain.evidence.keys import EnrolledKey

AMD_PRODUCTS = ("Milan", "Genoa", "Turin")


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdRoots:
    """One product's certificates (DER or PEM)."""

    ark: bytes
    intermediates: tuple[bytes, ...] = ()
    """What it signed: ASK (signs the keys of chips, VCEK) and ASVK (the keys of
    cloud providers, VLEK)."""
    crl: bytes | None = None
    """The root's newest revocation list (DER or PEM)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """What a maker publishes about one platform: a file, as it was read."""

    name: str
    """Relative to its folder; it says what the file has to be about."""
    content: bytes
    """Empty where it could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Everything that a verdict may rest on."""

    keys: tuple[EnrolledKey, ...] = ()
    """Attestation keys enrolled for this one attester (`tpm`), or of another
    verifier (`ear`)."""
    amd: Mapping[str, AmdRoots] = field(default_factory=dict)
    """By product."""
    intel: bytes | None = None
    """DER certificate of the root."""
    intel_collateral: bytes | None = None
    """What Intel says about the platform (JSON), newest: TCB levels and revocations."""
    nvidia: bytes | None = None
    """DER certificate of the root."""
    collateral: Collateral | None = None
    """For the platform at hand; what it holds must prove itself before it counts."""


NO_ANCHORS = Anchors()
