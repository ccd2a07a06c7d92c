"""The product as its operators run it: `mcpctl serve` in a process of its own."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.bench import Bench

RUNTIME = "bench".ljust(16, "0")
"""What a served runtime is called in `runtime_owner`, after `rt-`."""

START_S = 60.0
POLL_S = 0.02
_FOREIGN = ("MCP_", "LIBVIRT_", "DATABASE_", "JWT_", "TRUSTFABRIC_", "BIND_")


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    process: asyncio.subprocess.Process
    data_dir: Path

    @property
    def token(self) -> str:
        return (self.data_dir / "operator-token").read_text()

    def log(self) -> str:
        return (self.data_dir / "log").read_text()

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """Return the processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    async def ready(self, within_s: float) -> None:
        """Return when requests are answered. TimeoutError."""
        async with asyncio.timeout(within_s), aiohttp.ClientSession() as session:
            while not await self._answers(session):
                assert self.process.returncode is None, self.log()[-2_000:]
                await asyncio.sleep(POLL_S)

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def terminate(self) -> None:
        """Send SIGTERM and return when it has exited."""
        self.process.send_signal(signal.SIGTERM)
        await self.process.wait()


@asynccontextmanager
async def serving(
    bench: Bench, database_url: str, *, ready: bool = True, **settings: str
) -> AsyncIterator[Served]:
    """Serve a database while the block runs; entered when requests are answered.

    Where `ready` is false it is entered at once, and `Served.ready` waits for that.
    """
    data_dir = bench.folder()
    (data_dir / "runtime-id").write_text(RUNTIME)
    port = _free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    with (data_dir / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trustfabric.main", "serve"),
            env={
                **kept,
                "DATABASE_URL": database_url,
                "TRUSTFABRIC_DATA_DIR": str(data_dir),
                "BIND_PORT": str(port),
                **settings,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    served = Served(f"http://127.0.0.1:{port}", process, data_dir)
    try:
        if ready:
            await served.ready(START_S)
        yield served
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
