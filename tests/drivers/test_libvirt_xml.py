"""The domain that is asked for, and what is noticed when less of it is made."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drivers.links import a_spec
from trustfabric.domain.seeds import Seed
from trustfabric.domain.vms import (
    ConsoleKind,
    ConsoleSource,
    GpuDevice,
    GpuPolicy,
    IsolationTier,
    NetworkTemplate,
    VmSpec,
    VolumeTemplate,
    fill_console,
)
from trustfabric.drivers.libvirt_readback import differences
from trustfabric.drivers.libvirt_xml import (
    Tag,
    VirtType,
    console_of,
    domain_xml,
    parse,
    render,
    tag_in,
    tag_of,
)

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


def xml_of(spec: VmSpec, virt: VirtType = VirtType.QEMU) -> Element:
    return domain_xml(spec, virt=virt, runtime="tests")


def at(root: Element, path: str) -> Element:
    found = root.find(path)
    assert found is not None, path
    return found


def a_full_spec() -> VmSpec:
    """Every key of every template at once."""
    return replace(
        a_spec("vm-full"),
        network=NetworkTemplate(
            type="bridge",
            name=None,
            bridge="br0",
            model="e1000",
            mac="52:54:00:12:34:56",
            mtu=1400,
            filterref="clean-traffic",
        ),
        volume=VolumeTemplate(
            path="/v/vm-full.qcow2",
            target_dev="sda",
            target_bus="scsi",
            cache="none",
            io="native",
            discard="unmap",
            readonly=True,
            base_image="/images/tiny.img",
        ),
        gpu=GpuPolicy(
            enabled=True, devices=(GpuDevice(domain=0, bus=0xA, slot=1, function=2),)
        ),
        console=ConsoleSource(kind=ConsoleKind.TCP, host="127.0.0.1", port=4555),
    )


def test_every_network_key_has_its_effect() -> None:
    interface = at(xml_of(a_full_spec()), "devices/interface")

    assert interface.get("type") == "bridge"
    assert at(interface, "source").get("bridge") == "br0"
    assert at(interface, "model").get("type") == "e1000"
    assert at(interface, "mac").get("address") == "52:54:00:12:34:56"
    assert at(interface, "mtu").get("size") == "1400"
    assert at(interface, "filterref").get("filter") == "clean-traffic"


def test_every_volume_key_has_its_effect() -> None:
    disk = at(xml_of(a_full_spec()), "devices/disk")

    assert at(disk, "driver").attrib == {
        "name": "qemu",
        "type": "qcow2",
        "cache": "none",
        "io": "native",
        "discard": "unmap",
    }
    assert at(disk, "source").get("file") == "/v/vm-full.qcow2"
    assert at(disk, "target").attrib == {"dev": "sda", "bus": "scsi"}
    assert disk.find("readonly") is not None
    assert at(disk, "backingStore/source").get("file") == "/images/tiny.img"
    assert at(disk, "backingStore/format").get("type") == "raw"


def test_a_chain_of_images_ends_where_it_is_said_to() -> None:
    plain = at(xml_of(a_spec()), "devices/disk/backingStore")
    based = at(xml_of(a_full_spec()), "devices/disk/backingStore/backingStore")

    assert (len(plain), plain.attrib) == (0, {})
    assert (len(based), based.attrib) == (0, {})


def test_a_pooled_volume_is_named_by_its_pool() -> None:
    volume = VolumeTemplate(path="/v/vm-1.qcow2", pool="fast")

    disk = at(xml_of(replace(a_spec(), volume=volume)), "devices/disk")

    assert disk.get("type") == "volume"
    assert at(disk, "source").attrib == {"pool": "fast", "volume": "vm-1.qcow2"}


def test_a_gpu_is_passed_through_behind_an_iommu() -> None:
    root = xml_of(a_full_spec())

    assert at(root, "devices/hostdev/source/address").attrib == {
        "domain": "0x0000",
        "bus": "0x0a",
        "slot": "0x01",
        "function": "0x2",
    }
    assert at(root, "devices/iommu/driver").get("caching_mode") == "on"
    assert at(root, "features/ioapic").get("driver") == "qemu"


def test_a_gpu_policy_that_is_off_passes_nothing() -> None:
    gpu = GpuPolicy(enabled=False, devices=(GpuDevice(bus=1, slot=0),))

    root = xml_of(replace(a_spec(), gpu=gpu))

    assert root.find("devices/hostdev") is None
    assert root.find("devices/iommu") is None


@pytest.mark.parametrize(
    ("console", "source"),
    [
        (ConsoleSource(), None),
        (ConsoleSource(kind=ConsoleKind.NULL), None),
        (
            ConsoleSource(kind=ConsoleKind.TCP, port=4555),
            {"mode": "bind", "host": "127.0.0.1", "service": "4555"},
        ),
        (
            ConsoleSource(kind=ConsoleKind.UNIX, path="/c/a.sock"),
            {"mode": "bind", "path": "/c/a.sock"},
        ),
        (
            ConsoleSource(kind=ConsoleKind.FILE, path="/c/a.log"),
            {"path": "/c/a.log", "append": "on"},
        ),
    ],
)
def test_a_console_goes_where_it_is_sent(
    console: ConsoleSource, source: dict[str, str] | None
) -> None:
    serial = at(xml_of(replace(a_spec(), console=console)), "devices/serial")

    assert serial.get("type") == console.kind
    found = serial.find("source")
    assert (None if found is None else found.attrib) == source


@pytest.mark.parametrize(
    ("tier", "kind", "policy"),
    [
        (IsolationTier.SEV, "sev", "0x0003"),
        (IsolationTier.SEV_ES, "sev", "0x0007"),
        (IsolationTier.SEV_SNP, "sev-snp", "0x00030000"),
        (IsolationTier.TDX, "tdx", "0x10000000"),
    ],
)
def test_a_tier_becomes_its_launch_security(
    tier: IsolationTier, kind: str, policy: str
) -> None:
    root = xml_of(a_spec(tier=tier))

    assert at(root, "launchSecurity").get("type") == kind
    assert root.findtext("launchSecurity/policy") == policy
    assert at(root, "os").get("firmware") == "efi"


def test_a_standard_vm_claims_no_isolation() -> None:
    assert xml_of(a_spec()).find("launchSecurity") is None


def test_only_a_vm_that_attests_by_tpm_gets_one() -> None:
    without = replace(a_spec(), attestation_kind="amd-sev-snp")

    assert xml_of(a_spec()).find("devices/tpm") is not None
    assert xml_of(without).find("devices/tpm") is None


def test_the_mark_is_read_back() -> None:
    root = xml_of(a_spec())

    read = tag_of(render(at(root, "metadata")[0]))

    assert read == tag_in(root)
    assert read is not None
    assert read.runtime == "tests"


def test_the_mark_changes_with_the_specification() -> None:
    spec = a_spec("vm-1")
    bigger = replace(spec, memory_mib=128)

    assert tag_in(xml_of(spec)) == tag_in(xml_of(spec))
    assert tag_in(xml_of(spec)) != tag_in(xml_of(bigger))


@pytest.mark.parametrize("text", [None, "", "<a", "<instance id='7'/>", "<x/>"])
def test_what_is_no_mark_is_nobodys(text: str | None) -> None:
    assert tag_of(text) is None


def test_a_mark_without_a_namespace_is_read_as_libvirt_gives_it() -> None:
    assert tag_of('<instance runtime="a" digest="b"/>') == Tag("a", "b")


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_a_value_never_becomes_markup(text: str) -> None:
    spec = replace(a_spec("vm-1"), network=NetworkTemplate(name=text or "x"))

    read = parse(render(xml_of(spec)))

    assert at(read, "devices/interface/source").get("network") == (text or "x")
    assert [device.tag for device in at(read, "devices")] == [
        device.tag for device in at(xml_of(a_spec("vm-1")), "devices")
    ]


SEED = Seed("#cloud-config\n")


def console_at(kind: ConsoleKind) -> ConsoleSource:
    source = ConsoleSource(kind=kind, port=20_000)
    return fill_console(source, data_dir="/srv/tf", name=f"vm-{kind}")


@pytest.mark.parametrize("kind", ConsoleKind)
def test_a_console_is_found_again_by_the_mark(kind: ConsoleKind) -> None:
    source = console_at(kind)
    root = xml_of(replace(a_spec(f"vm-{kind}"), console=source), VirtType.QEMU)

    mark = at(root, "metadata")[0]

    found = console_of(render(mark))
    assert (found.kind, found.path) == (source.kind, source.path)
    assert found.port == (20_000 if kind is ConsoleKind.TCP else 0)


@pytest.mark.parametrize("text", [None, "", "<x", "<x console='no'/>", "<x/>"])
def test_a_domain_that_says_nothing_of_its_console_has_a_pty(text: str | None) -> None:
    assert console_of(text) == ConsoleSource()


@pytest.mark.skipif(not SCHEMA.exists(), reason="libvirt's schemas are not installed")
@pytest.mark.parametrize("virt", list(VirtType))
@pytest.mark.parametrize(
    "spec",
    [
        a_spec("vm-1"),
        a_full_spec(),
        a_spec("vm-sev", IsolationTier.SEV),
        a_spec("vm-sev-es", IsolationTier.SEV_ES),
        replace(a_spec("vm-seeded"), seed=SEED),
        replace(a_spec("vm-seeded-sev", IsolationTier.SEV), seed=SEED),
        *(
            replace(a_spec(f"vm-{kind}"), console=console_at(kind))
            for kind in ConsoleKind
        ),
    ],
    ids=lambda spec: spec.name,
)
def test_what_is_built_is_valid_by_libvirts_schema(
    spec: VmSpec, virt: VirtType
) -> None:
    etree = pytest.importorskip("lxml.etree")
    schema = etree.RelaxNG(file=str(SCHEMA))

    document = etree.fromstring(render(xml_of(spec, virt)))

    assert schema.validate(document), schema.error_log


# --- what was made is compared with what was asked ---------------------------


def with_details(wanted: Element) -> Element:
    """Add what libvirt adds: addresses, aliases, a resolved machine."""
    made = deepcopy(wanted)
    at(made, "os/type").set("machine", "pc-q35-7.2")
    for device in at(made, "devices"):
        SubElement(device, "alias", name="x")
        SubElement(device, "address", type="pci")
    SubElement(at(made, "devices"), "controller", type="usb")
    return made


def test_details_that_were_added_make_no_difference() -> None:
    wanted = xml_of(a_full_spec())

    assert differences(wanted, with_details(wanted)) == ()


def test_a_number_may_be_written_otherwise() -> None:
    wanted = xml_of(a_spec(tier=IsolationTier.SEV))
    made = with_details(wanted)
    at(made, "launchSecurity/policy").text = "0x3"

    assert differences(wanted, made) == ()


def drop(path: str, child: str) -> Callable[[Element], None]:
    def change(root: Element) -> None:
        parent = at(root, path) if path else root
        parent.remove(at(parent, child))

    return change


def put(path: str, key: str, value: str) -> Callable[[Element], None]:
    return lambda root: at(root, path).set(key, value)


def add(path: str, tag: str) -> Callable[[Element], None]:
    def change(root: Element) -> None:
        SubElement(at(root, path) if path else root, tag)

    return change


def say(path: str, text: str) -> Callable[[Element], None]:
    def change(root: Element) -> None:
        at(root, path).text = text

    return change


def weaken(root: Element) -> None:
    at(root, "launchSecurity/policy").text = "0x0001"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop("", "launchSecurity"), "launchSecurity"),
        (weaken, "launchSecurity"),
        (put("launchSecurity", "type", "s390-pv"), "launchSecurity"),
        (put("os", "firmware", "bios"), "os"),
        (drop("devices", "tpm"), "tpm"),
        (put("devices/tpm/backend", "version", "1.2"), "tpm"),
        (drop("devices", "hostdev"), "hostdev"),
        (add("devices", "hostdev"), "hostdev"),
        (add("devices", "disk"), "disk"),
        (put("devices/disk/source", "file", "/etc/shadow"), "disk"),
        (drop("devices/disk", "readonly"), "disk"),
        (put("devices/interface/source", "bridge", "br1"), "interface"),
        (drop("devices", "iommu"), "iommu"),
        (put("devices/serial", "type", "pty"), "serial"),
        (add("devices", "filesystem"), "filesystem"),
        (add("devices", "shmem"), "shmem"),
        (add("devices", "redirdev"), "redirdev"),
        (add("devices", "channel"), "channel"),
        (add("devices", "graphics"), "graphics"),
        (add("", "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"), "qemu"),
        (say("memory", "1"), "memory"),
        (put("memory", "unit", "KiB"), "memory"),
        (drop("", "memory"), "memory"),
        (say("vcpu", "64"), "vcpu"),
        (put(".", "type", "xen"), "xen instead of qemu"),
        (add("devices/disk", "shareable"), "disk"),
        (add("devices/serial", "log"), "serial"),
    ],
)
def test_a_silent_downgrade_is_noticed(
    change: Callable[[Element], None], named: str
) -> None:
    wanted = xml_of(replace(a_full_spec(), tier=IsolationTier.SEV))
    made = with_details(wanted)

    change(made)

    assert [named in phrase for phrase in differences(wanted, made)] == [True]


def test_isolation_that_nobody_asked_for_is_noticed() -> None:
    wanted = xml_of(a_spec())
    made = with_details(wanted)
    SubElement(made, "launchSecurity", type="sev")

    assert differences(wanted, made) == ("launchSecurity was added",)


@pytest.mark.parametrize(
    ("where", "added", "phrase"),
    [
        ("os", "<kernel>/evil</kernel>", "kernel was added"),
        ("os", "<initrd>/evil</initrd>", "initrd was added"),
        ("os", "<cmdline>init=/bin/sh</cmdline>", "cmdline was added"),
        ("os", "<loader type='rom'>/evil</loader>", "loader was added"),
        (".", "<sysinfo type='fwcfg'/>", "sysinfo was added"),
        (
            "devices/disk/backingStore",
            "<source file='/etc/shadow'/>",
            "disk is not as asked",
        ),
    ],
)
def test_what_would_run_or_be_read_beside_the_disk_is_noticed(
    where: str, added: str, phrase: str
) -> None:
    wanted = domain_xml(a_spec(), virt=VirtType.KVM, runtime="here")
    made = deepcopy(wanted)
    place = made if where == "." else made.find(where)
    assert place is not None
    place.append(fromstring(added))

    assert differences(wanted, made) == (phrase,)


def test_another_firmware_is_noticed() -> None:
    wanted = domain_xml(a_spec(), virt=VirtType.KVM, runtime="here")
    made = deepcopy(wanted)
    made.findall("os")[0].set("firmware", "efi")

    assert differences(wanted, made) == ("firmware was added",)
