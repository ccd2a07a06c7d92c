"""Programs in a process group of their own: started, read, and surely ended.

A program's end is the end of its process, never of its pipes: a grandchild may hold
those for ever. The process is left a zombie until its whole group was killed, so
that its number can't be somebody else's by then. What left the group with setsid is
found by the mark in its environment.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

MARK = "TRUSTFABRIC_MARK"
_KILL_ROUNDS = 20
_LOOKS, _EXEC_S = 50, 0.001
"""How often a process in execve is looked at, and the pause between, in seconds."""
_KERNEL_THREAD = 0x00200000
"""PF_KTHREAD, of the flags in /proc/PID/stat."""
_SANDBOX = "bwrap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whom a program runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start, and where."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    mark: str
    """Names the program's processes, all over the host; put into `env` too."""
    account: Account | None = None


class Program:
    """One started program; `destroy` must be called, whatever happens."""

    def __init__(self, process: subprocess.Popen[bytes], mark: str) -> None:
        self._process = process
        self._mark = mark
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._note_end)
        self._pipes: list[asyncio.ReadTransport] = []
        self._is_gone = False
        """It was killed, and nothing of it was left to start anything more."""

    @classmethod
    def start(cls, launch: Launch) -> Self:
        """Start it; OSError where the system refuses."""
        account = launch.account
        process = subprocess.Popen(
            list(launch.argv),
            cwd=launch.cwd,
            env={**launch.env, MARK: launch.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            umask=0o077,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
        return cls(process, launch.mark)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def outputs(self) -> tuple[asyncio.StreamReader, asyncio.StreamReader]:
        """Return the readers of stdout and stderr."""
        return (
            await self._reader(self._process.stdout),
            await self._reader(self._process.stderr),
        )

    async def wait(self) -> None:
        """Return when the process has ended."""
        await self._ended.wait()

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to every process of the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def terminate(self) -> None:
        """Ask each process of the group to end, but the sandbox around them.

        That one dies of TERM at once and takes the others along, grace or not.
        """
        for pid in await asyncio.to_thread(marked, self._mark):
            with contextlib.suppress(OSError):
                if os.getpgid(pid) == self.pid and _name_of(pid) != _SANDBOX:
                    os.kill(pid, signal.SIGTERM)

    async def kill(self) -> None:
        """Kill every process of it, also those that left the group."""
        self.signal_group(signal.SIGKILL)
        _, self._is_gone = await asyncio.to_thread(_kill_all, self._mark)

    def close_pipes(self) -> None:
        """End the outputs, whoever holds their other ends."""
        for pipe in self._pipes:
            pipe.close()

    def destroy(self) -> int | None:
        """Kill what is left of it and let go of it.

        Return its exit code (negative: the signal that ended it), None where even
        KILL did not end it yet. Quick after `kill`: the loop waits here.
        """
        if not self._is_gone:
            self.signal_group(signal.SIGKILL)
            _, self._is_gone = _kill_all(self._mark)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.close_pipes()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None and not self._pipes:
                stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=1.0)
        return None

    def left(self) -> int:
        """Return how many of its processes are still there, zombies aside."""
        return 0 if self._is_gone else len(marked(self._mark))

    def _note_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._ended.set()

    async def _reader(self, pipe: IO[bytes] | None) -> asyncio.StreamReader:
        assert pipe is not None
        reader = asyncio.StreamReader()
        transport, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        self._pipes.append(transport)
        return reader


def marked(prefix: str) -> list[int]:
    """Return the processes whose mark is `prefix` or goes on from it after a dash.

    One that is just becoming another program shows none, so it is looked at again.
    Every process of the host is looked at: nothing for the event loop's thread.
    """
    exact = f"{MARK}={prefix}".encode()
    found: list[int] = []
    unclear = [one.name for one in os.scandir("/proc") if one.name.isdecimal()]
    for look in range(_LOOKS):
        if look:
            time.sleep(_EXEC_S)  # noqa: TID251  an execve tells nobody of its end
        carries = {pid: _carries(pid, exact) for pid in unclear}
        found += [int(pid) for pid, carried in carries.items() if carried]
        unclear = [pid for pid, carried in carries.items() if carried is None]
        if not unclear:
            break
    return found


def kill_marked(prefix: str) -> int:
    """Kill every process so marked, and those they fork meanwhile.

    Return how many were killed. As `marked`, nothing for the event loop's thread.
    """
    count, _ = _kill_all(prefix)
    return count


def _kill_all(prefix: str) -> tuple[int, bool]:
    """Return how many were killed, and whether none is left."""
    killed: set[int] = set()
    for _ in range(_KILL_ROUNDS):
        alive = [pid for pid in marked(prefix) if pid != os.getpid()]
        if not alive:
            return len(killed), True
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    return len(killed), False


def _name_of(pid: int) -> str:
    return _read(str(pid), "comm").decode(errors="replace").strip()


def _carries(pid: str, exact: bytes) -> bool | None:
    """Whether a process is so marked; None: execve has it between two programs."""
    try:
        environment = _read(pid, "environ")
        if not environment:
            if not _read(pid, "cmdline"):
                return None if _is_program(pid) else False
            environment = _read(pid, "environ")  # it has just begun
    except OSError:
        return False  # it ended, or is not ours to look into
    return exact in environment and any(
        entry == exact or entry.startswith(exact + b"-")
        for entry in environment.split(b"\0")
    )


def _is_program(pid: str) -> bool:
    """Tell a living program from a zombie and from a thread of the kernel."""
    state, *fields = _read(pid, "stat").rpartition(b")")[2].split()
    return state not in {b"Z", b"X"} and not int(fields[5]) & _KERNEL_THREAD


def _read(pid: str, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123  quick
        return file.read()
