"""What each type of executor reads from a playbook's metadata, checked.

A playbook is refused when it is saved, not when it runs: every fault is an
InvalidError that names the field. Other keys of the metadata are free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from trustfabric.domain.ansible_spec import read_ansible
from trustfabric.domain.cloud_spec import read_cloud
from trustfabric.domain.spec_fields import (
    Metadata,
    env_of,
    seconds_of,
    text_of,
    texts_of,
)
from trustfabric.errors import InvalidError

DEFAULT_TIMEOUT_S = 600.0
DEFAULT_KILL_GRACE_S = 5.0
RETRY_LIMIT_MAX = 100


class ExecutorType(StrEnum):
    """Who carries a playbook out."""

    SHELL = "shell"
    ANSIBLE = "ansible"
    CLOUD_API = "cloud_api"


class OnLost(StrEnum):
    """What becomes of a run whose runtime or actor died."""

    FAIL = "fail"
    RETRY = "retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellSpec:
    """A program and its arguments; nothing in it is ever given to a shell."""

    command: tuple[str, ...]
    """The program and its first arguments; empty where `script` is run."""
    script: str | None
    """A program's text; without `#!` line it is for /bin/sh."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Values may be references, `secret:NAME`."""
    cwd: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    kill_grace_s: float = DEFAULT_KILL_GRACE_S


def check_spec(executor_type: ExecutorType, metadata: Metadata) -> None:
    """Raise InvalidError where this executor could not run this metadata."""
    on_lost(metadata)
    budget_s(metadata)
    retry_limit(metadata, default=0)
    match executor_type:
        case ExecutorType.SHELL:
            read_shell(metadata)
        case ExecutorType.ANSIBLE:
            read_ansible(metadata)
        case ExecutorType.CLOUD_API:
            read_cloud(metadata)


def read_shell(metadata: Metadata) -> ShellSpec:
    """Read a shell playbook's metadata; InvalidError names the field at fault."""
    command, script = metadata.get("command"), metadata.get("script")
    if (command is None) == (script is None):
        raise InvalidError("metadata: a shell playbook has either command or script")
    if script is not None:
        text_of(script, "script", empty=False)
    return ShellSpec(
        command=_command(command),
        script=script,
        args=texts_of(metadata.get("args", []), "args"),
        env=env_of(metadata.get("env", {})),
        cwd=_cwd(metadata.get("cwd")),
        timeout_s=_seconds(metadata, "timeout_seconds", DEFAULT_TIMEOUT_S),
        kill_grace_s=_seconds(metadata, "kill_grace_seconds", DEFAULT_KILL_GRACE_S),
    )


def budget_s(metadata: Metadata) -> float:
    """Return how long one attempt may take, its stopping included."""
    return _seconds(metadata, "timeout_seconds", DEFAULT_TIMEOUT_S) + _seconds(
        metadata, "kill_grace_seconds", DEFAULT_KILL_GRACE_S
    )


def on_lost(metadata: Metadata) -> OnLost:
    """Return the playbook's rule; unsaid means that a person looks first."""
    try:
        return OnLost(metadata.get("on_lost", OnLost.FAIL))
    except ValueError:
        raise InvalidError("metadata.on_lost: neither fail nor retry") from None


def retry_limit(metadata: Metadata, *, default: int) -> int:
    """Return how often a transient failure of this playbook is tried again."""
    limit = metadata.get("retry_limit", default)
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise InvalidError("metadata.retry_limit: not a whole number")
    if not 0 <= limit <= RETRY_LIMIT_MAX:
        raise InvalidError(f"metadata.retry_limit: not within 0 … {RETRY_LIMIT_MAX}")
    return limit


def _command(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not words:
        raise InvalidError("metadata.command: a program, or a list that starts with it")
    vector = texts_of(words, "command")
    if not vector[0].strip():
        raise InvalidError("metadata.command: names no program")
    return vector


def _cwd(value: object) -> str | None:
    if value is None:
        return None
    text_of(value, "cwd")
    if not str(value).startswith("/"):
        raise InvalidError("metadata.cwd: not an absolute path")
    return str(value)


def _seconds(metadata: Metadata, name: str, default: float) -> float:
    return seconds_of(metadata.get(name, default), name)
