"""Accelerators of an instance: what is known of each, and what that counts for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trustfabric.domain.evidence.model import EvidenceKind
from trustfabric.domain.trust import AttestationStatus
from trustfabric.errors import InvalidError

ID_LIMIT = 200
POSTURE_LIMIT = 64


OF_ACCELERATORS = frozenset(kind for kind in EvidenceKind if kind.of_accelerator)


def check_vouches_for_vm(kind: object) -> None:
    """Raise InvalidError for the evidence of a device: it proves no VM."""
    if isinstance(kind, str) and kind in OF_ACCELERATORS:
        raise InvalidError(
            f"attestation kind {kind} is evidence of an accelerator: "
            "it proves nothing of the VM that has it"
        )


PASSING_POSTURES = frozenset({"trusted", "attested"})
ATTESTED, UNTRUSTED, UNKNOWN, STALE = "attested", "untrusted", "unknown", "stale"


@dataclass(frozen=True, slots=True)
class Attester:
    """An accelerator that gives evidence of itself, and of which kind."""

    id: str
    """Its PCI address on the host."""
    kind: EvidenceKind


def attesters(gpu_policy: Mapping[str, Any]) -> tuple[Attester, ...]:
    """Return those of an instance, by the policy it was launched with."""
    if not gpu_policy.get("enabled"):
        return ()
    return tuple(
        Attester(_address(device), EvidenceKind(device["attestation"]))
        for device in gpu_policy.get("devices") or ()
        if device.get("attestation")
    )


def _address(device: Mapping[str, Any]) -> str:
    return (
        f"{device['domain']:04x}:{device['bus']:02x}:{device['slot']:02x}"
        f".{device['function']:x}"
    )


def posture_by(status: AttestationStatus) -> str | None:
    """Return the posture that a verdict makes; None: it changes none.

    Silence clears no failure, and takes no evidence away before that runs out.
    """
    match status:
        case AttestationStatus.TRUSTED:
            return ATTESTED
        case AttestationStatus.UNTRUSTED:
            return UNTRUSTED
        case _:
            return None


def posture_now(posture: str, *, by_evidence: bool, fresh: bool, running: bool) -> str:
    """Return what a stored posture counts for now.

    Evidence is of one boot, and for a time. A device that is off can't give any: all
    that then stands against it is a failure.
    """
    if not by_evidence or posture not in PASSING_POSTURES | {UNKNOWN}:
        return posture
    if not running:
        return ATTESTED
    return STALE if posture in PASSING_POSTURES and not fresh else posture


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One accelerator's posture, as stored or as it comes with a run's metadata."""

    accelerator_id: str
    accelerator_type: str
    posture: str
    """An open set of words: `trusted` and `attested` pass, every other blocks."""
    policy_feedback: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    asked_at: datetime | None = None
    """Since when it is asked for evidence of itself; None: it never was."""
    attestation_id: int | None = None
    """The verdict that its posture rests on."""
    fresh_until: datetime | None = None
    """When that evidence runs out."""
    fresh: bool = False
    """Whether it is of its VM's present boot, and has not run out."""
    running: bool = False
    """Whether its VM is on."""

    @property
    def posture_now(self) -> str:
        """What its posture counts for, as its VM is."""
        return posture_now(
            self.posture,
            by_evidence=self.asked_at is not None,
            fresh=self.fresh,
            running=self.running,
        )


def read_accelerators(metadata: Mapping[str, Any]) -> tuple[Accelerator, ...]:
    """Read `accelerators` of a run's metadata; InvalidError names the fault.

    Both spellings are read: `id`/`kind`, and `accelerator_id`/`accelerator_type`.
    """
    entries = metadata.get("accelerators") or []
    if not isinstance(entries, list | tuple):
        raise InvalidError("metadata.accelerators: not a list")
    return tuple(_read(entry, number) for number, entry in enumerate(entries))


def _read(entry: object, number: int) -> Accelerator:
    where = f"metadata.accelerators[{number}]"
    if not isinstance(entry, Mapping):
        raise InvalidError(f"{where}: not an object")
    feedback = entry.get("policy_feedback") or []
    if not isinstance(feedback, list) or not all(isinstance(f, str) for f in feedback):
        raise InvalidError(f"{where}.policy_feedback: not a list of texts")
    extra = entry.get("metadata") or {}
    if not isinstance(extra, Mapping):
        raise InvalidError(f"{where}.metadata: not an object")
    return Accelerator(
        accelerator_id=_word(entry, ("accelerator_id", "id"), where, ID_LIMIT),
        accelerator_type=_word(entry, ("accelerator_type", "kind"), where, ID_LIMIT),
        posture=_word(entry, ("posture",), where, POSTURE_LIMIT),
        policy_feedback=tuple(feedback),
        metadata=dict(extra),
    )


def _word(
    entry: Mapping[str, Any], names: Sequence[str], where: str, limit: int
) -> str:
    for name in names:
        value = entry.get(name)
        if isinstance(value, str) and 0 < len(value) <= limit and "\0" not in value:
            return value
        if value is not None:
            raise InvalidError(f"{where}.{name}: not a text of 1 … {limit}")
    if names[0] == "posture":
        return "unknown"
    if names[0] == "accelerator_type":
        return "unknown"
    raise InvalidError(f"{where}: has no {names[0]}")
