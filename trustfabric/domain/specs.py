"""What each type of executor reads from a playbook's metadata, checked.

A playbook is refused when it is saved, not when it runs: every fault is an
InvalidError that names the field. Other keys of the metadata are free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from trustfabric.errors import InvalidError

SECRET_PREFIX = "secret:"  # noqa: S105  the mark of a reference, not a secret

DEFAULT_TIMEOUT_S = 600.0
DEFAULT_KILL_GRACE_S = 5.0
LONGEST_S = 86_400.0
RETRY_LIMIT_MAX = 100

Metadata: TypeAlias = Mapping[str, Any]


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
            _check_ansible(metadata)
        case ExecutorType.CLOUD_API:
            _check_cloud(metadata)


def read_shell(metadata: Metadata) -> ShellSpec:
    """Read a shell playbook's metadata; InvalidError names the field at fault."""
    command, script = metadata.get("command"), metadata.get("script")
    if (command is None) == (script is None):
        raise InvalidError("metadata: a shell playbook has either command or script")
    if script is not None:
        _text(script, "script", empty=False)
    return ShellSpec(
        command=_command(command),
        script=script,
        args=_texts(metadata.get("args", []), "args"),
        env=_env(metadata.get("env", {})),
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
    vector = _texts(words, "command")
    if not vector[0].strip():
        raise InvalidError("metadata.command: names no program")
    return vector


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidError(f"metadata.{name}: not a list of texts")
    for number, item in enumerate(value):
        _text(item, f"{name}[{number}]")
        if item.startswith(SECRET_PREFIX):
            raise InvalidError(
                f"metadata.{name}[{number}]: a secret goes into env: "
                "everybody on the host can read arguments"
            )
    return tuple(value)


def _text(value: object, name: str, *, empty: bool = True) -> None:
    if not isinstance(value, str) or "\0" in value:
        raise InvalidError(f"metadata.{name}: not a text without NUL")
    if not empty and not value.strip():
        raise InvalidError(f"metadata.{name}: is empty")


def _env(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidError("metadata.env: not an object of texts")
    for name, text in value.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidError(f"metadata.env: {name!r} is no variable's name")
        if name.startswith("TRUSTFABRIC_"):
            raise InvalidError(f"metadata.env.{name}: TRUSTFABRIC_ names are ours")
        _text(text, f"env.{name}")
    return dict(value)


def _cwd(value: object) -> str | None:
    if value is None:
        return None
    _text(value, "cwd")
    if not str(value).startswith("/"):
        raise InvalidError("metadata.cwd: not an absolute path")
    return str(value)


def _seconds(metadata: Metadata, name: str, default: float) -> float:
    value = metadata.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidError(f"metadata.{name}: not a number of seconds")
    if not 0 < value <= LONGEST_S:
        raise InvalidError(f"metadata.{name}: not within 0 … {LONGEST_S:.0f} s")
    return float(value)


def _check_ansible(metadata: Metadata) -> None:
    if metadata.get("playbook") is None and metadata.get("project_dir") is None:
        raise InvalidError("metadata: an ansible playbook has playbook or project_dir")
    _each(metadata, ("project_dir", "limit"), str, "a text")
    _each(metadata, ("extra_vars",), Mapping, "an object")


def _check_cloud(metadata: Metadata) -> None:
    for name in ("method", "url"):
        _text(metadata.get(name), name, empty=False)
    if not metadata["url"].startswith(("https://", "http://")):
        raise InvalidError("metadata.url: neither https nor http")
    _each(metadata, ("headers", "expect", "poll"), Mapping, "an object")
    _seconds(metadata, "timeout_seconds", DEFAULT_TIMEOUT_S)


def _each(metadata: Metadata, names: tuple[str, ...], kind: type, what: str) -> None:
    for name in names:
        value = metadata.get(name)
        if value is not None and not isinstance(value, kind):
            raise InvalidError(f"metadata.{name}: not {what}")
