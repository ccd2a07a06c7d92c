"""What a run of an observe-only playbook would have done: told, and not done.

It is made from what the run pinned alone. References to secrets stay references, and
what looks like one by its name is masked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from trustfabric.domain.executors import ExitStatus, LogStream, RemediationLogEvent
from trustfabric.domain.runs import Run
from trustfabric.domain.specs import ExecutorType

MASK = "***"
LINE_LIMIT = 4000

_SECRET_NAME = re.compile(
    r"secret|token|passw|credential|authorization|cookie|api[-_]?key|private[-_]?key",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(://)[^/@\s]+@")

Fields: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Observation:
    """The log lines and the result of such a run."""

    lines: tuple[RemediationLogEvent, ...]
    exit: ExitStatus


def observe(run: Run) -> Observation:
    """Return what the run would have done."""
    planned = _plan(run)
    told = [
        "observe only: nothing is executed",
        *(f"would use {name}: {_line(value)}" for name, value in planned.items()),
    ]
    lines = (RemediationLogEvent(LogStream.SYSTEM, text) for text in told)
    return Observation(
        lines=tuple(lines),
        exit=ExitStatus(
            code=None,
            message="observed only: nothing was executed",
            failure_reason=None,
            duration_s=0.0,
            detail={"observe_only": True, "would_have": planned},
        ),
    )


def _plan(run: Run) -> dict[str, Any]:
    match run.executor_type:
        case ExecutorType.SHELL:
            planned = _shell(run.spec)
        case ExecutorType.ANSIBLE:
            planned = _ansible(run.spec)
        case ExecutorType.CLOUD_API:
            planned = _cloud(run.spec)
    planned |= {"parameters": run.parameters, "metadata": run.metadata}
    masked = {name: masked_of(value, name) for name, value in planned.items()}
    return {"executor": run.executor_type.value} | {
        name: value for name, value in masked.items() if value not in (None, {}, [])
    }


def _shell(spec: Fields) -> dict[str, Any]:
    command = spec.get("command") or []
    command = [command] if isinstance(command, str) else list(command)
    script = spec.get("script")
    if script is not None:
        command = ["./script"]
    return {
        "argv": [*command, *spec.get("args", [])],
        "script": script,
        "env": spec.get("env"),
        "cwd": spec.get("cwd"),
        "timeout_seconds": spec.get("timeout_seconds"),
    }


def _ansible(spec: Fields) -> dict[str, Any]:
    names = ("playbook", "project_dir", "inventory", "extra_vars", "limit", "tags")
    limit, tags = spec.get("limit"), spec.get("tags")
    tags = ",".join(tags) if isinstance(tags, list) else tags
    argv = ["ansible-playbook"]
    argv += [f"--limit={limit}"] if limit else []
    argv += [f"--tags={tags}"] if tags else []
    playbook = spec.get("playbook")
    argv += [playbook] if isinstance(playbook, str) and "\n" not in playbook else []
    return {"argv": argv} | {name: spec.get(name) for name in names}


def _cloud(spec: Fields) -> dict[str, Any]:
    names = ("method", "url", "headers", "body", "expect")
    request = {name: spec[name] for name in names if name in spec}
    poll = spec.get("poll")
    then = [{"method": "GET", **poll}] if isinstance(poll, Mapping) else []
    return {
        "requests": [request, *then],
        "timeout_seconds": spec.get("timeout_seconds"),
    }


def masked_of(value: Any, name: str = "") -> Any:
    """Return a value as it may be shown; `name` is what it is known by."""
    match value:
        case Mapping():
            return {key: masked_of(item, key) for key, item in value.items()}
        case list() | tuple():
            return [masked_of(item, name) for item in value]
        case str() if _SECRET_NAME.search(name) and not value.startswith("secret:"):
            return MASK
        case str():
            return _USERINFO.sub(rf"\1{MASK}@", value)
        case _:
            return value


def _line(value: object) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= LINE_LIMIT else text[:LINE_LIMIT] + "…"
