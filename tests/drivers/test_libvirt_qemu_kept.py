"""What a refused definition leaves as it was, and what an end removes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.drivers.links import BOOT
from tests.drivers.private_libvirtd import PrivateLibvirtd, a_running_vm, missing
from trustfabric.domain.seeds import Seed
from trustfabric.domain.vms import VmSpec, VolumeTemplate
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.errors import ConflictError, FabricError, InvalidError

libvirt = pytest.importorskip("libvirt")

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.timeout(60),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]

SECRET = Seed("#cloud-config\npassword: hunter2\n")


@pytest.fixture
def operator(host: PrivateLibvirtd) -> Any:
    return libvirt.open(host.uri)


def made_for(host: PrivateLibvirtd) -> VmSpec:
    spec = host.spec()
    path = host.root / f"made-{spec.name}.qcow2"
    return replace(spec, seed=SECRET, volume=VolumeTemplate(path=str(path), size_gib=1))


def disk_of(spec: VmSpec) -> Path:
    return Path(spec.volume.path)


def seed_of(spec: VmSpec) -> Path:
    return Path(spec.seed_volume.path)


async def test_a_vm_survives_that_it_is_refused_when_it_is_defined_again(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, operator: Any
) -> None:
    spec = made_for(host)
    mac = replace(spec.network, mac="52:54:00:ab:cd:ef")
    spec = replace(spec, network=mac)
    await qemu_driver.define(spec)
    before = operator.lookupByName(spec.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    other = replace(spec, network=replace(mac, mac="52:54:00:AB:CD:EF"))
    with pytest.raises(InvalidError, match="interface is not as asked"):
        await qemu_driver.define(other)

    after = operator.lookupByName(spec.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert after == before
    assert disk_of(spec).exists()
    assert (await qemu_driver.define(spec)).adopted
    await qemu_driver.start(spec.name, BOOT)


def less_of(spec: VmSpec) -> VmSpec:
    """Ask for a filter where libvirt drops it without a word."""
    network = replace(spec.network, filterref="clean-traffic")
    return replace(spec, network=network)


async def test_one_that_is_refused_at_first_leaves_what_was_there_and_no_more(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = made_for(host)
    disk_of(spec).write_bytes(b"kept")

    with pytest.raises(InvalidError, match="interface is not as asked"):
        await qemu_driver.define(less_of(spec))

    assert disk_of(spec).read_bytes() == b"kept"
    assert not seed_of(spec).exists()
    assert await qemu_driver.look(spec.name) is None


async def test_one_whose_seed_cannot_be_made_leaves_no_disk(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd
) -> None:
    spec = made_for(host)
    (seed_of(spec) / "in-the-way").mkdir(parents=True)

    with pytest.raises(FabricError):
        await qemu_driver.define(spec)

    assert not disk_of(spec).exists()
    assert await qemu_driver.look(spec.name) is None


async def test_where_a_stranger_has_the_name_nothing_is_made(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, operator: Any
) -> None:
    spec = made_for(host)
    operator.defineXML(
        f"<domain type='qemu'><name>{spec.name}</name><memory>16384</memory>"
        "<os><type>hvm</type></os></domain>"
    )

    with pytest.raises(ConflictError):
        await qemu_driver.define(spec)

    assert not disk_of(spec).exists()
    assert not seed_of(spec).exists()


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_made_goes_at_the_end_though_others_removed_the_domain(
    qemu_driver: LibvirtProvisioner,
    host: PrivateLibvirtd,
    operator: Any,
    *,
    restarted: bool,
) -> None:
    spec = made_for(host)
    await qemu_driver.define(spec)
    operator.lookupByName(spec.name).undefine()
    if restarted:
        qemu_driver._specs.clear()

    await qemu_driver.undefine(spec.name, spec if restarted else None)

    assert not disk_of(spec).exists()
    assert not seed_of(spec).exists()


async def test_of_one_that_others_removed_the_seed_goes_and_the_disk_stays(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, operator: Any
) -> None:
    spec = made_for(host)
    await qemu_driver.define(spec)
    operator.lookupByName(spec.name).undefine()

    await qemu_driver.forget(spec)

    assert disk_of(spec).exists()
    assert not seed_of(spec).exists()


async def test_of_one_that_others_removed_no_lines_are_kept(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, operator: Any
) -> None:
    spec = await a_running_vm(qemu_driver, host)
    console = qemu_driver._consoles.get(spec.name)
    domain = operator.lookupByName(spec.name)
    domain.destroy()
    domain.undefine()

    await qemu_driver.forget(spec)

    assert console is not None
    assert not console.attached
    assert qemu_driver._consoles.get(spec.name) is None
    assert list(host.root.rglob(f"consoles/{spec.name}*")) == []


async def test_what_somebody_renamed_is_not_removed(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, operator: Any
) -> None:
    spec = made_for(host)
    await qemu_driver.define(spec)
    domain = operator.lookupByName(spec.name)
    domain.rename(f"renamed-{spec.name}")

    await qemu_driver.undefine(spec.name, spec)
    await qemu_driver.forget(spec)

    assert disk_of(spec).exists()
    assert seed_of(spec).exists()
    domain.undefine()


async def test_what_a_stranger_of_that_name_uses_is_not_removed(
    qemu_driver: LibvirtProvisioner, host: PrivateLibvirtd, operator: Any
) -> None:
    spec = made_for(host)
    await qemu_driver.define(spec)
    domain = operator.lookupByName(spec.name)
    theirs = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    domain.undefine()
    operator.defineXML(theirs.replace('runtime="tests"', 'runtime="theirs"'))

    await qemu_driver.undefine(spec.name, spec)
    await qemu_driver.forget(spec)

    assert disk_of(spec).exists()
    assert seed_of(spec).exists()
