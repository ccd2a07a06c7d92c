"""Firmware that libvirt chooses: what runs must have what was demanded."""

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any
from xml.etree.ElementTree import Element, SubElement

import pytest

from tests.drivers.links import BOOT, a_spec
from tests.drivers.private_libvirtd import NOBODY, PrivateLibvirtd, missing
from trustfabric.domain.vms import IsolationTier, VmSpec
from trustfabric.drivers import libvirt_domains as domains
from trustfabric.drivers.libvirt_ours import Host
from trustfabric.drivers.libvirt_readback import differences
from trustfabric.drivers.libvirt_xml import VirtType, domain_xml, parse, render
from trustfabric.errors import InvalidError

real = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}"),
]

PFLASH = {"type": "pflash", "readonly": "yes"}
ROM = {"type": "rom"}


def system(root: Element) -> Element:
    found = root.find("os")
    assert found is not None
    return found


def demanding(spec: VmSpec) -> Element:
    root = domain_xml(spec, virt=VirtType.QEMU, runtime="tests")
    system(root).set("firmware", "efi")
    return root


# --- by the text -----------------------------------------------------------------


def running(loader: dict[str, str] | None, path: str | None = "/fw/x.fd") -> Element:
    """Return what libvirt 9.0 shows of a guest that runs: no demand any more."""
    root = domain_xml(
        a_spec("vm-1", IsolationTier.SEV), virt=VirtType.KVM, runtime="tests"
    )
    del system(root).attrib["firmware"]
    if loader is not None:
        SubElement(system(root), "loader", loader).text = path
    return root


def seen(live: Element, defined: Element | None = None) -> tuple[str, ...]:
    wanted = domain_xml(
        a_spec("vm-1", IsolationTier.SEV), virt=VirtType.KVM, runtime="tests"
    )
    return differences(wanted, live, wanted if defined is None else defined)


def test_an_image_that_was_chosen_fulfils_the_demand() -> None:
    assert seen(running(PFLASH)) == ()


@pytest.mark.parametrize(
    ("loader", "path"),
    [
        (None, None),
        (PFLASH, None),
        (PFLASH, ""),
        ({}, "/fw/x.fd"),
        (ROM, "/usr/share/seabios/bios-256k.bin"),
        ({"type": "pflash"}, "/fw/x.fd"),
        ({"type": "pflash", "readonly": "no"}, "/fw/x.fd"),
        ({"type": "other", "readonly": "yes"}, "/fw/x.fd"),
    ],
)
def test_a_guest_without_a_chosen_image_has_less_than_was_asked(
    loader: dict[str, str] | None, path: str | None
) -> None:
    assert seen(running(loader, path)) == ("os is not as asked",)


@pytest.mark.parametrize("demand", [None, "bios"])
def test_an_image_that_others_named_fulfils_no_demand(demand: str | None) -> None:
    defined = running(PFLASH)
    live = deepcopy(defined)
    if demand is not None:
        system(defined).set("firmware", demand)

    assert seen(live, defined) == ("os is not as asked",)


def snp() -> Element:
    spec = a_spec("vm-1", IsolationTier.SEV_SNP)
    return domain_xml(spec, virt=VirtType.KVM, runtime="tests")


def test_a_loader_whose_image_is_left_open_may_have_any() -> None:
    made = snp()
    loader = system(made).find("loader")
    assert loader is not None

    loader.set("type", "rom")
    loader.text = "/fw/OVMF.amdsev.fd"
    assert differences(snp(), made) == ()
    del loader.attrib["stateless"]
    assert differences(snp(), made) == ("os is not as asked",)


# --- by libvirt ------------------------------------------------------------------


@pytest.fixture
def conn(host: PrivateLibvirtd) -> Iterator[Any]:
    """A connection to a libvirt that has one image of EFI firmware to choose."""
    libvirt = pytest.importorskip("libvirt")
    images = {}
    for name in ("executable", "nvram-template"):
        path = host.root / f"{name}.fd"
        path.write_bytes(bytes(2 << 20))
        os.chown(path, *([NOBODY] * 2 if os.getuid() == 0 else [-1, -1]))
        images[name] = {"filename": str(path), "format": "raw"}
    descriptor = host.root / "config/qemu/firmware/00-tests.json"
    descriptor.parent.mkdir(parents=True, exist_ok=True)
    target = {"architecture": "x86_64", "machines": ["pc-q35-*"]}
    described = {
        "description": "for tests",
        "interface-types": ["uefi"],
        "mapping": {"device": "flash", **images},
        "targets": [target],
        "features": ["acpi-s3"],
        "tags": [],
    }
    descriptor.write_text(json.dumps(described), "utf-8")
    conn = libvirt.open(host.uri)
    yield conn
    for domain in conn.listAllDomains():
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
    conn.close()
    descriptor.unlink()


def a_host() -> Host:
    libvirt = pytest.importorskip("libvirt")
    return Host(
        error=libvirt.libvirtError,
        runtime="tests",
        validates=True,
        starts_paused=True,
        keeps_state=True,
    )


class TestOnRealGuests:
    pytestmark = real

    def test_what_libvirt_chose_runs(self, conn: Any, host: PrivateLibvirtd) -> None:
        spec = host.spec()
        wanted = demanding(spec)
        domains.define(a_host(), conn, spec, wanted)

        domains.start(a_host(), conn, spec.name, wanted, BOOT, lambda _: None)

        live = parse(conn.lookupByName(spec.name).XMLDesc())
        assert live.findtext("os/loader") == str(host.root / "executable.fd")

    @pytest.mark.parametrize("change", ["no firmware", "a BIOS"])
    def test_what_somebody_took_out_since_keeps_it_from_running(
        self, conn: Any, host: PrivateLibvirtd, change: str
    ) -> None:
        changes: dict[str, Callable[[Element], None]] = {
            "no firmware": lambda _: None,
            "a BIOS": lambda it: set_bios(it, "/usr/share/seabios/bios-256k.bin"),
        }
        spec = host.spec()
        wanted = demanding(spec)
        domains.define(a_host(), conn, spec, wanted)
        changed = deepcopy(wanted)
        del system(changed).attrib["firmware"]
        changes[change](system(changed))
        conn.defineXML(render(changed))

        with pytest.raises(InvalidError, match="os is not as asked"):
            domains.start(a_host(), conn, spec.name, wanted, BOOT, lambda _: None)

        assert not conn.lookupByName(spec.name).isActive()


def set_bios(system: Element, path: str) -> None:
    loader = Element("loader", ROM)
    loader.text = path
    system.insert(1, loader)
