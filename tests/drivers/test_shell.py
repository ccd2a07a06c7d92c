"""The shell executor on real programs: what they may, what is kept, how they end."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from trustfabric.domain.executors import (
    ExitStatus,
    Job,
    LogStream,
    RemediationLogEvent,
)
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId
from trustfabric.drivers.confinement import ProgramLimits
from trustfabric.drivers.output import OutputLimits
from trustfabric.drivers.secrets import Secrets
from trustfabric.drivers.shell import ShellExecutor
from trustfabric.drivers.subprocesses import marked
from trustfabric.drivers.workplace import ProgramSettings, Workplace, sweep

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
TOKEN = "token-of-this-run-0123456789"
STAY = "kill -STOP $$"
"""Stays until it is killed. What becomes `sleep` has no mark for an instant."""


@pytest.fixture
def root() -> Iterator[Path]:
    """A data directory that other accounts can pass through."""
    place = Path(tempfile.mkdtemp(prefix="tf-shell-"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def settings(root: Path) -> ProgramSettings:
    return ProgramSettings(
        root=root / "runs",
        hidden=root,
        url=lambda: "http://127.0.0.1:3000",
        unsandboxed=True,
    )


@pytest_asyncio.fixture
async def executor(settings: ProgramSettings) -> AsyncIterator[ShellExecutor]:
    with ThreadPoolExecutor(1) as threads:
        secrets = Secrets({"db": "hunter2-hunter2"})
        yield ShellExecutor(Workplace(settings, secrets, threads))


def with_settings(executor: ShellExecutor, **changes: Any) -> ShellExecutor:
    place = executor._workplace
    settings = replace(place.settings, **changes)
    return ShellExecutor(Workplace(settings, place.secrets, place._threads))


def a_job(run_id: int = 1, **spec: Any) -> Job:
    return Job(
        run_id=RunId(run_id),
        instance_id=InstanceId(2),
        instance_name="vm-2; rm -rf /",
        server_id=ServerId(3),
        owner_id=OwnerId(7),
        playbook="fix",
        attempt=1,
        lease_epoch=1,
        spec=spec,
        payload={"text": "{{7*7}} $(id)"},
        metadata={"tag": "t"},
        token=TOKEN,
    )


class Log:
    def __init__(self) -> None:
        self.events: list[RemediationLogEvent] = []
        self.grew = asyncio.Event()

    async def emit(self, event: RemediationLogEvent) -> None:
        self.events.append(event)
        self.grew.set()

    def lines(self, stream: LogStream = LogStream.STDOUT) -> list[str]:
        return [event.message for event in self.events if event.stream is stream]


async def execute(executor: ShellExecutor, **spec: Any) -> tuple[ExitStatus, Log]:
    log = Log()
    status = await executor.execute(a_job(**spec), log.emit, asyncio.Event())
    return status, log


async def test_a_program_that_ends_well_is_a_success(executor: ShellExecutor) -> None:
    status, log = await execute(executor, script="echo hello; echo oops >&2")

    assert (status.code, status.failure_reason) == (0, None)
    assert log.lines() == ["hello"]
    assert log.lines(LogStream.STDERR) == ["oops"]


async def test_s10_arguments_reach_the_program_as_they_are(
    executor: ShellExecutor,
) -> None:
    wild = ["; rm -rf /", "$(id)", "a\nb", "--upload-pack", "*"]

    _, log = await execute(executor, command=["printf", "%s|"], args=wild)

    assert "\n".join(log.lines()) == "; rm -rf /|$(id)|a\nb|--upload-pack|*|"


async def test_s11_run_data_comes_as_variables_and_a_file_and_is_never_rendered(
    executor: ShellExecutor,
) -> None:
    status, log = await execute(
        executor,
        script='cat "$TRUSTFABRIC_RUN_FILE"; echo; echo "$TRUSTFABRIC_INSTANCE_NAME"',
    )

    assert status.code == 0, log.events
    assert '"payload":{"text":"{{7*7}} $(id)"}' in log.lines()[0]
    assert TOKEN not in log.lines()[0]
    assert log.lines()[1] == "vm-2; rm -rf /"


async def test_the_environment_is_minimal(executor: ShellExecutor) -> None:
    _, log = await execute(executor, command="env", env={"EXTRA": "1"})

    names = {line.partition("=")[0] for line in log.lines()}
    ours = {name for name in names if name.startswith("TRUSTFABRIC_")}
    assert names - ours - {"PWD"} == {"PATH", "LANG", "HOME", "TMPDIR", "EXTRA"}
    assert "TRUSTFABRIC_URL=http://127.0.0.1:3000" in log.lines()


@as_root
async def test_as_root_the_program_is_somebody_else(executor: ShellExecutor) -> None:
    _, log = await execute(executor, script="id -un; id -Gn; umask; stat -c %a .")

    assert log.lines() == ["nobody", "nogroup", "0077", "700"]


@as_root
async def test_as_root_it_may_not_read_what_is_ours(
    executor: ShellExecutor, root: Path
) -> None:
    (root / "jwt-secret").write_text("secret")
    (root / "jwt-secret").chmod(0o600)

    status, _ = await execute(executor, command=["cat", str(root / "jwt-secret")])

    assert status.failure_reason is FailureReason.EXECUTION_FAILURE


@as_root
async def test_a_data_directory_behind_a_barred_one_works_too(
    executor: ShellExecutor, root: Path
) -> None:
    root.chmod(0o700)

    status, log = await execute(
        executor, script='grep -c run_id "$TRUSTFABRIC_RUN_FILE"; pwd >/dev/null'
    )

    assert (status.code, log.lines()) == (0, ["1"]), log.events


@as_root
async def test_an_unknown_account_is_no_executor(executor: ShellExecutor) -> None:
    status, _ = await execute(with_settings(executor, user="nobody-here"), command="id")

    assert status.failure_reason is FailureReason.EXECUTOR_UNAVAILABLE


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", FailureReason.EXECUTION_FAILURE),
        ("exit 75", FailureReason.DEPENDENCY_UNAVAILABLE),
        ("exit 77", FailureReason.POLICY_DENIED),
        ("no-such-program-at-all", FailureReason.PLAYBOOK_BUG),
        ("kill -SEGV $$", FailureReason.EXECUTION_FAILURE),
    ],
)
async def test_how_it_ends_names_the_reason(
    executor: ShellExecutor, script: str, reason: FailureReason
) -> None:
    status, _ = await execute(executor, script=script)

    assert status.failure_reason is reason


@pytest.mark.parametrize(
    "spec",
    [
        {"command": "no-such-program-at-all"},
        {"command": "env", "env": {"X": "secret:absent"}},
        {},
    ],
)
async def test_what_can_not_be_run_is_the_playbooks_fault(
    executor: ShellExecutor, spec: dict[str, Any]
) -> None:
    status, _ = await execute(executor, **spec)

    assert status.failure_reason is FailureReason.PLAYBOOK_BUG


async def test_s17_secrets_are_masked_whole_split_and_encoded(
    executor: ShellExecutor,
) -> None:
    status, log = await execute(
        executor,
        env={"PASSWORD": "secret:db"},
        script=(
            'echo "whole $PASSWORD"; printf hunter2-; sleep 0.1; printf "hunter2\\n";'
            ' echo "$TRUSTFABRIC_TOKEN"; printf %s "$PASSWORD" | base64;'
            ' echo "$PASSWORD" >&2; exit 1'
        ),
    )

    text = repr(log.events) + repr(status)
    assert "hunter2" not in text
    assert TOKEN not in text
    assert log.lines()[:3] == ["whole ***", "***", "***"]
    assert log.lines()[3].startswith("***")


async def test_s17_secrets_are_on_no_command_line(executor: ShellExecutor) -> None:
    _, log = await execute(
        executor,
        env={"PASSWORD": "secret:db"},
        script="tr '\\0' ' ' < /proc/$$/cmdline; tr '\\0' ' ' < /proc/$PPID/cmdline",
    )

    assert "***" not in "".join(log.lines())


async def test_a_program_that_takes_too_long_is_stopped(
    executor: ShellExecutor,
) -> None:
    status, log = await execute(
        executor, script="echo on; sleep 60", timeout_seconds=0.3
    )

    assert status.failure_reason is FailureReason.TIMEOUT
    assert log.lines() == ["on"]
    assert status.duration_s < 30


async def test_a_cancel_is_term_first_then_kill(executor: ShellExecutor) -> None:
    log, cancelled = Log(), asyncio.Event()
    job = a_job(
        script="trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.05; done"
    )
    async with asyncio.TaskGroup() as tasks:
        work = tasks.create_task(executor.execute(job, log.emit, cancelled))
        await log.grew.wait()
        cancelled.set()

    assert work.result().failure_reason is FailureReason.CANCELLED
    assert log.lines() == ["on", "bye"]


async def test_s24_what_ignores_term_and_left_the_group_is_gone(
    executor: ShellExecutor,
) -> None:
    status, _ = await execute(
        executor,
        script=(
            "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 60' &"
            " (sleep 60 &); exec >&- 2>&-; while :; do sleep 0.1; done"
        ),
        timeout_seconds=0.3,
        kill_grace_seconds=0.2,
    )

    assert status.failure_reason is FailureReason.TIMEOUT
    assert marked(f"{executor._workplace.installation}-1") == []


@as_root
async def test_s24_a_fork_bomb_ends_with_its_run(executor: ShellExecutor) -> None:
    bounded = with_settings(executor, limits=ProgramLimits(processes=40))

    status, _ = await execute(
        bounded,
        script="f() { f | f & }; f 2>/dev/null; sleep 60",
        timeout_seconds=0.5,
        kill_grace_seconds=0.1,
    )

    assert status.failure_reason is not None
    assert marked(f"{executor._workplace.installation}-1") == []


async def test_s24_files_are_bounded(executor: ShellExecutor) -> None:
    bounded = with_settings(executor, limits=ProgramLimits(file_bytes=4096))

    status, _ = await execute(
        bounded, script="exec dd if=/dev/zero of=big bs=8192 count=1 2>/dev/null"
    )

    assert status.failure_reason is FailureReason.EXECUTION_FAILURE


async def test_s24_memory_is_bounded(executor: ShellExecutor) -> None:
    bounded = with_settings(executor, limits=ProgramLimits(memory_bytes=64 << 20))

    status, _ = await execute(bounded, script="head -c 200m /dev/zero | tail -c 100m")

    assert status.failure_reason is not None


@pytest.mark.slow
async def test_s24_processor_time_is_bounded(executor: ShellExecutor) -> None:
    bounded = with_settings(executor, limits=ProgramLimits(cpu_s=1))

    status, _ = await execute(bounded, script="while :; do :; done")

    assert status.failure_reason is FailureReason.EXECUTION_FAILURE
    assert status.duration_s < 30


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_program_that_can_not_be_killed_is_not_said_to_have_ended(
    executor: ShellExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses the signals, as it does for what became another user."""
    kill = os.kill
    monkeypatch.setattr("os.killpg", lambda pid, number: None)
    monkeypatch.setattr("os.kill", lambda pid, number: None)
    monkeypatch.setattr("trustfabric.drivers.attendance.KILL_S", 0.1)

    status, log = await execute(
        executor, script="echo $$; exec sleep 60", timeout_seconds=0.2,
        kill_grace_seconds=0.1,
    )  # fmt: skip

    assert status.failure_reason is FailureReason.TIMEOUT
    assert status.code is None
    assert "could not be proven to have ended" in status.message
    for pid in marked(f"{executor._workplace.installation}-1"):
        kill(pid, 9)
    assert log.lines()


async def test_what_it_leaves_is_kept_and_its_result_is_told(
    executor: ShellExecutor,
) -> None:
    status, log = await execute(
        executor,
        env={"PASSWORD": "secret:db"},
        script=(
            'cd "$TRUSTFABRIC_OUTPUT_DIR"; echo "x $PASSWORD" > a.txt;'
            " ln -s /etc/passwd b; echo '{\"fixed\": 2}' > result.json; exit 1"
        ),
    )

    assert status.failure_reason is FailureReason.EXECUTION_FAILURE
    assert [(f.name, f.content) for f in status.files] == [
        ("a.txt", b"x ***\n"),
        ("result.json", b'{"fixed": 2}\n'),
    ]
    assert status.detail == {"output": {"fixed": 2}}
    (note,) = log.lines(LogStream.SYSTEM)
    assert note.startswith("artifact b: not kept")


async def test_s24_output_is_bounded_and_says_so(executor: ShellExecutor) -> None:
    small = OutputLimits(line_chars=10, lines=3, chars=100)
    bounded = with_settings(executor, output=small)

    status, log = await execute(
        bounded, script="printf 'a\\377\\0b\\n%050d\\n' 0; seq 1 100000"
    )

    assert status.code == 0
    assert log.lines()[0] == "a\ufffd\ufffdb"
    assert log.lines()[1] == "0000000000 … [line cut]"
    assert log.lines()[3] == "[output limit reached: the rest is dropped]"
    assert "more bytes were dropped" in log.lines()[4]
    assert len(log.lines()) == 5


async def test_the_private_directory_does_not_outlive_the_run(
    executor: ShellExecutor,
) -> None:
    await execute(executor, script="touch here")

    assert list(executor._workplace.settings.root.iterdir()) == []


async def test_when_the_execution_itself_is_cancelled_the_program_is_gone(
    executor: ShellExecutor,
) -> None:
    log = Log()
    job = a_job(script="echo on; setsid sleep 60 & sleep 60")
    work = asyncio.ensure_future(executor.execute(job, log.emit, asyncio.Event()))
    await log.grew.wait()

    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work

    assert marked(f"{executor._workplace.installation}-1") == []
    assert list(executor._workplace.settings.root.iterdir()) == []


async def test_reaping_kills_what_a_dead_runtime_left(
    executor: ShellExecutor, settings: ProgramSettings
) -> None:
    log = Log()
    job = a_job(run_id=5, script=f"echo on; {STAY}")
    work = asyncio.ensure_future(executor.execute(job, log.emit, asyncio.Event()))
    await log.grew.wait()
    with ThreadPoolExecutor(1) as threads:
        successor = ShellExecutor(Workplace(settings, Secrets(), threads))

        killed = await successor.reap(RunId(5))

    assert killed >= 1
    assert (await work).failure_reason is FailureReason.EXECUTION_FAILURE
    assert await executor.reap(RunId(5)) == 0


async def test_a_start_sweeps_what_is_left_of_any_run(executor: ShellExecutor) -> None:
    """Another runtime may have ended the run meanwhile: nobody would ask for it."""
    log, root = Log(), executor._workplace.settings.root
    job = a_job(run_id=7, script=f"(setsid sh -c 'echo on; {STAY}' &); {STAY}")
    work = asyncio.ensure_future(executor.execute(job, log.emit, asyncio.Event()))
    await log.grew.wait()

    killed = sweep(root)

    assert killed >= 2
    assert (await work).failure_reason is FailureReason.EXECUTION_FAILURE
    assert marked(executor._workplace.installation) == []
    assert list(root.iterdir()) == []
    assert sweep(root) == sweep(root / "absent") == 0


async def test_without_account_or_sandbox_nothing_is_run(
    executor: ShellExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name, path=None: path and name)

    status, _ = await execute(with_settings(executor, unsandboxed=False), command="id")

    assert status.failure_reason is FailureReason.EXECUTOR_UNAVAILABLE
    assert "EXECUTOR_UNSANDBOXED" in status.message
    assert list(executor._workplace.settings.root.iterdir()) == []


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
async def test_in_the_sandbox_our_data_is_not_there(
    executor: ShellExecutor, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    (root / "jwt-secret").write_text("secret")

    status, log = await execute(
        with_settings(executor, unsandboxed=False),
        script=f"ls -A {root}; test -e {root}/jwt-secret || touch /etc/x || echo shut",
    )

    assert status.code == 0, log.events
    assert log.lines() == ["runs", "shut"]


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
async def test_in_the_sandbox_too_a_cancel_is_term_first(
    executor: ShellExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    log, cancelled = Log(), asyncio.Event()
    job = a_job(
        script="trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.05; done"
    )
    async with asyncio.TaskGroup() as tasks:
        work = tasks.create_task(
            with_settings(executor, unsandboxed=False).execute(job, log.emit, cancelled)
        )
        await log.grew.wait()
        cancelled.set()

    assert work.result().failure_reason is FailureReason.CANCELLED
    assert log.lines() == ["on", "bye"]


_HOST = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tests.drivers.test_shell import STAY, a_job
from trustfabric.drivers.secrets import Secrets
from trustfabric.drivers.shell import ShellExecutor
from trustfabric.drivers.workplace import ProgramSettings, Workplace

async def emit(event):
    print(event.message, flush=True)

async def main(root):
    settings = ProgramSettings(
        root=root / "runs", hidden=root, url=lambda: "", unsandboxed=True
    )
    with ThreadPoolExecutor(1) as threads:
        executor = ShellExecutor(Workplace(settings, Secrets(), threads))
        job = a_job(script=f"(sh -c 'echo on; {STAY}' &); {STAY}")
        await executor.execute(job, emit, asyncio.Event())

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.slow
async def test_a_runtime_killed_with_9_takes_the_program_along_and_the_rest_is_reaped(
    executor: ShellExecutor, root: Path
) -> None:
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOST, str(root), stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    assert await host.stdout.readline() == b"on\n"
    before = marked(f"{executor._workplace.installation}-1")

    host.kill()
    await host.wait()
    async with asyncio.timeout(30):
        while len(marked(f"{executor._workplace.installation}-1")) > 1:
            await asyncio.sleep(0.01)
    await executor.reap(RunId(1))

    assert len(before) >= 2
    assert marked(f"{executor._workplace.installation}-1") == []
    assert list((root / "runs").iterdir()) == []
