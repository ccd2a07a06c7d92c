"""The launch digest that a SEV-SNP guest must report, from its domain's own XML.

The arithmetic is sev-snp-measure's. Without a kernel in the XML the digest covers the
firmware only: what that boots from the disk is measured by nobody here.
"""

import hashlib
from pathlib import Path
from stat import S_ISREG
from typing import Final
from xml.etree.ElementTree import Element

from sevsnpmeasure.guest import snp_calc_launch_digest
from sevsnpmeasure.ovmf import OVMF, SectionType
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmm_types import VMMType

from trustfabric.domain.attestation.launch import Launch, LaunchDigest
from trustfabric.domain.evidence.model import JsonValue

GUEST_FEATURES: Final = 0x1
"""What QEMU asks for without more: SNP is active."""
_MAX_FIRMWARE: Final = 64 * 1024 * 1024
_MAX_BOOT: Final = 1024 * 1024 * 1024
_NAMED: Final = 200


class _Underivable(Exception):  # noqa: N818 - a finding, never leaves this module
    pass


def derive(
    domain: Element, *, here: bool, features: int = GUEST_FEATURES
) -> Launch | None:
    """Return what the domain's guest must report; None where it isn't SEV-SNP's.

    Blocks: the files that are booted are read. `here`: they are this machine's.
    """
    security = domain.find("launchSecurity")
    if security is None or security.get("type") != "sev-snp":
        return None
    inputs: dict[str, JsonValue] = {
        "guest_features": f"{features:#x}",
        "guest_policy": security.findtext("policy", "").strip(),
    }
    try:
        digest = _digest(domain, security, inputs, here=here)
    except _Underivable as reason:
        return Launch(digest=None, why_none=str(reason)[:_NAMED], inputs=inputs)
    return Launch(digest=digest, inputs=inputs)


def note(launch: Launch) -> str:
    """Return what `capability_notes` says of it."""
    if launch.digest is None:
        return f"launch-digest:none:{launch.why_none}"
    covers = "kernel" if launch.digest.boots_kernel else "firmware-only"
    return f"launch-digest:derived:{covers}"


def _digest(
    domain: Element,
    security: Element,
    inputs: dict[str, JsonValue],
    *,
    here: bool,
) -> LaunchDigest:
    if not here:
        raise _Underivable("the hypervisor's files are on another machine")
    vcpus, cpu = _processors(domain)
    inputs |= {"vcpus": vcpus, "cpu_model": cpu}
    firmware = _text(domain, "os/loader")
    if not firmware:
        raise _Underivable("the hypervisor chooses the firmware: the domain names none")
    inputs["firmware_sha256"] = _sha256(firmware, "firmware", _MAX_FIRMWARE)
    kernel, initrd, cmdline = _measured_boot(domain, security)
    _require_metadata(firmware, with_kernel=bool(kernel))
    if kernel:
        inputs["kernel_sha256"] = _sha256(kernel, "kernel", _MAX_BOOT)
        if initrd:
            inputs["initrd_sha256"] = _sha256(initrd, "initrd", _MAX_BOOT)
        inputs["cmdline_sha256"] = hashlib.sha256(cmdline.encode()).hexdigest()
    try:
        measurement = snp_calc_launch_digest(
            vcpus,
            CPU_SIGS[cpu],
            firmware,
            kernel,
            initrd,
            cmdline,
            _number(str(inputs["guest_features"])),
            "",
            VMMType.QEMU,
        )
    except Exception as error:
        # The library raises whatever its parsing of a file it doesn't know comes to.
        raise _Underivable(f"the firmware can't be measured: {error}") from error
    return LaunchDigest(
        measurement=measurement,
        boots_kernel=bool(kernel),
        guest_policy=_number(str(inputs["guest_policy"])),
    )


def _processors(domain: Element) -> tuple[int, str]:
    count = _number(_text(domain, "vcpu"))
    model = _text(domain, "cpu/model")
    if not count:
        raise _Underivable("the domain counts no processors")
    if model not in CPU_SIGS:
        raise _Underivable(
            f"processor model {model} is not known" if model else "no processor model"
        )
    return count, model


def _measured_boot(domain: Element, security: Element) -> tuple[str, str, str]:
    """Return kernel, initrd and command line where QEMU puts their hashes in."""
    if security.get("kernelHashes") != "yes":
        return "", "", ""
    words = (_text(domain, f"os/{name}") for name in ("kernel", "initrd", "cmdline"))
    kernel, initrd, cmdline = words
    return kernel, initrd, cmdline


def _require_metadata(firmware: str, *, with_kernel: bool) -> None:
    try:
        image = OVMF(firmware)
        sections = {item.section_type() for item in image.metadata_items()}
        hashed = image.is_sev_hashes_table_supported()
    except Exception as error:
        raise _Underivable(f"the firmware can't be read: {error}") from error
    if not sections:
        raise _Underivable("the firmware has no SEV metadata")
    if with_kernel and not (hashed and SectionType.SNP_KERNEL_HASHES in sections):
        raise _Underivable("the firmware has no table for the kernel's hashes")


def _sha256(name: str, what: str, limit: int) -> str:
    path = Path(name)
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode) or status.st_size > limit:
            raise _Underivable(f"{what}: not a file of at most {limit} bytes")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _Underivable(f"{what}: {error.strerror}") from error


def _text(domain: Element, path: str) -> str:
    return (domain.findtext(path) or "").strip()


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0
