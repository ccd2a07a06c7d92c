"""What this guest shows on request: one answer for each kind of evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trustfabric.agent import accelerators, sev_guest, tsm
from trustfabric.agent.evidence import tpm_evidence
from trustfabric.agent.tpm import AK_ECC, Tpm, TpmError
from trustfabric.agent.transport import (
    UnansweredError,
    UnreachableError,
    open_tpm,
)
from trustfabric.domain.evidence import snp, tdx
from trustfabric.domain.evidence.certificate import pem_bodies
from trustfabric.domain.evidence.model import EvidenceKind, Reject
from trustfabric.domain.evidence.snp_table import parse_table

_TEE_DATA = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where evidence comes from in this guest."""

    tpm: Path = Path("/dev/tpmrm0")
    """A device, or the socket of a software TPM."""
    tsm: Path = tsm.REPORTS
    """configfs-tsm's folder, or an entry in it that was prepared for the agent."""
    sev_guest: Path = sev_guest.DEVICE
    certificate: Path | None = None
    """The VCEK or VLEK, where the host hands none over."""
    timeout_s: float = 10.0
    pcrs: Sequence[int] = field(default_factory=lambda: range(9))
    bank: str = "sha256"
    template: bytes = AK_ECC
    accelerators: Path | None = None
    """The program that asks this guest's accelerators; None: they are not asked."""


def answer(
    kind: EvidenceKind | None,
    data: bytes,
    sources: Sources,
    accelerator: str | None = None,
) -> bytes:
    """Return the evidence document for a challenge. UnansweredError.

    Without a kind its size tells: 64 bytes are for the processor, fewer for the TPM.
    An `accelerator` answers for itself, by the id that its host has for it.
    """
    if accelerator is not None:
        return accelerators.ask(
            sources.accelerators, accelerator, data, sources.timeout_s
        )
    if kind is None:
        kind = _kind_for(data, sources)
    try:
        make = _ANSWERS[kind]
    except KeyError:
        raise UnansweredError(f"no evidence of kind {kind} here") from None
    try:
        return make(data, sources)
    except (UnreachableError, TpmError, Reject, OSError, ValueError) as error:
        raise UnansweredError(f"{kind}: {error}") from error


def _kind_for(data: bytes, sources: Sources) -> EvidenceKind:
    if len(data) != _TEE_DATA:
        return EvidenceKind.TPM
    if sources.sev_guest.exists():
        return EvidenceKind.AMD_SEV_SNP
    try:
        provider = tsm.ask(data, sources.tsm).provider
    except UnreachableError as error:
        raise UnansweredError(str(error)) from error
    return (
        EvidenceKind.INTEL_TDX
        if provider == tsm.TDX_GUEST
        else EvidenceKind.AMD_SEV_SNP
    )


def _tpm(data: bytes, sources: Sources) -> bytes:
    with open_tpm(sources.tpm, sources.timeout_s) as transport:
        tpm = Tpm(transport)
        tpm.startup()
        return tpm_evidence(
            tpm, data, sources.pcrs, bank=sources.bank, template=sources.template
        )


def _snp(data: bytes, sources: Sources) -> bytes:
    report, table = _snp_report(data, sources)
    certificates = parse_table(table)
    leaf = certificates.get("VCEK") or certificates.get("VLEK")
    if sources.certificate is not None:
        leaf = _der(sources.certificate.read_bytes())
    if leaf is None:
        raise UnansweredError(
            "the host hands over no certificate of its processor: give --certificate"
        )
    # The chain above it is the verifier's: what a host adds is believed no more.
    return snp.write_document(report, _der(leaf))


def _snp_report(data: bytes, sources: Sources) -> tuple[bytes, bytes]:
    """Ask configfs-tsm; the older device where the kernel has no such folder."""
    if not sources.tsm.exists():
        made = sev_guest.ask(data, sources.sev_guest)
        return made.report, made.certificates
    report = tsm.ask(data, sources.tsm)
    if report.provider != tsm.SEV_GUEST:
        raise UnreachableError(f"configfs-tsm is {report.provider}'s")
    return report.outblob, report.auxblob


def _tdx(data: bytes, sources: Sources) -> bytes:
    report = tsm.ask(data, sources.tsm)
    if report.provider != tsm.TDX_GUEST:
        raise UnreachableError(f"configfs-tsm is {report.provider}'s")
    return tdx.write_document(report.outblob)


def _der(data: bytes) -> bytes:
    return pem_bodies(data, "leaf")[0] if data.lstrip().startswith(b"---") else data


_ANSWERS: Mapping[EvidenceKind, Callable[[bytes, Sources], bytes]] = {
    EvidenceKind.TPM: _tpm,
    EvidenceKind.AMD_SEV_SNP: _snp,
    EvidenceKind.INTEL_TDX: _tdx,
}
