"""What isolates a domain from its host, and what its evidence comes from."""

from collections.abc import Iterator
from typing import Final
from xml.etree.ElementTree import Element, SubElement

from trustfabric.domain.vms import IsolationTier, SnpLaunch, VmSpec, vsock_cid

_LAUNCH_TYPE: Final = {
    IsolationTier.SEV: "sev",
    IsolationTier.SEV_ES: "sev",
    IsolationTier.SEV_SNP: "sev-snp",
    IsolationTier.TDX: "tdx",
}
_LAUNCH_POLICY: Final = {
    IsolationTier.SEV: "0x0003",  # no debugging, no key sharing
    IsolationTier.SEV_ES: "0x0007",  # and encrypted state
    IsolationTier.SEV_SNP: "0x00030000",  # SMT allowed, reserved bit set
    IsolationTier.TDX: "0x10000000",  # SEPT_VE_DISABLE, no debugging
}
AGENT_PORT: Final = "trustfabric.agent.0"
"""As the guest agent looks for it."""


def snp_boot(snp: SnpLaunch) -> list[Element]:
    """Name all that is measured, where the settings do."""
    loader = Element("loader", stateless="yes")
    if snp.firmware is None:
        return [loader]
    loader.set("type", "rom")
    loader.text = snp.firmware
    words = {"kernel": snp.kernel, "initrd": snp.initrd, "cmdline": snp.cmdline}
    elements = [loader]
    for name, text in words.items():
        if text is not None:
            elements.append(Element(name))
            elements[-1].text = text
    return elements


def fixed_cpu(model: str) -> Element:
    """Fix the model: its signature is part of what is measured."""
    cpu = Element("cpu", mode="custom", match="exact", check="none")
    SubElement(cpu, "model", fallback="forbid").text = model
    return cpu


def attestation_devices(spec: VmSpec) -> Iterator[Element]:
    """Yield what its evidence is made with, and comes over."""
    if spec.agent_socket is not None:
        channel = Element("channel", type="unix")
        SubElement(channel, "source", mode="bind", path=spec.agent_socket)
        SubElement(channel, "target", type="virtio", name=AGENT_PORT)
        yield channel
    if spec.vsock:
        vsock = Element("vsock", model="virtio")
        SubElement(vsock, "cid", auto="no", address=str(vsock_cid(spec.uuid)))
        yield vsock
    if spec.vtpm:
        tpm = Element("tpm", model="tpm-crb")
        SubElement(tpm, "backend", type="emulator", version="2.0")
        yield tpm


def launch_security(spec: VmSpec) -> Element:
    element = Element("launchSecurity", type=_LAUNCH_TYPE[spec.tier])
    if spec.tier is IsolationTier.SEV_SNP and spec.snp.kernel is not None:
        element.set("kernelHashes", "yes")
    SubElement(element, "policy").text = _LAUNCH_POLICY[spec.tier]
    return element
