"""What keeps a program small: an account or a sandbox that is not ours, and limits."""

import os
import pwd
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trustfabric.drivers.subprocesses import Account
from trustfabric.errors import UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramLimits:
    """What the system lets one program use."""

    memory_bytes: int = 4 << 30
    cpu_s: int = 86_400
    """Of one process."""
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


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a program's command line begins with, and who starts it."""

    front: list[str]
    account: Account | None
    """Whom to become before it; the front part may do that itself."""


def confinement(  # noqa: PLR0913  each names itself
    limits: ProgramLimits,
    folder: Path,
    cwd: str | None,
    *,
    hidden: Path,
    account: Account | None,
    unsandboxed: bool,
    needs: Sequence[Path] = (),
) -> Confinement:
    """Return what the program's own command line follows.

    What it `needs` it can read, wherever that is. UnsupportedError where neither an
    account nor a sandbox can be had.
    """
    bounds = (
        f"--as={limits.memory_bytes}",
        f"--cpu={limits.cpu_s}",
        f"--fsize={limits.file_bytes}",
        f"--nofile={limits.open_files}",
        "--core=0",
    )
    processes = f"--nproc={limits.processes}"
    if account is not None and (not needs or is_reachable((*needs, folder), account)):
        return Confinement(_bounded(*bounds, processes), account)
    if shutil.which("bwrap") is not None:
        sandbox = _sandbox(folder, cwd, hidden, needs, account)
        return Confinement(
            [*sandbox, *_bounded(*bounds, processes, become=account)], None
        )
    if account is not None:
        raise UnsupportedError(
            f"EXECUTOR_USER can't reach {needs[0]}: install bubblewrap, or make it "
            "readable for everybody"
        )
    if unsandboxed:
        # The account is ours: its other processes would count.
        return Confinement(_bounded(*bounds), None)
    raise UnsupportedError(
        "programs never run with the runtime's own rights: install bubblewrap, "
        "or set EXECUTOR_UNSANDBOXED=true"
    )


def is_reachable(places: Sequence[Path], account: Account | None) -> bool:
    """Whether every folder on the way to each place lets the account through."""
    if account is None:
        return True
    return all(
        parent.stat().st_mode & 0o001 or parent.stat().st_uid == account.uid
        for place in places
        for parent in place.absolute().parents
    )


def _bounded(*limits: str, become: Account | None = None) -> list[str]:
    """Return the part that sets limits, gains no rights and dies with us."""
    rights = ["--no-new-privs", "--pdeathsig", "KILL", "--"]
    if become is not None:
        ids = [f"--reuid={become.uid}", f"--regid={become.gid}", "--clear-groups"]
        rights = [*ids, *rights]
    return [_tool("prlimit"), *limits, "--", _tool("setpriv"), *rights]


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UnsupportedError(f"{name} is not installed")
    return found


def _sandbox(
    folder: Path,
    cwd: str | None,
    hidden: Path,
    needs: Sequence[Path],
    account: Account | None,
) -> list[str]:
    """Return bubblewrap's part: everything read-only, our data and home not there."""
    covered = [
        place
        for place in dict.fromkeys([hidden.absolute(), Path("~").expanduser()])
        if place.is_dir()
    ]
    covers = [word for place in covered for word in ("--tmpfs", str(place))]
    # What is made on the way to a mount has our umask, and so would bar others.
    ways = [
        word
        for place in (*needs, folder)
        for parent in reversed(place.absolute().parents)
        if any(above in parent.parents for above in (Path("/tmp"), *covered))  # noqa: S108
        for word in ("--perms", "0755", "--dir", str(parent))
    ]
    shown = [word for place in needs for word in ("--ro-bind", str(place), str(place))]
    return [
        _tool("bwrap"), "--die-with-parent", "--unshare-pid", "--unshare-ipc",
        "--unshare-uts", *([] if account is not None else ["--unshare-user"]),
        "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
        "--perms", "1777", "--tmpfs", "/dev/shm",  # noqa: S108  inside it
        "--perms", "1777", "--tmpfs", "/tmp", *covers, *ways, *shown,  # noqa: S108  inside it
        "--bind", str(folder), str(folder), "--chdir", cwd or str(folder), "--",
    ]  # fmt: skip
