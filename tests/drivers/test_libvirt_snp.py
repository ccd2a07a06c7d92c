"""SEV-SNP domains with a named launch, and domains with an agent's port."""

from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from lxml import etree

from tests.drivers.links import a_spec
from trustfabric.domain.vms import IsolationTier, SnpLaunch, vm_uuid, vsock_cid
from trustfabric.drivers.libvirt_connect import parse_uri
from trustfabric.drivers.libvirt_xml import VirtType, domain_xml, render

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
WHOLE = SnpLaunch(
    cpu_model="EPYC-Genoa",
    firmware="/fw/OVMF.amdsev.fd",
    kernel="/boot/vmlinuz",
    initrd="/boot/initrd",
    cmdline='console=ttyS0 <"&',
)


OTHER_TIERS = [each for each in IsolationTier if each != "sev-snp"]


def xml_of(snp: SnpLaunch, tier: IsolationTier = IsolationTier.SEV_SNP) -> Element:
    spec = replace(a_spec("vm-1", tier), snp=snp)
    return domain_xml(spec, virt=VirtType.KVM, runtime="tests")


def test_all_that_is_measured_is_named() -> None:
    domain = xml_of(WHOLE)

    assert domain.findtext("cpu/model") == "EPYC-Genoa"
    assert domain.findtext("os/loader") == WHOLE.firmware
    assert domain.findtext("os/kernel") == WHOLE.kernel
    assert domain.findtext("os/initrd") == WHOLE.initrd
    assert domain.findtext("os/cmdline") == WHOLE.cmdline
    security = domain.find("launchSecurity")
    assert security is not None
    assert security.get("kernelHashes") == "yes"
    system = domain.find("os")
    assert system is not None
    assert system.get("firmware") is None


def test_without_a_named_firmware_the_hypervisor_chooses() -> None:
    domain = xml_of(SnpLaunch())

    system, security = domain.find("os"), domain.find("launchSecurity")
    assert system is not None
    assert security is not None
    assert system.get("firmware") == "efi"
    assert domain.findtext("os/loader") is None or not domain.findtext("os/loader")
    assert security.get("kernelHashes") is None


@pytest.mark.parametrize("tier", OTHER_TIERS)
def test_other_tiers_are_as_they_were(tier: IsolationTier) -> None:
    assert render(xml_of(WHOLE, tier)) == render(xml_of(SnpLaunch(), tier))


@pytest.mark.skipif(not SCHEMA.exists(), reason="needs libvirt's own schemas")
def test_an_agent_s_port_is_as_libvirt_s_schema_says() -> None:
    spec = replace(a_spec(), agent_socket="/var/lib/tf/agents/vm-1.sock", vsock=True)

    domain = domain_xml(spec, virt=VirtType.KVM, runtime="tests")

    channel = domain.find("devices/channel")
    assert channel is not None
    cid = domain.find("devices/vsock/cid")
    assert cid is not None
    assert cid.get("address") == str(vsock_cid(spec.uuid))
    schema = etree.RelaxNG(etree.parse(SCHEMA))
    schema.assertValid(etree.fromstring(render(domain)))


def test_a_vm_without_an_agent_s_port_has_none() -> None:
    domain = domain_xml(a_spec(), virt=VirtType.KVM, runtime="tests")

    assert domain.find("devices/channel") is None
    assert domain.find("devices/vsock") is None


def test_context_ids_leave_those_alone_that_hypervisors_give() -> None:
    ids = {vsock_cid(vm_uuid("rt-1", f"vm-{number}")) for number in range(1000)}

    assert len(ids) == 1000
    assert min(ids) >= 0x4000_0000
    assert max(ids) < 0x8000_0000


@pytest.mark.parametrize(
    ("uri", "here"),
    [
        ("qemu:///system", True),
        ("qemu:///session", True),
        ("qemu+unix:///system", True),
        ("qemu+ssh://host/system", False),
        ("qemu+tls://host/system", False),
    ],
)
def test_files_are_read_where_the_hypervisor_is_this_machine(
    uri: str, *, here: bool
) -> None:
    assert parse_uri(uri).here is here
