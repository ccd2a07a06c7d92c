"""The shell executor: runs a playbook's program as somebody who may do little.

As root it runs under an account of its own; otherwise in a sandbox (bubblewrap);
where neither can be had it refuses, unless the installation says otherwise. Run data
arrives as TRUSTFABRIC_* variables and in `run.json`, never on a command line.

    exit code 0           success
    69, 75 (sysexits)     dependency-unavailable: worth another try
    77 (sysexits)         policy-denied
    126, 127              playbook-bug: there is no such program, or it can't be run
    anything else         execution-failure
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor as Threads
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import orjson

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
from trustfabric.domain.specs import SECRET_PREFIX, ShellSpec, read_shell
from trustfabric.drivers.confinement import (
    ProgramLimits,
    account_for,
    confinement,
)
from trustfabric.drivers.output import OutputLimits, OutputLines
from trustfabric.drivers.secrets import Masker, Secrets
from trustfabric.drivers.subprocesses import Account, Launch, Program, kill_marked
from trustfabric.errors import InvalidError, NotFoundError, UnsupportedError

DRAIN_S = 1.0
"""How long the pipes may give more once the program has ended."""
KILL_S = 5.0
"""How long a killed process may take to go before we say that we can't prove it."""
CHUNK = 65_536

_EXIT_CODES: Mapping[int, FailureReason] = {
    69: FailureReason.DEPENDENCY_UNAVAILABLE,
    75: FailureReason.DEPENDENCY_UNAVAILABLE,
    77: FailureReason.POLICY_DENIED,
    126: FailureReason.PLAYBOOK_BUG,
    127: FailureReason.PLAYBOOK_BUG,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellSettings:
    """Where and as whom programs run."""

    root: Path
    """Holds a private directory for each attempt of a run."""
    hidden: Path
    """What a sandboxed program may not see: the runtime's data directory."""
    url: Callable[[], str]
    """Where the runtime listens, known once it does."""
    user: str = "nobody"
    unsandboxed: bool = False
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    limits: ProgramLimits = field(default_factory=ProgramLimits)
    output: OutputLimits = field(default_factory=OutputLimits)


class _Ending(Enum):
    EXITED = auto()
    TIMEOUT = auto()
    CANCELLED = auto()


class ShellExecutor:
    """Runs shell playbooks; satisfies the Executor protocol."""

    def __init__(
        self, settings: ShellSettings, secrets: Secrets, threads: Threads
    ) -> None:
        self._settings = settings
        self._secrets = secrets
        self._threads = threads
        place = str(settings.root.absolute()).encode()
        self._installation = hashlib.sha256(place).hexdigest()[:16]

    async def execute(
        self, job: Job, emit: Emit, cancelled: Cancellation
    ) -> ExitStatus:
        """Run the job's program to its end; its failures are values."""
        started = asyncio.get_running_loop().time()

        def ended(
            message: str, reason: FailureReason | None, code: int | None = None
        ) -> ExitStatus:
            spent = asyncio.get_running_loop().time() - started
            return ExitStatus(
                code=code, message=message, failure_reason=reason, duration_s=spent
            )

        try:
            spec = read_shell(job.spec)
            env, masker = self._environment(job, spec)
            self._check_program(spec)
        except (InvalidError, NotFoundError) as error:
            return ended(str(error), FailureReason.PLAYBOOK_BUG)
        folder = self._folder(job)
        try:
            program = Program.start(self._launch(job, spec, env, folder))
        except (OSError, UnsupportedError) as error:
            reason = FailureReason.EXECUTOR_UNAVAILABLE
            return ended(masker.mask(f"the executor can't run: {error}"), reason)
        try:
            ending = await self._attend(program, spec, masker, emit, cancelled)
        finally:
            code = program.destroy()
        await self._clear(folder)
        return ended(*_judged(ending, code, spec))

    async def reap(self, run_id: RunId) -> int:
        """Kill what is left of the run's attempts, and remove their directories."""
        killed = kill_marked(f"{self._installation}-{run_id}")
        for folder in self._settings.root.glob(f"{run_id}-*"):
            await self._clear(folder)
        return killed

    # --- before ---------------------------------------------------------------

    def _environment(self, job: Job, spec: ShellSpec) -> tuple[dict[str, str], Masker]:
        secret = {
            name: self._secrets.resolve(value.removeprefix(SECRET_PREFIX))
            for name, value in spec.env.items()
            if value.startswith(SECRET_PREFIX)
        }
        env = {
            "PATH": self._settings.path,
            "LANG": "C.UTF-8",
            **spec.env,
            **secret,
            **{f"TRUSTFABRIC_{k.upper()}": str(v) for k, v in _facts(job).items()},
            "TRUSTFABRIC_URL": self._settings.url(),
            "TRUSTFABRIC_TOKEN": job.token,
        }
        return env, Masker([job.token, *secret.values()])

    def _check_program(self, spec: ShellSpec) -> None:
        if spec.script is not None or "/" in spec.command[0]:
            return  # whoever runs it finds out, with the rights that it has
        if shutil.which(spec.command[0], path=self._settings.path) is None:
            raise NotFoundError(f"no program {spec.command[0]!r} on EXECUTOR_PATH")

    def _folder(self, job: Job) -> Path:
        return self._settings.root / f"{job.run_id}-{job.lease_epoch}"

    def _launch(
        self, job: Job, spec: ShellSpec, env: dict[str, str], folder: Path
    ) -> Launch:
        """Prepare the private directory and the command line that leads into it."""
        account = account_for(self._settings.user)
        _make_private(folder, account)
        document = {**_facts(job), "payload": job.payload, "metadata": job.metadata}
        _write(folder / "run.json", orjson.dumps(document), 0o400, account)
        if spec.script is not None:
            _write(folder / "script", spec.script.encode(), 0o500, account)
        # Reached by name from the working directory where the way to it is barred.
        here = str(folder) if _is_reachable(folder, account) else "."
        env = {
            **env,
            "HOME": here,
            "TMPDIR": here,
            "TRUSTFABRIC_RUN_DIR": here,
            "TRUSTFABRIC_RUN_FILE": f"{here}/run.json",
        }
        if spec.cwd is not None and here == ".":
            raise UnsupportedError(
                f"{self._settings.user} can't reach {folder} from {spec.cwd}: "
                "make the data directory's parents searchable (mode 0711)"
            )
        return Launch(
            argv=[
                *confinement(
                    self._settings.limits,
                    folder,
                    spec.cwd,
                    hidden=self._settings.hidden,
                    account=account,
                    unsandboxed=self._settings.unsandboxed,
                ),
                *_vector(spec, here),
            ],
            cwd=folder if spec.cwd is None else Path(spec.cwd),
            env=env,
            mark=f"{self._installation}-{job.run_id}-{job.lease_epoch}",
            account=account,
        )

    # --- while it runs ----------------------------------------------------------

    async def _attend(
        self,
        program: Program,
        spec: ShellSpec,
        masker: Masker,
        emit: Emit,
        cancelled: Cancellation,
    ) -> _Ending:
        out, err = await program.outputs()
        async with asyncio.TaskGroup() as tasks:
            pumps = [
                tasks.create_task(self._pump(out, LogStream.STDOUT, masker, emit)),
                tasks.create_task(self._pump(err, LogStream.STDERR, masker, emit)),
            ]
            end = tasks.create_task(program.wait())
            wish = tasks.create_task(_until_set(cancelled))
            done, _ = await asyncio.wait(
                {end, wish},
                timeout=spec.timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            wish.cancel()
            ending = _ending(exited=end in done, wished=wish in done)
            if not end.done():
                program.signal_group(signal.SIGTERM)
                await asyncio.wait({end}, timeout=spec.kill_grace_s)
            program.kill()
            await asyncio.wait({end}, timeout=KILL_S)
            end.cancel()
            await asyncio.wait(pumps, timeout=DRAIN_S)
            program.close_pipes()
        return ending

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        stream: LogStream,
        masker: Masker,
        emit: Emit,
    ) -> None:
        lines = OutputLines(masker, self._settings.output)
        while data := await reader.read(CHUNK):
            for line in lines.feed(data):
                await emit(RemediationLogEvent(stream, line))
        for line in lines.end():
            await emit(RemediationLogEvent(stream, line))

    async def _clear(self, folder: Path) -> None:
        await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: shutil.rmtree(folder, ignore_errors=True)
        )


def _facts(job: Job) -> dict[str, Any]:
    return {
        "run_id": job.run_id,
        "instance_id": job.instance_id,
        "instance_name": job.instance_name,
        "server_id": job.server_id,
        "owner_id": job.owner_id,
        "playbook": job.playbook,
        "attempt": job.attempt,
    }


def _vector(spec: ShellSpec, here: str) -> Sequence[str]:
    if spec.script is None:
        return [*spec.command, *spec.args]
    script = f"{here}/script"
    if spec.script.startswith("#!"):
        return [script, *spec.args]
    return ["/bin/sh", script, *spec.args]


def _make_private(folder: Path, account: Account | None) -> None:
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    if account is not None:
        os.chown(folder, account.uid, account.gid)


def _write(path: Path, content: bytes, mode: int, account: Account | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(content)
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)


def _is_reachable(folder: Path, account: Account | None) -> bool:
    if account is None:
        return True
    return all(
        parent.stat().st_mode & 0o001 or parent.stat().st_uid == account.uid
        for parent in folder.absolute().parents
    )


async def _until_set(cancelled: Cancellation) -> None:
    await cancelled.wait()


def _ending(*, exited: bool, wished: bool) -> _Ending:
    if exited:
        return _Ending.EXITED
    return _Ending.CANCELLED if wished else _Ending.TIMEOUT


def _judged(
    ending: _Ending, code: int | None, spec: ShellSpec
) -> tuple[str, FailureReason | None, int | None]:
    doubt = "" if code is not None else " (it could not be proven to have ended)"
    match ending:
        case _Ending.TIMEOUT:
            message = f"stopped after {spec.timeout_s:g} s{doubt}"
            return message, FailureReason.TIMEOUT, code
        case _Ending.CANCELLED:
            return f"stopped on request{doubt}", FailureReason.CANCELLED, code
        case _Ending.EXITED if code == 0:
            return "exit code 0", None, code
        case _Ending.EXITED:
            reason = FailureReason.EXECUTION_FAILURE
            if code is None or code < 0:
                return f"killed by {_signal_name(code)}", reason, code
            return f"exit code {code}", _EXIT_CODES.get(code, reason), code


def _signal_name(code: int | None) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-(code or 0)).name
    return "a signal"
