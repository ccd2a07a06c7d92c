"""QEMU driven by our own process, without any daemon: who dies leaves its guests."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drivers.private_libvirtd import PrivateLibvirtd, end, missing

pytest.importorskip("libvirt")

AS_NOBODY = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
"""libvirt as root wants users that a package makes; in such a space we aren't root."""


def refused() -> list[str]:
    if lacks := missing():
        return lacks
    if (
        os.getuid() == 0
        and subprocess.run([*AS_NOBODY, "true"], check=False).returncode
    ):
        return ["user namespaces"]
    return []


pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(refused()), reason=f"missing: {refused()}"),
]


@pytest.fixture
def root() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="tfe", dir="/tmp"))  # sockets' names are short
    built = PrivateLibvirtd.make()
    shutil.copy(built.root / "boot.img", place / "boot.img")
    built.stop()
    yield place
    for pid in place.rglob("*.pid"):
        if pid.name != "driver.pid":
            end(pid)
    shutil.rmtree(place, ignore_errors=True)


def child(action: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(AS_NOBODY if os.getuid() == 0 else []),
            *(sys.executable, "-m", "tests.drivers.embedded_child", action, str(root)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_guest_outlives_its_process_and_the_next_one_adopts_it(root: Path) -> None:
    first = child("boot", root)
    assert said(first) == "up"
    kill(first)

    heir = child("adopt", root)

    assert [said(heir) for _ in range(3)] == ["running", "prints", "0"]
    heir.communicate(timeout=30)
    assert heir.returncode == 0
    assert not list(root.rglob("run/qemu/embedded-1.pid"))


def test_a_twin_on_the_same_root_is_refused(root: Path) -> None:
    first = child("boot", root)
    assert said(first) == "up"

    twin = child("adopt", root)

    assert said(twin).startswith("refused: opening qemu:///embed")
    assert first.poll() is None
    twin.communicate()
    kill(first)
    heir = child("adopt", root)  # the lock went with who held it
    assert said(heir) == "running"
    heir.communicate()
