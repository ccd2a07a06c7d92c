import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from aiohttp import web

from tests.cli.host import TOKEN, Host
from trustfabric.cli.main import command_table, run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Mcpctl: TypeAlias = Callable[..., Coroutine[Any, Any, Done]]
Spawn: TypeAlias = Callable[..., Coroutine[Any, Any, asyncio.subprocess.Process]]


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", host.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield host
    host.stopped.set()
    await runner.cleanup()


@pytest.fixture
def mcpctl(host: Host, capsys: pytest.CaptureFixture[str]) -> Mcpctl:
    """Run a command line in this process, against the host."""

    async def call(*args: str, url: str | None = None) -> Done:
        options = ["--host", url or host.url, "--token", TOKEN, "--timeout", "5"]
        code = await asyncio.to_thread(run, command_table(), [*options, *args])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
async def spawn(host: Host) -> AsyncIterator[Spawn]:
    """Start `mcpctl` as a process of its own, as an operator does."""
    started: list[asyncio.subprocess.Process] = []

    async def start(*args: str, **environ: str) -> asyncio.subprocess.Process:
        base = {k: v for k, v in os.environ.items() if not k.startswith("MCP_HOST")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "trustfabric.main", *args),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env=base | {"MCP_HOST_URL": host.url, "MCP_HOST_TOKEN": TOKEN} | environ,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()
