"""A libvirtd of our own, unprivileged, with real QEMU and the 512-byte guest.

It runs in a directory of its own and touches nothing of the host; as root it drops
to `nobody`. The guest prints GUEST-UP, ticks, obeys shutdown, and on one byte of its
serial port panics (p), resets (r), floods (f) or sends bytes that are no text (b).
"""

import asyncio
import grp
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tests.drivers.links import BOOT, a_spec
from trustfabric.domain.vms import NetworkTemplate, VmSpec, VolumeTemplate
from trustfabric.drivers.libvirt import LibvirtProvisioner
from trustfabric.drivers.libvirt_xml import parse

NOBODY = 65534
NEEDED = ("libvirtd", "virtlogd", "qemu-system-x86_64", "as", "ld", "setpriv")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNREAPED = """
import ctypes, os, signal, subprocess, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
daemon = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGUSR1, lambda *_: None)
while True:
    signal.pause()
    os.waitid(os.P_ALL, 0, os.WEXITED)
"""
"""A parent as lazy as the PID 1 of many containers: what dies below it stays a zombie,
until SIGUSR1 has it reap one."""
_GUEST = Path(__file__).parent.parent / "data/guest/boot.S"


def missing() -> list[str]:
    """Name the programs that this host lacks."""
    return [name for name in NEEDED if shutil.which(name, path=_PATH) is None]


@dataclass
class PrivateLibvirtd:
    """Started by `start`, ended with all its guests by `stop`."""

    root: Path
    groups: tuple[str, ...] = ()
    """Which its user belongs to, beside its own."""
    reaped: bool = True
    """Somebody reaps its guests; otherwise `process` is who should."""
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(
        cls,
        *,
        groups: tuple[str, ...] = (),
        sasl: bool = False,
        reaped: bool = True,
    ) -> Self:
        """Make one that asks nobody who he is, or everybody by SASL."""
        root = Path(tempfile.mkdtemp(prefix="tfq", dir="/tmp"))
        host = cls(root, groups, reaped)
        for name in ("run", "config", "cache", "data", "consoles"):
            (root / name).mkdir()
        auth = "sasl" if sasl else "none"
        (root / "libvirtd.conf").write_text(
            f'auth_unix_rw = "{auth}"\nkeepalive_interval = -1\n', "utf-8"
        )
        (root / "config/libvirt.conf").write_text(
            f"mech_list: scram-sha-256\nsasldb_path: {root}/sasl.db\n", "utf-8"
        )
        host._build_guest()
        if os.getuid() == 0:
            for path in (root, *root.iterdir()):
                os.chown(path, NOBODY, NOBODY)
        return host

    @property
    def socket(self) -> Path:
        return self.root / "run/libvirt/libvirt-sock"

    @property
    def uri(self) -> str:
        return f"qemu+unix:///session?socket={self.socket}"

    def spec(self) -> VmSpec:
        """Return a VM that boots the guest, with a disk of its own."""
        spec = a_spec()
        disk = self.root / f"{spec.name}.img"
        shutil.copy(self.root / "boot.img", disk)
        os.truncate(disk, 1 << 20)  # the BIOS boots from no smaller one
        if os.getuid() == 0:
            os.chown(disk, NOBODY, NOBODY)
        return replace(
            spec,
            network=NetworkTemplate(type="user", name=None),
            volume=VolumeTemplate(path=str(disk), driver="raw"),
            attestation_kind="unknown",
        )

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Start it; at the end it is gone, with all that it made."""
        try:
            self.start()
            yield self
        finally:
            self.stop()

    def set_password(self, user: str, password: str) -> None:
        """Give a user of SASL a password; links that are open stay so."""
        database = self.root / "sasl.db"
        where = ["-f", str(database), "-a", "libvirt", "-u", "vm"]
        subprocess.run(
            ["saslpasswd2", "-p", "-c", *where, user],
            env={"PATH": _PATH},
            input=password.encode(),
            check=True,
        )
        if os.getuid() == 0:
            os.chown(database, NOBODY, NOBODY)

    def start(self) -> None:
        numbers = [str(grp.getgrnam(name).gr_gid) for name in self.groups]
        groups = f"--groups={','.join(numbers)}" if numbers else "--clear-groups"
        drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", groups]
        command = ["libvirtd", "--config", str(self.root / "libvirtd.conf")]
        parent = [] if self.reaped else [sys.executable, "-c", _UNREAPED]
        with (self.root / "libvirtd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*parent, *(drop if os.getuid() == 0 else []), *command],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(1000):
            if self._answers():
                return
            time.sleep(0.02)
        raise TimeoutError("libvirtd made no socket")

    def kill(self) -> None:
        """End the daemon at once; its guests run on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def reap(self) -> None:
        """Have the lazy parent reap one that died."""
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def qemu_of(self, name: str) -> int:
        """Return the process that runs a guest."""
        pid = self.root / f"run/libvirt/qemu/run/{name}.pid"
        return int(pid.read_text("ascii"))

    def kill_virtlogd(self) -> None:
        for pid in self.root.rglob("virtlogd.pid"):
            end(pid)

    def stop(self) -> None:
        for pid in self.root.glob("run/libvirt/qemu/run/*.pid"):
            end(pid)
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            with suppress(ProcessLookupError):  # its own pid file may be among those
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.kill_virtlogd()
        shutil.rmtree(self.root, ignore_errors=True)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            log = (self.root / "libvirtd.log").read_text("utf-8", "replace")
            raise RuntimeError(f"libvirtd ended: {log[-2000:]}")
        with closing(socket.socket(socket.AF_UNIX)) as probe:
            # It is there a moment before anybody listens, and after a daemon died.
            return probe.connect_ex(str(self.socket)) == 0

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": str(self.root),
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "XDG_CONFIG_HOME": str(self.root / "config"),
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "XDG_DATA_HOME": str(self.root / "data"),
            "SASL_CONF_PATH": str(self.root / "config"),
        }

    def _build_guest(self) -> None:
        built, image = self.root / "boot.o", self.root / "boot.img"
        link = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary"]
        for command in (
            ["as", "--32", str(_GUEST), "-o", str(built)],
            ["ld", *link, "-o", str(image), str(built)],
        ):
            subprocess.run(command, check=True, env={"PATH": _PATH})


def end(pid_file: Path) -> None:
    """Kill whom it names; it may be old, and its number somebody else's by now."""
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text("ascii"))
        name = Path(f"/proc/{pid}/comm").read_text("utf-8")
        if name.startswith(("libvirtd", "virtlogd", "qemu-system")):
            os.kill(pid, signal.SIGKILL)


async def a_running_vm(driver: LibvirtProvisioner, host: PrivateLibvirtd) -> VmSpec:
    spec = host.spec()
    await driver.define(spec)
    await driver.start(spec.name, BOOT)
    await until_printed(driver, spec.name, "GUEST-UP")
    return spec


async def until_printed(driver: LibvirtProvisioner, name: str, line: str) -> None:
    async with asyncio.timeout(30):
        while line not in (await driver.console_tail(name, 2000)).lines:
            await asyncio.sleep(0.05)


def type_into(host: PrivateLibvirtd, name: str, key: bytes) -> None:
    """Send a byte to the guest's serial port, past libvirt."""
    import libvirt

    conn = libvirt.open(host.uri)
    source = parse(conn.lookupByName(name).XMLDesc(0)).find("devices/serial/source")
    conn.close()
    assert source is not None
    Path(source.attrib["path"]).write_bytes(key)
