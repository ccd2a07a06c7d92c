"""The Erlang side of benchmarks/actors.py, where Erlang is installed."""

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("actors.erl")


async def measure(
    tells: int, asks: int, spawns: int, restarts: int
) -> dict[str, float]:
    """Compile and run it; without Erlang, say so and return nothing."""
    if shutil.which("erlc") is None or shutil.which("erl") is None:
        print("erl is not installed: measured without Erlang", file=sys.stderr)
        return {}
    with tempfile.TemporaryDirectory() as home:
        await _run("erlc", "-o", home, str(SOURCE))
        counts = [str(count) for count in (tells, asks, spawns, restarts)]
        told = await _run(
            *("erl", "-noshell", "+P", "2000000", "-pa", home),
            *("-s", "actors", "main", "-extra", *counts),
        )
    figures = (line.rsplit(" ", 1) for line in told.splitlines())
    return {f"{name} erlang": float(value) for name, value in figures}


async def _run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    return told.decode()
