"""Processes that stand beside a VM, each at work in a folder of that VM.

They die with the runtime. One that survived it is found by the mark in its environment,
which names its folder.
"""

import asyncio
import contextlib
import os
import select
import shutil
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MARK: Final = "TRUSTFABRIC_BESIDE"
_GRACE_S = 2.0


async def start(command: Sequence[str], folder: Path) -> Process:
    """Start it in its folder; what it says of errors is in a file there."""
    with (folder / f"{Path(command[0]).name}.err").open("wb") as said:
        return await asyncio.create_subprocess_exec(
            *_dying_with_us(),
            *command,
            cwd=folder,
            env={"PATH": os.defpath, MARK: _name_of(folder)},
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=said,
            start_new_session=True,
        )


async def end(process: Process) -> None:
    """Ask it to end, and kill it where it doesn't."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_GRACE_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def kill_leftovers(folder: Path) -> None:
    """Kill what an earlier runtime started in this folder. Blocks."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_of(entry, folder):
            _kill(int(entry.name), folder)


def _dying_with_us() -> list[str]:
    """Let the kernel end it with us, where setpriv is there to ask for that."""
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "KILL", "--"]


def _name_of(folder: Path) -> str:
    return os.fspath(folder.resolve())


def _is_of(process: Path, folder: Path) -> bool:
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{MARK}={_name_of(folder)}".encode() in environment


def _kill(pid: int, folder: Path) -> None:
    """Hold on to the process first: its number may be another's a moment later."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _is_of(Path("/proc") / str(pid), folder):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], _GRACE_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
