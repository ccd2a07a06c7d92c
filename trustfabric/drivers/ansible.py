"""The ansible executor: plays through ansible-runner, in a process of their own.

    everything ok, at least one host      success
    a task failed on a host               execution-failure
    a host could not be reached           transient-infrastructure
    YAML, roles, modules, no host         playbook-bug: what it names is not here
    no ansible-runner or ansible-core     executor-unavailable

The run's data is the extra variable `trustfabric`, marked unsafe: a text of it is
never taken for a template. Secrets are in files of the private directory, which the
host process's account alone may read.
"""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import yaml

from trustfabric.domain.ansible_spec import RUN_VARIABLE, AnsibleSpec, read_ansible
from trustfabric.domain.executors import (
    Cancellation,
    Emit,
    ExitStatus,
    Job,
    LogStream,
    ProducedFile,
    RemediationLogEvent,
)
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import RunId
from trustfabric.domain.spec_fields import SECRET_PREFIX
from trustfabric.drivers import ansible_host
from trustfabric.drivers.ansible_events import EventLines
from trustfabric.drivers.attendance import (
    Ended,
    Lines,
    Patience,
    Stopwatch,
    attend,
    signal_name,
    stopped,
    unavailable,
)
from trustfabric.drivers.leavings import Leavings
from trustfabric.drivers.output import OutputLines
from trustfabric.drivers.secrets import Masker, Secrets
from trustfabric.drivers.subprocesses import Launch, Program
from trustfabric.drivers.workplace import Place, Workplace, run_document
from trustfabric.errors import InvalidError, NotFoundError, UnsupportedError

NEEDED = ("ansible_runner", "ansible")
EXTRA = "pip install 'trustfabric[ansible]'"
_LOCALHOST = (
    'localhost ansible_connection=local ansible_python_interpreter="'
    '{{ ansible_playbook_python }}"\n'
)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A playbook with its secrets, before there is a place for them."""

    spec: AnsibleSpec
    env: Mapping[str, str] = field(repr=False)
    extra: Mapping[str, Any] = field(repr=False)
    key: str | None = field(repr=False)
    masker: Masker


class AnsibleExecutor:
    """Runs ansible playbooks; satisfies the Executor protocol."""

    def __init__(self, workplace: Workplace, python: str = sys.executable) -> None:
        self._workplace = workplace
        self._python = python

    async def execute(
        self, job: Job, emit: Emit, cancelled: Cancellation
    ) -> ExitStatus:
        """Run the job's plays to their end; their failures are values."""
        watch = Stopwatch()
        if lacking := [name for name in NEEDED if not importlib.util.find_spec(name)]:
            return watch.ended(
                f"{lacking[0]} is not installed: {EXTRA}",
                FailureReason.EXECUTOR_UNAVAILABLE,
            )
        try:
            ready = self._ready(job)
        except (InvalidError, NotFoundError) as error:
            return watch.ended(str(error), FailureReason.PLAYBOOK_BUG)
        spec, masker = ready.spec, ready.masker
        try:
            place = self._workplace.open(job, _needs(self._python))
        except (OSError, UnsupportedError) as error:
            return watch.ended(*unavailable(error, masker))
        try:
            _furnish(place, ready, run_document(job))
            program = Program.start(self._launch(job, place, ready.env))
        except (OSError, UnsupportedError) as error:
            await self._workplace.clear(place.folder)
            return watch.ended(*unavailable(error, masker))
        limits = self._workplace.settings.output
        events = EventLines(masker, limits)
        lines: Mapping[LogStream, Lines] = {
            LogStream.STDOUT: events,
            LogStream.STDERR: OutputLines(masker, limits),
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
            watch.ended(*_judged(ended, events, spec)),
            detail=_detail(events, left),
            files=(_record_of(events), *left.files),
        )

    async def reap(self, run_id: RunId) -> int:
        """Kill what is left of the run's attempts, and remove their directories."""
        return await self._workplace.reap(run_id)

    def _ready(self, job: Job) -> _Ready:
        """Read the playbook and resolve its secrets. InvalidError, NotFoundError."""
        spec = read_ansible(job.spec)
        env, secrets = self._workplace.environment(job, spec.env)
        resolved = _Resolved(self._workplace.secrets, secrets)
        extra, key = resolved.of(spec.extra_vars), resolved.key(spec.ssh_key)
        return _Ready(spec, env, extra, key, Masker(secrets))

    def _launch(self, job: Job, place: Place, env: Mapping[str, str]) -> Launch:
        tools = str(Path(self._python).parent)
        argv = [self._python, "-I", str(Path(ansible_host.__file__).resolve())]
        return self._workplace.launch(
            job,
            place,
            argv,
            {
                "ANSIBLE_NOCOLOR": "1",
                # By the shell there, whose account here has no home of its own.
                "ANSIBLE_REMOTE_TMP": "$HOME/.ansible/tmp",
                "ANSIBLE_RETRY_FILES_ENABLED": "0",
                **env,
                "PATH": f"{tools}:{env['PATH']}",
                "ANSIBLE_HOME": f"{place.here}/.ansible",
                "ANSIBLE_LOCAL_TEMP": f"{place.here}/.ansible/tmp",
            },
        )


def _needs(python: str) -> tuple[Path, ...]:
    """Return what an interpreter consists of, and the program that it runs."""
    program = Path(ansible_host.__file__).resolve()
    inside = (Path(python).parent.parent, Path(sys.base_prefix).resolve())
    return tuple(dict.fromkeys((*inside, program.parent)))


class _Resolved:
    """Puts secrets where their references are, and remembers each."""

    def __init__(self, secrets: Secrets, used: list[str]) -> None:
        self._secrets = secrets
        self._used = used

    def of(self, value: Any) -> Any:
        match value:
            case str() if value.startswith(SECRET_PREFIX):
                return _Unsafe(self._resolve(value.removeprefix(SECRET_PREFIX)))
            case Mapping():
                return {key: self.of(one) for key, one in value.items()}
            case list():
                return [self.of(one) for one in value]
            case _:
                return value

    def key(self, name: str | None) -> str | None:
        """Return a private key as OpenSSH reads it: its last line ends."""
        return None if name is None else f"{self._resolve(name)}\n"

    def _resolve(self, name: str) -> str:
        secret = self._secrets.resolve(name)
        self._used.append(secret)
        return secret


class _Unsafe(str):
    """A text that ansible must not take for a template."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  PyYAML's
        return True


_Dumper.add_representer(
    _Unsafe,
    lambda dumper, text: dumper.represent_scalar("!unsafe", str(text), style='"'),
)


def _unsafe(value: Any) -> Any:
    match value:
        case str():
            return _Unsafe(value)
        case Mapping():
            return {key: _unsafe(one) for key, one in value.items()}
        case list() | tuple():
            return [_unsafe(one) for one in value]
        case _:
            return value


def _furnish(place: Place, ready: _Ready, told: Mapping[str, Any]) -> None:
    """Write ansible-runner's private data directory."""
    spec, extra = ready.spec, {**ready.extra, RUN_VARIABLE: _unsafe(told)}
    if ready.key is not None:
        key = place.write("ssh_key", ready.key.encode())
        extra = {"ansible_ssh_private_key_file": key, **extra}
    for folder in ("env", "inventory", "project"):
        place.make_folder(folder)
    place.write("env/extravars", _yaml(extra))
    if isinstance(spec.inventory, Mapping):
        place.write("inventory/hosts.yml", _yaml(spec.inventory))
    else:
        place.write("inventory/hosts", (spec.inventory or _LOCALHOST).encode())
    if spec.plays is not None:
        text = spec.plays if isinstance(spec.plays, str) else None
        plays = _yaml(spec.plays) if text is None else text.encode()
        place.write("project/site.yml", plays)
    place.write(
        "runner.json",
        orjson.dumps(
            {
                "playbook": spec.entry or "site.yml",
                "project_dir": spec.project_dir or f"{place.here}/project",
                "limit": spec.limit,
                "tags": ",".join(spec.tags) or None,
                "skip_tags": ",".join(spec.skip_tags) or None,
            }
        ),
    )


def _yaml(document: Any) -> bytes:
    text: str = yaml.dump(document, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
    return text.encode("utf-8", "replace")


def _detail(events: EventLines, left: Leavings) -> dict[str, Any]:
    told = events.told
    output = left.result if told.output is None else told.output
    found = {"output": output, "stats": told.stats}
    return {name: value for name, value in found.items() if value is not None}


def _record_of(events: EventLines) -> ProducedFile:
    return ProducedFile(
        name="ansible-events.json",
        content=orjson.dumps(events.told.document(), option=orjson.OPT_INDENT_2),
        media_type="application/json",
        artifact_type="ansible-events",
    )


def _judged(
    ended: Ended, events: EventLines, spec: AnsibleSpec
) -> tuple[str, FailureReason | None, int | None]:
    ours = stopped(ended, spec.timeout_s)
    if ours is not None:
        return *ours, events.told.code
    if ended.code == ansible_host.NOT_INSTALLED:
        reason = FailureReason.EXECUTOR_UNAVAILABLE
        return f"ansible-runner can't be imported: {EXTRA}", reason, None
    if ended.code != 0:
        how = (
            f"exit code {ended.code}"
            if (ended.code or -1) > 0
            else f"killed by {signal_name(ended.code)}"
        )
        if not events.told.begun:
            reason = FailureReason.EXECUTOR_UNAVAILABLE
            return f"ansible-runner could not be started: {how}", reason, ended.code
        reason = FailureReason.EXECUTION_FAILURE
        return f"ansible-runner itself failed: {how}", reason, ended.code
    message, why = events.told.judged()
    return message, why, events.told.code
