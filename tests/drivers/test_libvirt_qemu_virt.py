"""What runs guests is found by booting one, whatever /dev/kvm looks like."""

import grp
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.drivers.private_libvirtd import (
    PrivateLibvirtd,
    a_running_vm,
    missing,
)
from trustfabric.domain.vms import VolumeTemplate
from trustfabric.drivers import libvirt_probe
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_probe import GUEST, Prober
from trustfabric.drivers.libvirt_xml import VirtType

libvirt = pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]
SOURCE = Path(__file__).parent.parent / "data/guest/probe.S"


@pytest.fixture
def kvm_host() -> Iterator[PrivateLibvirtd]:
    """A daemon whose user may open /dev/kvm."""
    if not Path("/dev/kvm").exists() or "kvm" not in {
        g.gr_name for g in grp.getgrall()
    }:
        pytest.skip("no /dev/kvm here")
    with PrivateLibvirtd.make(groups=("kvm",)).running() as host:
        yield host


def scratch(host: PrivateLibvirtd) -> VolumeTemplate:
    return VolumeTemplate(path=f"{host.root}/scratch/any.qcow2")


def prober(
    host: PrivateLibvirtd, events: EventLoop, place: VolumeTemplate | None
) -> Prober:
    return Prober(libvirt.libvirtError, place, events.time)


def test_the_guest_that_is_booted_is_what_its_source_makes(tmp_path: Path) -> None:
    built, image = tmp_path / "probe.o", tmp_path / "probe.img"
    link = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary"]

    subprocess.run(["as", "--32", SOURCE, "-o", built], check=True)
    subprocess.run(["ld", *link, "-o", image, built], check=True)

    assert image.read_bytes() == GUEST


def test_where_libvirt_offers_no_kvm_nothing_is_booted(
    host: PrivateLibvirtd, events: EventLoop
) -> None:
    conn = libvirt.open(host.uri)

    virt, why = prober(host, events, scratch(host)).best_virt(conn)

    assert (virt, why) == (VirtType.QEMU, "the hypervisor offers no KVM")
    assert not (host.root / "scratch").exists()
    conn.close()


def test_a_guest_prints_and_leaves_nothing_behind(
    host: PrivateLibvirtd, events: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_probe, "PRINTS_S", 30.0)  # KVM's; here it is emulated
    conn = libvirt.open(host.uri)
    before = {domain.name() for domain in conn.listAllDomains()}
    asked = prober(host, events, scratch(host))

    printed_s = asked._boot(conn, VirtType.QEMU, scratch(host))

    assert printed_s is not None
    assert {domain.name() for domain in conn.listAllDomains()} == before
    assert list((host.root / "scratch").iterdir()) == []
    conn.close()


def test_a_guest_that_says_nothing_in_time_is_given_up(
    host: PrivateLibvirtd, events: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = libvirt.open(host.uri)
    halted = b"\xfa\xf4".ljust(510, b"\0") + b"\x55\xaa"
    monkeypatch.setattr(libvirt_probe, "GUEST", halted)
    monkeypatch.setattr(libvirt_probe, "PRINTS_S", 0.5)

    printed_s = prober(host, events, scratch(host))._boot(
        conn, VirtType.QEMU, scratch(host)
    )

    assert printed_s is None
    assert list((host.root / "scratch").iterdir()) == []
    conn.close()


async def test_where_kvm_is_offered_what_is_chosen_really_runs_guests(
    kvm_host: PrivateLibvirtd, events: EventLoop, executor: ThreadPoolExecutor
) -> None:
    driver = LibvirtProvisioner(
        kvm_host.uri,
        events=events,
        executor=executor,
        runtime="tests",
        scratch=scratch(kvm_host),
    )
    await driver.open(lambda _: None, lambda _: None)
    conn = libvirt.open(kvm_host.uri)

    spec = await a_running_vm(driver, kvm_host)

    chosen = conn.lookupByName(spec.name).XMLDesc(0)
    assert f"<domain type='{driver._virt.chosen}'" in chosen
    asked = prober(kvm_host, events, scratch(kvm_host))
    _, why = asked.best_virt(conn)
    assert driver._virt.chosen is VirtType.KVM or "did not boot" in why or "prin" in why
    await driver.undefine(spec.name)
    conn.close()
    await driver.close()


async def test_without_a_place_for_a_guest_it_is_emulated_and_said(
    kvm_host: PrivateLibvirtd, events: EventLoop
) -> None:
    conn = libvirt.open(kvm_host.uri)
    if "<domain type='kvm'" not in conn.getCapabilities():
        pytest.skip("this user can't open /dev/kvm")

    virt, why = prober(kvm_host, events, None).best_virt(conn)

    assert (virt, "nowhere" in why) == (VirtType.QEMU, True)
    conn.close()
