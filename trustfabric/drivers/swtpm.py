"""Software TPMs of the demo fleet: one swtpm process per VM, on one state folder each.

A start is a boot: registers begin at zero, while the seeds (so the attestation key)
stay. The processes die with the runtime; one that survived it is found by its state
folder at the next start and killed.
"""

import asyncio
import contextlib
import os
import re
import select
import shutil
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from trustfabric.agent.evidence import tpm_evidence
from trustfabric.agent.tpm import Tpm, TpmError
from trustfabric.agent.transport import TpmUnreachableError, open_tpm
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import Reject
from trustfabric.errors import InvalidError, UnavailableError, UnsupportedError

ENDORSER = "swtpm"
QUOTED = tuple(range(9))

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SOCKET = "tpm.sock"
_ARGUMENTS = (
    "socket",
    "--tpm2",
    "--tpmstate",
    "dir=.,mode=0600",
    "--server",
    f"type=unixio,path={_SOCKET},mode=0600",
    "--ctrl",
    "type=unixio,path=ctrl.sock,mode=0600",
    "--flags",
    "not-need-init,startup-clear",
    "--log",
    "file=swtpm.log,truncate",
)
"""Paths are relative to the state folder: socket addresses must be short."""
_READY_S = 5.0
_POLL_S = 0.01
_GRACE_S = 2.0

Answer = TypeVar("Answer")


class SoftTpms:
    """Starts, asks and stops software TPMs by name. Blocking work is the executor's."""

    def __init__(self, root: Path, executor: Executor, within_s: float = 5.0) -> None:
        """Keep states below `root`; a TPM has `within_s` to answer one question."""
        self._root = root
        self._executor = executor
        self._within_s = within_s
        self._processes: dict[str, Process] = {}
        self._changing: dict[str, asyncio.Lock] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def start(self, name: str) -> None:
        """Boot it afresh, whether it runs or not; makes its state at the first time."""
        command = _command()
        folder = self._folder(name)
        async with self._lock(name):
            await self._end(name)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in (_SOCKET, "ctrl.sock"):
                (folder / leftover).unlink(missing_ok=True)
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=folder,
                env={"PATH": os.defpath},
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                start_new_session=True,
            )
            self._processes[name] = process
            await self._ready(name, process)

    async def stop(self, name: str) -> None:
        """Switch it off; fine when it was."""
        async with self._lock(name):
            await self._end(name)

    async def remove(self, name: str) -> None:
        """Switch it off and forget its seeds: its key is gone for ever."""
        async with self._lock(name):
            await self._end(name)
            await self._blocking(
                lambda: shutil.rmtree(self._folder(name), ignore_errors=True)
            )

    async def close(self) -> None:
        """Switch all of them off."""
        for name in list(self._processes):
            await self.stop(name)

    def running(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.returncode is None

    async def enroll(self, name: str) -> EnrolledKey:
        """Return the public half of its attestation key; the TPM must be running."""

        def derive(tpm: Tpm) -> EnrolledKey:
            with tpm.attestation_key() as key:
                return EnrolledKey.from_tpmt(key.public, ENDORSER)

        return await self._ask(name, derive)

    async def collect(
        self, name: str, extra_data: bytes, pcrs: Sequence[int] = QUOTED
    ) -> bytes:
        """Return the evidence document of a quote; UnavailableError: none came."""
        return await self._ask(name, lambda tpm: tpm_evidence(tpm, extra_data, pcrs))

    async def extend(self, name: str, index: int, digest: bytes) -> None:
        """Measure something into a register of the sha256 bank."""
        await self._ask(name, lambda tpm: tpm.pcr_extend(index, "sha256", digest))

    async def _ask(self, name: str, question: Callable[[Tpm], Answer]) -> Answer:
        path = self._folder(name) / _SOCKET

        def ask() -> Answer:
            with open_tpm(path, self._within_s) as transport:
                return question(Tpm(transport))

        lock = self._asking.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(self._within_s), lock:
                return await self._blocking(ask)
        except (TpmUnreachableError, TpmError, Reject, TimeoutError) as error:
            raise UnavailableError(
                f"software TPM {name}: {str(error) or 'no answer in time'}"
            ) from error

    async def _ready(self, name: str, process: Process) -> None:
        path = self._folder(name) / _SOCKET
        try:
            async with asyncio.timeout(_READY_S):
                while not (path.exists() and await self._starts_up(name)):
                    if process.returncode is not None:
                        raise UnavailableError(
                            f"software TPM {name}: ended with {process.returncode} "
                            f"at once; see {path.with_name('swtpm.log')}"
                        )
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise UnavailableError(f"software TPM {name}: not up in time") from None

    async def _starts_up(self, name: str) -> bool:
        """Tell whether it answers: its socket is there a moment before it listens."""
        try:
            await self._ask(name, lambda tpm: tpm.startup())
        except UnavailableError:
            return False
        return True

    async def _end(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            await _terminate(process)
        folder = self._folder(name)
        await self._blocking(lambda: _kill_leftovers(folder))

    async def _blocking(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InvalidError(f"{name!r} can't name a software TPM")
        return self._root / name

    def _lock(self, name: str) -> asyncio.Lock:
        return self._changing.setdefault(name, asyncio.Lock())


def _command() -> list[str]:
    """Let the kernel end it with us, where setpriv is there to ask for that."""
    swtpm = shutil.which("swtpm")
    if swtpm is None:
        raise UnsupportedError(
            "software TPMs need swtpm: install the Debian package swtpm"
        )
    setpriv = shutil.which("setpriv")
    prefix = [] if setpriv is None else [setpriv, "--pdeathsig", "KILL", "--"]
    return [*prefix, swtpm, *_ARGUMENTS]


async def _terminate(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_GRACE_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _kill_leftovers(folder: Path) -> None:
    """Kill a swtpm that an earlier runtime started on this state."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _works_in(entry, folder):
            _kill(int(entry.name), folder)


def _works_in(process: Path, folder: Path) -> bool:
    try:
        return (process / "comm").read_text().strip() == "swtpm" and (
            process / "cwd"
        ).readlink() == folder.resolve()
    except OSError:
        return False


def _kill(pid: int, folder: Path) -> None:
    """Hold on to the process first: its number may be another's a moment later."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _works_in(Path("/proc") / str(pid), folder):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], _GRACE_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
