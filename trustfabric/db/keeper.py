"""Keeps an embedded PostgreSQL running while somebody uses it, and no longer.

A program of its own, of the standard library alone: it outlives whoever started it,
however that ends. Everyone who uses the server holds a shared lock on `users.lock`,
which the kernel drops with the process; when the keeper is granted that lock for
itself, nobody is left, and it stops the server. A server that dies meanwhile is
started again; one that a killed keeper left behind is adopted. Whoever finds
`keeper.lock` locked need not start a keeper.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOP_S = 60.0
"""After this long a fast shutdown becomes an immediate one: recovered at next start."""

WORKED_S = 2.0
"""A server that lived this long had not failed to start."""

ATTEMPTS = 4
LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True)
class Server:
    pid: int
    descriptor: int
    """A pidfd: names this process, though its number may be given to another."""

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.descriptor)


def main(text: str) -> int:
    order = json.loads(text)
    home = Path(order["home"])
    keeping = os.open(home / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
    if not locked(keeping) or os.fork() != 0:
        return 0  # whoever started us has nobody to reap; the lock stays with the child
    return keep(home, order)


def locked(descriptor: int) -> bool:
    """Whether we are the keeper now; those who only look hold the lock for a moment."""
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.01)  # noqa: TID251
    return False


def keep(home: Path, order: dict[str, Any]) -> int:
    """Return when nobody is left, or when the server can't be started."""
    nobody_left, tell = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, take_no_notice)
    threading.Thread(  # noqa: TID251  this is a program, not a part of the runtime
        target=wait_for_nobody, args=(home / "users.lock", tell), daemon=True
    ).start()
    failures, worked = 0, False
    while failures < ATTEMPTS or worked:
        since = time.monotonic()  # noqa: TID251
        server = adopt(home) or start(home, order)
        if stopped(server, nobody_left):
            return 0
        worked_now = time.monotonic() - since > WORKED_S  # noqa: TID251
        worked = worked or worked_now
        failures = 0 if worked_now else failures + 1
        if ready(nobody_left, min(0.05 * 2**failures, LONGEST_PAUSE_S)):
            return 0
    return 1


def take_no_notice(*_: object) -> None:
    """Live on though a service manager signals every process it finds.

    SIG_IGN would do so too, and the server would inherit it: told to stop before it
    has handlers of its own, it would not hear.
    """


def stopped(server: Server, nobody_left: int) -> bool:
    """Return once the server ended: True if because nobody is left."""
    poll = select.poll()
    poll.register(nobody_left, select.POLLIN)
    poll.register(server.descriptor, select.POLLIN)
    over = nobody_left in {descriptor for descriptor, _ in poll.poll()}
    if over:
        server.signal(signal.SIGINT)
        if not ready(server.descriptor, STOP_S):
            server.signal(signal.SIGQUIT)
    server.reap()
    return over


def ready(descriptor: int, within_s: float) -> bool:
    return bool(select.select([descriptor], [], [], within_s)[0])


def wait_for_nobody(lock: Path, tell: int) -> None:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(tell, b".")


def start(home: Path, order: dict[str, Any]) -> Server:
    forget_strangers(home)
    process = subprocess.Popen(
        order["command"],
        user=order["uid"],
        group=order["gid"],
        extra_groups=order["groups"],
        cwd="/",
        env=order["environment"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        umask=0o077,
    )
    return Server(process.pid, os.pidfd_open(process.pid))


def adopt(home: Path) -> Server | None:
    """Return the server that already serves `home`, if one does."""
    pid = recorded(home)
    if pid is None:
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    if works_in(pid, home / "pg"):
        return Server(pid, descriptor)
    os.close(descriptor)
    return None


def forget_strangers(home: Path) -> None:
    """Remove a postmaster.pid whose number now belongs to an unrelated process.

    PostgreSQL would take that one for a living server and not start. As long as any
    process works in the cluster's folder, the decision is left to PostgreSQL.
    """
    pid = recorded(home)
    if pid is None or not Path(f"/proc/{pid}").exists():
        return
    if not anyone_works_in(home / "pg"):
        (home / "pg" / "postmaster.pid").unlink(missing_ok=True)


def recorded(home: Path) -> int | None:
    try:
        return int((home / "pg" / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None


def anyone_works_in(folder: Path) -> bool:
    numbers = (entry.name for entry in Path("/proc").iterdir())
    return any(works_in(int(n), folder) for n in numbers if n.isdecimal())


def works_in(pid: int, folder: Path) -> bool:
    """Whether the process lives (a zombie does not) with `folder` as its own."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder.resolve()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
