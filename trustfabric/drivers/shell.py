"""The shell executor: runs a playbook's program as somebody who may do little.

As root it runs under an account of its own; otherwise in a sandbox (bubblewrap);
where neither can be had it refuses, unless the installation says otherwise. Run data
arrives as TRUSTFABRIC_* variables and in `run.json`, never on a command line. What it
leaves in TRUSTFABRIC_OUTPUT_DIR is kept, `result.json` as its structured result.

    exit code 0           success
    69, 75 (sysexits)     dependency-unavailable: worth another try
    77 (sysexits)         policy-denied
    126, 127              playbook-bug: there is no such program, or it can't be run
    anything else         execution-failure
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trustfabric.domain.executors import (
    Cancellation,
    Emit,
    ExitStatus,
    Job,
    LogStream,
    RemediationLogEvent,
)
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import RunId
from trustfabric.domain.specs import ShellSpec, read_shell
from trustfabric.drivers.attendance import (
    Ended,
    Patience,
    Stopwatch,
    attend,
    signal_name,
    stopped,
    unavailable,
)
from trustfabric.drivers.output import OutputLines
from trustfabric.drivers.secrets import Masker
from trustfabric.drivers.subprocesses import Launch, Program
from trustfabric.drivers.workplace import Place, Workplace
from trustfabric.errors import InvalidError, NotFoundError, UnsupportedError

_EXIT_CODES: Mapping[int, FailureReason] = {
    69: FailureReason.DEPENDENCY_UNAVAILABLE,
    75: FailureReason.DEPENDENCY_UNAVAILABLE,
    77: FailureReason.POLICY_DENIED,
    126: FailureReason.PLAYBOOK_BUG,
    127: FailureReason.PLAYBOOK_BUG,
}


class ShellExecutor:
    """Runs shell playbooks; satisfies the Executor protocol."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace

    async def execute(
        self, job: Job, emit: Emit, cancelled: Cancellation
    ) -> ExitStatus:
        """Run the job's program to its end; its failures are values."""
        watch = Stopwatch()
        try:
            spec = read_shell(job.spec)
            env, secrets = self._workplace.environment(job, spec.env)
            self._check_program(spec)
        except (InvalidError, NotFoundError) as error:
            return watch.ended(str(error), FailureReason.PLAYBOOK_BUG)
        masker = Masker(secrets)
        try:
            place = self._workplace.open(job)
        except (OSError, UnsupportedError) as error:
            return watch.ended(*unavailable(error, masker))
        try:
            program = Program.start(self._launch(job, place, spec, env))
        except (OSError, UnsupportedError) as error:
            await self._workplace.clear(place.folder)
            return watch.ended(*unavailable(error, masker))
        limits = self._workplace.settings.output
        lines = {
            stream: OutputLines(masker, limits)
            for stream in (LogStream.STDOUT, LogStream.STDERR)
        }
        patience = Patience(timeout_s=spec.timeout_s, kill_grace_s=spec.kill_grace_s)
        try:
            ended = await attend(program, patience, lines, emit, cancelled)
            left = await self._workplace.leavings(place, masker)
        finally:
            await self._workplace.clear(place.folder)
        for note in left.notes:
            await emit(RemediationLogEvent(LogStream.SYSTEM, note))
        return replace(
            watch.ended(*_judged(ended, spec)),
            detail={} if left.result is None else {"output": left.result},
            files=tuple(left.files),
        )

    async def reap(self, run_id: RunId) -> int:
        """Kill what is left of the run's attempts, and remove their directories."""
        return await self._workplace.reap(run_id)

    def _check_program(self, spec: ShellSpec) -> None:
        if spec.script is not None or "/" in spec.command[0]:
            return  # whoever runs it finds out, with the rights that it has
        if shutil.which(spec.command[0], path=self._workplace.settings.path) is None:
            raise NotFoundError(f"no program {spec.command[0]!r} on EXECUTOR_PATH")

    def _launch(
        self, job: Job, place: Place, spec: ShellSpec, env: Mapping[str, str]
    ) -> Launch:
        if spec.script is not None:
            place.write("script", spec.script.encode(), 0o500)
        argv = _vector(spec, place.here)
        return self._workplace.launch(job, place, argv, env, spec.cwd)


def _vector(spec: ShellSpec, here: str) -> Sequence[str]:
    if spec.script is None:
        return [*spec.command, *spec.args]
    script = f"{here}/script"
    if spec.script.startswith("#!"):
        return [script, *spec.args]
    return ["/bin/sh", script, *spec.args]


def _judged(
    ended: Ended, spec: ShellSpec
) -> tuple[str, FailureReason | None, int | None]:
    ours = stopped(ended, spec.timeout_s)
    code = ended.code
    if ours is not None:
        return *ours, code
    if code == 0:
        return "exit code 0", None, code
    reason = FailureReason.EXECUTION_FAILURE
    if code is None or code < 0:
        return f"killed by {signal_name(code)}", reason, code
    return f"exit code {code}", _EXIT_CODES.get(code, reason), code
