"""What keeps a program small: an account or a sandbox that is not ours, and limits."""

import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path

from trustfabric.drivers.subprocesses import Account
from trustfabric.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramLimits:
    """What the system lets one program use."""

    memory_bytes: int = 4 << 30
    file_bytes: int = 256 << 20
    open_files: int = 1024
    processes: int = 512
    """Of its account, or of its sandbox."""


def account_for(user: str) -> Account | None:
    """Return whom to become; None where we are nobody who could."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise UnsupportedError(f"EXECUTOR_USER: no account {user!r}") from None
    if entry.pw_uid == 0:
        raise UnsupportedError("EXECUTOR_USER: programs never run as root")
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def confinement(
    limits: ProgramLimits,
    folder: Path,
    cwd: str | None,
    *,
    hidden: Path,
    account: Account | None,
    unsandboxed: bool,
) -> list[str]:
    """Return the front part of the command line, which the program's own follows.

    UnsupportedError where neither an account nor a sandbox can be had.
    """
    bounds = (
        f"--as={limits.memory_bytes}",
        f"--fsize={limits.file_bytes}",
        f"--nofile={limits.open_files}",
        "--core=0",
    )
    processes = f"--nproc={limits.processes}"
    if account is not None:
        return _bounded(*bounds, processes)
    if shutil.which("bwrap") is not None:
        return [*_sandbox(folder, cwd, hidden), *_bounded(*bounds, processes)]
    if unsandboxed:
        # The account is ours: its other processes would count.
        return _bounded(*bounds)
    raise UnsupportedError(
        "programs never run with the runtime's own rights: install bubblewrap, "
        "or set EXECUTOR_UNSANDBOXED=true"
    )


def _bounded(*limits: str) -> list[str]:
    """Return the part that sets limits, gains no rights and dies with us."""
    privileges = ["--no-new-privs", "--pdeathsig", "KILL", "--"]
    return [_tool("prlimit"), *limits, "--", _tool("setpriv"), *privileges]


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UnsupportedError(f"{name} is not installed")
    return found


def _sandbox(folder: Path, cwd: str | None, hidden: Path) -> list[str]:
    """Return bubblewrap's part: everything read-only, our data and home not there."""
    covers = [
        word
        for place in dict.fromkeys([hidden.absolute(), Path("~").expanduser()])
        if place.is_dir()
        for word in ("--tmpfs", str(place))
    ]
    return [
        _tool("bwrap"), "--die-with-parent", "--unshare-user", "--unshare-pid",
        "--unshare-ipc", "--unshare-uts", "--ro-bind", "/", "/", "--dev", "/dev",
        "--proc", "/proc", "--tmpfs", "/tmp", *covers,  # noqa: S108  inside it
        "--bind", str(folder), str(folder), "--chdir", cwd or str(folder), "--",
    ]  # fmt: skip
