"""The runtime under test: `mcpctl serve` as a process of its own."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from trustfabric.errors import UnavailableError

MCPCTL = (sys.executable, "-m", "trustfabric.main")
START_S = 300.0
"""The first start makes a database cluster."""
STOP_S = 30.0
TOKEN_S = 30 * 86_400
_LISTENING = "listening:"
_LAST = "token:"
"""The last line that it prints when it is up."""


class Runtime:
    """One runtime on one data directory; on a fixed port it comes back where it was."""

    def __init__(self, data_dir: Path, settings: Mapping[str, str]) -> None:
        """Run with the surrounding environment, and `settings` on top of it."""
        self.data_dir = data_dir.absolute()
        self._settings = dict(settings)
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._log: IO[bytes] | None = None
        self._changing = asyncio.Lock()
        self.url = ""
        self.facts: list[str] = []
        """What it printed when it started, a line each."""
        self.kills = 0

    @property
    def log_path(self) -> Path:
        return self.data_dir / "runtime.log"

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.returncode

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Runtime"]:
        """Run it while the block does."""
        try:
            await self.start()
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Return when it listens. UnavailableError with its last words otherwise."""
        self.data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._log = self.log_path.open("ab")
        self._process = await asyncio.create_subprocess_exec(
            *dying_with_us(),
            *MCPCTL,
            *("serve", "--data-dir", str(self.data_dir)),
            env={**os.environ, **self._settings},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(START_S):
                await self._until_listening(self._process)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End it as its service manager would; fine where it does not run."""
        await self._end(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait until it ends by itself; its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def kill_and_restart(self) -> None:
        """`kill -9`, then start again; who comes while that goes on joins it."""
        seen = self.kills
        async with self._changing:
            if self.kills == seen:
                self.kills += 1
                await self._end(signal.SIGKILL)
                await self.start()

    async def token(self, sub: int, role: str) -> str:
        """Mint a bearer token, as an operator does on this machine."""
        process = await asyncio.create_subprocess_exec(
            *MCPCTL,
            *("token", "--sub", str(sub), "--role", role, "--ttl", str(TOKEN_S)),
            *("--data-dir", str(self.data_dir)),
            env={**os.environ, **self._settings},
            stdin=DEVNULL,
            stdout=PIPE,
        )
        out, _ = await process.communicate()
        if process.returncode != 0:
            raise UnavailableError(f"mcpctl token: exit code {process.returncode}")
        return out.decode().strip()

    async def _until_listening(self, process: Process) -> None:
        assert process.stdout is not None
        self.facts = []
        while line := (await process.stdout.readline()).decode().rstrip():
            self.facts.append(line)
            if line.startswith(_LISTENING):
                self.url = line.removeprefix(_LISTENING).strip()
            if line.startswith(_LAST):
                self._reader = asyncio.create_task(_drain(process, self.facts))
                return
        code = await process.wait()
        raise UnavailableError(
            f"the runtime ended with {code} before it listened:\n{self.last_words()}"
        )

    def last_words(self) -> str:
        """Return the end of its log."""
        with contextlib.suppress(OSError):
            return self.log_path.read_text(errors="replace")[-2000:]
        return ""

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(how)
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        if self._log is not None:
            self._log.close()


async def _drain(process: Process, facts: list[str]) -> None:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        facts.append(line.decode().rstrip())


def dying_with_us() -> list[str]:
    """Return what has the kernel stop a program when we are killed, where it can."""
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "TERM", "--"]


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
