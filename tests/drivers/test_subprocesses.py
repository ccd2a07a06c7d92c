"""Programs in their own group: the end is the process's, and nothing survives it."""

import asyncio
import os
import signal
import time
from pathlib import Path

from trustfabric.drivers.subprocesses import Launch, Program, kill_marked, marked


def a_launch(tmp_path: Path, script: str, mark: str = "test-1-1") -> Launch:
    return Launch(
        argv=["/bin/sh", "-c", script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        mark=f"{os.getpid()}{tmp_path.name}-{mark}",
    )


async def test_the_output_and_the_exit_code_come_back(tmp_path: Path) -> None:
    program = Program.start(a_launch(tmp_path, "echo out; echo err >&2; exit 3"))
    out, err = await program.outputs()

    await program.wait()
    texts = await out.read(), await err.read()

    assert program.destroy() == 3
    assert texts == (b"out\n", b"err\n")


async def test_a_grandchild_that_holds_the_pipe_does_not_delay_the_end(
    tmp_path: Path,
) -> None:
    program = Program.start(a_launch(tmp_path, "sleep 60 & exit 0"))
    out, _ = await program.outputs()
    before = time.monotonic()

    await program.wait()
    await program.kill()
    rest = await asyncio.wait_for(out.read(), 10)

    assert program.destroy() == 0
    assert rest == b""
    assert time.monotonic() - before < 20


async def test_a_program_that_ignores_term_is_killed(tmp_path: Path) -> None:
    program = Program.start(
        a_launch(tmp_path, "trap '' TERM; echo ready; while :; do sleep 1; done")
    )
    out, _ = await program.outputs()
    await out.readline()

    program.signal_group(signal.SIGTERM)

    assert program.destroy() == -signal.SIGKILL


async def test_what_left_the_group_with_setsid_is_killed_by_its_mark(
    tmp_path: Path,
) -> None:
    launch = a_launch(tmp_path, "setsid sleep 60 & echo $!; wait")
    program = Program.start(launch)
    out, _ = await program.outputs()
    await out.readline()
    async with asyncio.timeout(10):
        while len(marked(launch.mark)) < 2:  # setsid is still becoming sleep
            await asyncio.sleep(0.01)

    program.destroy()

    assert marked(launch.mark) == []


async def test_marks_of_other_runs_are_left_alone(tmp_path: Path) -> None:
    # They stop rather than sleep: what becomes `sleep` has no mark for an instant.
    mine = a_launch(tmp_path, "echo on; kill -STOP $$", "7-1")
    other = a_launch(tmp_path, "echo on; kill -STOP $$", "70-1")
    programs = [Program.start(mine), Program.start(other)]
    for program in programs:
        out, _ = await program.outputs()
        await out.readline()

    killed = kill_marked(mine.mark.removesuffix("-1"))
    await programs[0].wait()

    assert killed == 1
    assert marked(other.mark) == [programs[1].pid]
    assert [program.destroy() for program in programs] == [-9, -9]


async def test_who_becomes_another_program_again_and_again_is_killed_at_once(
    tmp_path: Path,
) -> None:
    """In the midst of execve a process shows no environment, so no mark either."""
    script = tmp_path / "again"
    script.write_text('#!/bin/sh\nexec "$0"\n', "utf-8")
    script.chmod(0o755)
    for number in range(40):
        launch = a_launch(tmp_path, f"exec {script}", f"9-{number}")
        program = Program.start(launch)

        assert kill_marked(launch.mark) == 1

        await asyncio.wait_for(program.wait(), 10)
        assert program.destroy() == -signal.SIGKILL
