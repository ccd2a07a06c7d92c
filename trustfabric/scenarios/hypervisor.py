"""A libvirtd for the demo alone: unprivileged, with QEMU, in a folder of its own.

It touches nothing of the host's own libvirt. The folder's name is short, as sockets
ask for, and made from the data directory's: what outlived a killed demo is found again.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from trustfabric.errors import UnavailableError

PROGRAMS: Final[Mapping[str, str]] = {
    "libvirtd": "libvirt-daemon",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
}
"""What it takes, and the Debian package that has it."""
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOBODY: Final = 65534
_START_S: Final = 20.0
_STOP_S: Final = 5.0
_LOOK_S: Final = 0.05
_DISK_BYTES: Final = 1 << 20
_GUEST: Final = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cfbfcbafb03b080eebaf803b001ee4230c0eebafb03b003eeba0206ed"
    "0d0001efbee87ce86400bd1200ba0006eda900010f859900bafd03eca801741dbaf803ec3c710f84"
    "87003c7074753c72747a3c6674523c627460e83c00fbf44d75cbe80200ebc3bef37ce82100ff0640"
    "7da1407dbb0a0031c931d2f7f3524185c075f6580430e81000e2f8bef97cac84c07405e80300ebf6"
    "c350bafd03eca82074fb58baf803eec3bf204ee8b9ff4f75fabefc7ce8d7ffe970ffbe0f7de8ceff"
    "e967ffba0505b001eee95effb0fee664f4be097de8b7ffba0406b80020effaf447554553542d5550"
    "0d0a007469636b20000d0a00464c4f4f442d444f4e450d0a004f46460d0a006261643afffe802065"
    "73633a1b5b33316d7265641b5b306d2063720d6c660a6e6f206e65776c696e6520617420656e64"
)
"""Prints GUEST-UP, then ticks each second, and obeys the power button.

Its source is tests/data/guest/boot.S.
"""
GUEST: Final = _GUEST.ljust(510, b"\0") + b"\x55\xaa"


@contextmanager
def private_hypervisor(data_dir: Path) -> Iterator[Mapping[str, str]]:
    """Run it while the block does; yields the settings of a runtime that uses it.

    UnavailableError where a program is missing, or it does not start.
    """
    _require_programs()
    home = _home(data_dir)
    process = _start(home)
    try:
        _until_up(home, process)
        yield _settings(home)
    finally:
        _end(home, process)


def _require_programs() -> None:
    lacks = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if lacks:
        packages = " ".join(sorted({PROGRAMS[name] for name in lacks}))
        raise UnavailableError(
            f"not installed: {', '.join(lacks)}; on Debian: apt-get install {packages}"
        )


def _owner() -> int:
    """Return whom it runs as: never as root."""
    return os.getuid() or _NOBODY


def _home(data_dir: Path) -> Path:
    """Make its folder, or take the one that an earlier demo left."""
    mark = hashlib.sha256(str(data_dir.absolute()).encode()).hexdigest()[:8]
    home = Path(f"/tmp/tf-qemu-{_owner()}-{mark}")  # noqa: S108 - its owner is checked
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
        os.chown(home, _owner(), -1)
    found = home.lstat()
    if found.st_uid != _owner() or home.is_symlink() or not home.is_dir():
        raise UnavailableError(f"{home} is somebody else's")
    for name in ("run", "config", "cache", "data", "volumes"):
        (home / name).mkdir(mode=0o700, exist_ok=True)
        os.chown(home / name, _owner(), -1)
    conf = home / "libvirtd.conf"
    conf.write_text('auth_unix_rw = "none"\n', "utf-8")
    base = home / "base.img"
    if not base.exists():
        base.write_bytes(GUEST.ljust(_DISK_BYTES, b"\0"))
    for file in (conf, base):
        os.chown(file, _owner(), -1)
    return home


def _start(home: Path) -> subprocess.Popen[bytes]:
    drop = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    command = [
        *("setpriv", "--pdeathsig", "TERM"),
        *(drop if os.getuid() == 0 else []),
        *("libvirtd", "--config", str(home / "libvirtd.conf")),
    ]
    with (home / "libvirtd.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env={
                "PATH": _PATH,
                "HOME": str(home),
                "XDG_RUNTIME_DIR": str(home / "run"),
                "XDG_CONFIG_HOME": str(home / "config"),
                "XDG_CACHE_HOME": str(home / "cache"),
                "XDG_DATA_HOME": str(home / "data"),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _socket(home: Path) -> Path:
    return home / "run/libvirt/libvirt-sock"


def _until_up(home: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while not _socket(home).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            log = (home / "libvirtd.log").read_text("utf-8", "replace")
            raise UnavailableError(f"libvirtd did not start:\n{log[-2000:]}")
        time.sleep(_LOOK_S)


def _settings(home: Path) -> Mapping[str, str]:
    volume = {
        "path": f"{home}/volumes/{{instance_id}}.qcow2",
        "driver": "qcow2",
        "base_image": f"{home}/base.img",
        "size_gib": 1,
    }
    return {
        "LIBVIRT_CONNECTION_URI": f"qemu+unix:///session?socket={_socket(home)}",
        "LIBVIRT_NETWORK_TEMPLATE": json.dumps({"type": "user"}),
        "LIBVIRT_VOLUME_TEMPLATE": json.dumps(volume),
        "LIBVIRT_VOLUME_ROOTS": str(home),
        "LIBVIRT_DEFAULT_MEMORY_MIB": "32",
        "LIBVIRT_DEFAULT_VCPU_COUNT": "1",
    }


def _end(home: Path, process: subprocess.Popen[bytes]) -> None:
    """End it with all its guests, and leave nothing behind."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    places = ("run/libvirt/qemu/run/*.pid", "**/virtlogd.pid")
    for file in [each for place in places for each in home.glob(place)]:
        with suppress(OSError, ValueError):
            os.kill(int(file.read_text("ascii")), signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)
