"""Accelerators of an instance: what is known of each, and what a scenario says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trustfabric.domain.evidence.model import EvidenceKind
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One accelerator's posture, as stored or as it comes with a run's metadata."""

    accelerator_id: str
    accelerator_type: str
    posture: str
    """An open set of words: `trusted` and `attested` pass, every other blocks."""
    policy_feedback: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


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
