"""The demo's own libvirtd: it starts, is what the settings say, and leaves nothing."""

import subprocess
from pathlib import Path

import pytest

from trustfabric.config import load_settings
from trustfabric.errors import UnavailableError
from trustfabric.scenarios import hypervisor
from trustfabric.scenarios.hypervisor import GUEST, private_hypervisor

libvirt = pytest.importorskip("libvirt")

SOURCE = Path(__file__).parents[1] / "data/guest/boot.S"


def test_the_guest_is_what_its_source_makes(tmp_path: Path) -> None:
    built, image = tmp_path / "boot.o", tmp_path / "boot.img"
    link = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary"]

    subprocess.run(["as", "--32", SOURCE, "-o", built], check=True)
    subprocess.run(["ld", *link, "-o", image, built], check=True)

    assert image.read_bytes() == GUEST


@pytest.mark.libvirt
@pytest.mark.slow
def test_it_runs_while_it_is_needed_and_leaves_nothing(tmp_path: Path) -> None:
    with private_hypervisor(tmp_path) as settings:
        home = Path(settings["LIBVIRT_VOLUME_ROOTS"])
        load_settings({"TRUSTFABRIC_DATA_DIR": str(tmp_path), **settings})
        conn = libvirt.open(settings["LIBVIRT_CONNECTION_URI"])
        assert conn.listAllDomains() == []
        conn.close()

    assert not home.exists()


def test_what_is_missing_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypervisor, "_PATH", str(tmp_path))

    with (
        pytest.raises(UnavailableError, match="apt-get install libvirt-daemon"),
        private_hypervisor(tmp_path),
    ):
        pass
