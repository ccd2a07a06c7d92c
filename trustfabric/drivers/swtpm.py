"""Software TPMs of the demo fleet: one swtpm per VM, and the guest agent that asks it.

A start is a boot: registers begin at zero, while the seeds (so the attestation key)
stay. The evidence comes from `trustfabric-agent`, as it would from inside a guest;
only the key's enrolment is the host's own work, as it is with a real vTPM.
"""

import asyncio
import re
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from trustfabric.agent.tpm import Tpm, TpmError
from trustfabric.agent.transport import TpmUnreachableError, open_tpm
from trustfabric.domain.evidence.keys import EnrolledKey
from trustfabric.domain.evidence.model import Reject
from trustfabric.drivers import companions
from trustfabric.drivers.agents import ask_at, listens
from trustfabric.errors import InvalidError, UnavailableError, UnsupportedError

ENDORSER = "swtpm"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SOCKET = "tpm.sock"
_CONTROL = "ctrl.sock"
_AGENT_SOCKET = "agent.sock"
_ARGUMENTS = (
    "socket",
    "--tpm2",
    "--tpmstate",
    "dir=.,mode=0600",
    "--server",
    f"type=unixio,path={_SOCKET},mode=0600",
    "--ctrl",
    f"type=unixio,path={_CONTROL},mode=0600",
    "--flags",
    "not-need-init,startup-clear",
    "--log",
    "file=swtpm.log,truncate",
)
"""Paths are relative to the state folder: socket addresses must be short."""
_READY_S = 5.0
_POLL_S = 0.01

Answer = TypeVar("Answer")


class SoftTpms:
    """Starts, asks and stops software TPMs by name. Blocking work is the executor's."""

    def __init__(self, root: Path, executor: Executor, within_s: float = 5.0) -> None:
        """Keep states below `root`; a TPM has `within_s` to answer one question."""
        self._root = root
        self._executor = executor
        self._within_s = within_s
        self._processes: dict[str, list[Process]] = {}
        self._changing: dict[str, asyncio.Lock] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def start(self, name: str) -> None:
        """Boot it afresh, whether it runs or not; makes its state at the first time."""
        command = _command()
        folder = self._folder(name)
        async with self._lock(name):
            await self._end(name)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in (_SOCKET, _CONTROL, _AGENT_SOCKET):
                (folder / leftover).unlink(missing_ok=True)
            running = self._processes[name] = []
            running.append(await companions.start(command, folder))
            await self._ready(name, running[-1], lambda: self._starts_up(name))
            running.append(await companions.start(self._agent(), folder))
            await self._ready(
                name, running[-1], lambda: listens(folder / _AGENT_SOCKET)
            )

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
        processes = self._processes.get(name, [])
        return bool(processes) and all(one.returncode is None for one in processes)

    async def enroll(self, name: str) -> EnrolledKey:
        """Return the public half of its attestation key; the TPM must be running."""

        def derive(tpm: Tpm) -> EnrolledKey:
            with tpm.attestation_key() as key:
                return EnrolledKey.from_tpmt(key.public, ENDORSER)

        return await self._ask(name, derive)

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        """Return what its agent shows; UnavailableError: nothing."""
        path = self._folder(name) / _AGENT_SOCKET
        try:
            async with asyncio.timeout(self._within_s):
                return await ask_at(name, path, extra_data)
        except TimeoutError:
            raise UnavailableError(f"agent of {name}: no answer in time") from None

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

    async def _ready(
        self, name: str, process: Process, is_up: Callable[[], Awaitable[bool]]
    ) -> None:
        try:
            async with asyncio.timeout(_READY_S):
                while not await is_up():
                    if process.returncode is not None:
                        raise UnavailableError(
                            f"software TPM {name}: ended with {process.returncode} "
                            f"at once; see the logs in {self._folder(name)}"
                        )
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise UnavailableError(f"software TPM {name}: not up in time") from None

    async def _starts_up(self, name: str) -> bool:
        """Tell whether it answers: its socket is there a moment before it listens."""
        if not (self._folder(name) / _SOCKET).exists():
            return False
        try:
            await self._ask(name, lambda tpm: tpm.startup())
        except UnavailableError:
            return False
        return True

    async def _end(self, name: str) -> None:
        for process in reversed(self._processes.pop(name, [])):
            await companions.end(process)
        folder = self._folder(name)
        await self._blocking(lambda: companions.kill_leftovers(folder))

    def _agent(self) -> list[str]:
        """Return the command of `trustfabric-agent`, of the installation we run in."""
        return [
            *(sys.executable, "-P", "-m", "trustfabric.agent.main"),
            *("--timeout", str(self._within_s), "--tpm", _SOCKET),
            *("serve", "--socket", _AGENT_SOCKET),
        ]

    async def _blocking(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InvalidError(f"{name!r} can't name a software TPM")
        return self._root / name

    def _lock(self, name: str) -> asyncio.Lock:
        return self._changing.setdefault(name, asyncio.Lock())


def _command() -> list[str]:
    swtpm = shutil.which("swtpm")
    if swtpm is None:
        raise UnsupportedError(
            "software TPMs need swtpm: install the Debian package swtpm"
        )
    return [swtpm, *_ARGUMENTS]
