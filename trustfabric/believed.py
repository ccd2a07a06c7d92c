"""What evidence is believed by default: policy and roots, as the settings say."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from trustfabric.config import AttestationSettings
from trustfabric.domain.attestation.policy import (
    DEFAULT_POLICY,
    DEMO_POLICY,
    AppraisalPolicy,
    parse_policy,
    with_measurements,
)
from trustfabric.domain.evidence.anchors import Anchors
from trustfabric.domain.evidence.certificate import parse_certificate, pem_bodies
from trustfabric.domain.evidence.model import Reject
from trustfabric.domain.evidence.packaged import (
    ANCHOR_FILES,
    anchors_from,
    packaged_anchors,
)
from trustfabric.drivers.collateral import CollateralFolder
from trustfabric.errors import ConfigError, InvalidError

_LARGEST = 256 * 1024
_LAUNCH_DIGEST = 96
"""Hexadecimal digits of what SEV-SNP and TDX sign."""
_NAMED = {policy.id: policy for policy in (DEFAULT_POLICY, DEMO_POLICY)}


@dataclass(frozen=True, slots=True)
class Believed:
    policy: AppraisalPolicy
    anchors: Anchors
    collateral: CollateralFolder | None = None
    warnings: tuple[str, ...] = ()


def believed_by(chosen: AttestationSettings) -> Believed:
    """Read the files that the settings name. ConfigError lists every fault."""
    faults: list[str] = []
    policy, anchors = DEFAULT_POLICY, packaged_anchors()
    try:
        policy = _policy(chosen.policy)
    except InvalidError as error:
        faults.append(f"VM_ATTESTATION_POLICY: {chosen.policy}: {error}")
    except OSError as error:
        faults.append(f"VM_ATTESTATION_POLICY: {chosen.policy}: {error.strerror}")
    policy = _aged(policy, chosen)
    try:
        policy = with_measurements(policy, chosen.measurements)
    except InvalidError as error:
        faults.append(f"VM_ATTESTATION_MEASUREMENTS: {error}")
    if chosen.trust_roots is not None:
        try:
            anchors = roots_in(chosen.trust_roots)
        except InvalidError as error:
            faults.append(f"VM_ATTESTATION_TRUST_ROOTS: {error}")
    if faults:
        raise ConfigError(faults)
    warnings = tuple(_never_matched(chosen.measurements))
    if chosen.collateral is None:
        return Believed(policy, anchors, warnings=warnings)
    folder = CollateralFolder(chosen.collateral, anchors)
    folder.survey()  # has what can't be used logged: evidence may be long in coming
    warnings += tuple(
        f"VM_ATTESTATION_COLLATERAL: {name}: no file of this name is read"
        for name in folder.strange()
    )
    return Believed(policy, anchors, folder, warnings)


def _never_matched(measurements: Iterable[str]) -> Iterator[str]:
    for digest in measurements:
        if len(digest) != _LAUNCH_DIGEST:
            yield (
                f"VM_ATTESTATION_MEASUREMENTS: {digest[:16]}… has "
                f"{len(digest) // 2} bytes; launch digests have {_LAUNCH_DIGEST // 2}"
            )


def roots_in(folder: Path) -> Anchors:
    """Return the anchors of a folder, and no others. InvalidError names the file."""
    try:
        found = sorted(each.name for each in folder.glob("*.pem"))
        strange = [name for name in found if name not in ANCHOR_FILES]
        if strange:
            raise InvalidError(
                f"{folder / strange[0]}: not one of {', '.join(ANCHOR_FILES)}"
            )
        if not found:
            raise InvalidError(f"{folder}: none of {', '.join(ANCHOR_FILES)}")
        for name in found:
            parse_certificate(pem_bodies(_read(folder / name), name)[0], name)
        anchors = anchors_from(lambda name: _read(folder / name))
    except OSError as error:
        raise InvalidError(f"{error.filename or folder}: {error.strerror}") from None
    except Reject as reject:
        raise InvalidError(f"{folder}: {reject}") from None
    if not (anchors.amd or anchors.intel or anchors.nvidia):
        raise InvalidError(f"{folder}: intermediate certificates, but no root")
    return anchors


def _aged(policy: AppraisalPolicy, chosen: AttestationSettings) -> AppraisalPolicy:
    """Let verdicts count as long as the settings say, but for a document that says."""
    if "max_age_s" in policy.model_fields_set:
        return policy
    return policy.model_copy(update={"max_age_s": max(1, ceil(chosen.max_age_s))})


def _policy(name: str) -> AppraisalPolicy:
    return _NAMED[name] if name in _NAMED else parse_policy(_read(Path(name)))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise InvalidError(f"{path}: larger than {_LARGEST} bytes")
    return data
