"""The disc of cloud-init's seed: in libvirt's storage, at the guest, gone with it."""

import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pycdlib import PyCdlib

from tests.drivers.links import BOOT
from tests.drivers.private_libvirtd import PrivateLibvirtd, missing, until_printed
from trustfabric.domain.seeds import Seed
from trustfabric.domain.vms import VmSpec
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_xml import VirtType, domain_xml, own_volumes
from trustfabric.drivers.seed_iso import seed_iso

libvirt = pytest.importorskip("libvirt")

SEED = Seed("#cloud-config\nhostname: web\n", {"region": "x"}, "version: 2\n")

real = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.timeout(60),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]


def read(image: bytes, name: str) -> bytes:
    iso = PyCdlib()
    iso.open_fp(BytesIO(image))
    out = BytesIO()
    iso.get_file_from_iso_fp(out, joliet_path=f"/{name}")
    label: bytes = iso.pvd.volume_identifier.strip()
    iso.close()
    assert label == b"cidata"
    return out.getvalue()


def seeded(host: PrivateLibvirtd, seed: Seed = SEED) -> VmSpec:
    return replace(host.spec(), seed=seed)


def disc_of(host: PrivateLibvirtd, spec: VmSpec) -> Path:
    return host.root / f"{spec.name}-seed.iso"


def test_the_image_holds_what_cloud_init_looks_for() -> None:
    files = SEED.files("tf-1")

    image = seed_iso(files)

    assert {name: read(image, name) for name in files} == files


@pytest.mark.parametrize("target", ["vda", "sda"])
def test_it_is_a_disc_beside_the_disk_wherever_that_is(target: str) -> None:
    from tests.drivers.links import a_spec

    spec = a_spec()
    bus = "sata" if target == "sda" else "virtio"
    volume = replace(spec.volume, target_dev=target, target_bus=bus, size_gib=1)
    spec = replace(spec, seed=SEED, volume=volume)

    root = domain_xml(spec, virt=VirtType.QEMU, runtime="tests")

    devices = [each.attrib["dev"] for each in root.findall("devices/disk/target")]
    assert len(set(devices)) == 2
    made = [Path(volume.path).name for volume in own_volumes(root)]
    assert made == [f"{spec.name}.qcow2", f"{spec.name}-seed.iso"]


class TestOnRealGuests:
    pytestmark = real

    async def test_it_is_uploaded_and_the_guest_boots_with_it(
        self, qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
    ) -> None:
        spec = seeded(host)

        await qemu_driver.define(spec)
        await qemu_driver.start(spec.name, BOOT)

        await until_printed(qemu_driver, spec.name, "GUEST-UP")
        image = disc_of(host, spec).read_bytes()
        assert read(image, "user-data") == SEED.user_data.encode()
        conn = libvirt.open(host.uri)
        assert "device='cdrom'" in conn.lookupByName(spec.name).XMLDesc(0)
        conn.close()

    async def test_it_goes_with_its_vm_and_the_disk_that_was_there_stays(
        self, qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
    ) -> None:
        spec = seeded(host)
        await qemu_driver.define(spec)
        assert disc_of(host, spec).exists()

        await qemu_driver.undefine(spec.name)

        assert not disc_of(host, spec).exists()
        assert Path(spec.volume.path).exists()

    async def test_half_an_upload_is_made_whole_before_the_boot(
        self, qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
    ) -> None:
        spec = seeded(host)
        await qemu_driver.define(spec)
        os.truncate(disc_of(host, spec), 100)

        await qemu_driver.define(spec)

        assert read(disc_of(host, spec).read_bytes(), "user-data")

    async def test_what_a_running_guest_reads_is_not_touched(
        self, qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
    ) -> None:
        spec = seeded(host)
        await qemu_driver.define(spec)
        await qemu_driver.start(spec.name, BOOT)
        before = disc_of(host, spec).stat()

        await qemu_driver.define(spec)

        after = disc_of(host, spec).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    async def test_a_secret_in_it_is_in_no_definition(
        self, qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
    ) -> None:
        spec = seeded(host, Seed("#cloud-config\npassword: hunter2\n"))

        await qemu_driver.define(spec)

        conn = libvirt.open(host.uri)
        assert "hunter2" not in conn.lookupByName(spec.name).XMLDesc(0)
        conn.close()
        assert "hunter2" not in repr(spec)
