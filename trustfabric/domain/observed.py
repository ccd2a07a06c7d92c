"""What a run of an observe-only playbook would have done: told, and not done.

It is made from what the run pinned alone. References to secrets stay references, and
what looks like one by its name is masked.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from trustfabric.domain.executors import ExitStatus, LogStream, RemediationLogEvent
from trustfabric.domain.run_templates import filled, filled_url
from trustfabric.domain.runs import Run
from trustfabric.domain.specs import ExecutorType
from trustfabric.errors import InvalidError

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
    planned = _PLANS[run.executor_type](run)
    planned |= {"parameters": run.parameters, "metadata": run.metadata}
    masked = {name: masked_of(value, name) for name, value in planned.items()}
    return {"executor": run.executor_type.value} | {
        name: value for name, value in masked.items() if value not in (None, {}, [])
    }


def _shell(run: Run) -> dict[str, Any]:
    spec = run.spec
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


def _ansible(run: Run) -> dict[str, Any]:
    spec = run.spec
    names = (
        "playbook", "project_dir", "inventory", "extra_vars", "limit", "tags",
        "skip_tags", "env", "ssh_key",
    )  # fmt: skip
    limit, tags = spec.get("limit"), spec.get("tags")
    tags = ",".join(tags) if isinstance(tags, list) else tags
    argv = ["ansible-playbook"]
    argv += [f"--limit={limit}"] if limit else []
    argv += [f"--tags={tags}"] if tags else []
    playbook = spec.get("playbook")
    argv += [playbook] if isinstance(playbook, str) and "\n" not in playbook else []
    return {"argv": argv} | {name: spec.get(name) for name in names}


def _cloud(run: Run) -> dict[str, Any]:
    names, data = ("method", "url", "headers", "body", "expect"), _data(run)
    requests = []
    for step in run.spec.get("steps") or [run.spec]:
        requests.append({name: step[name] for name in names if name in step})
        poll = step.get("poll")
        requests += [{"method": "GET", **poll}] if isinstance(poll, Mapping) else []
    return {
        "requests": [_request(one, data) for one in requests],
        "timeout_seconds": run.spec.get("timeout_seconds"),
    }


def _request(template: Fields, data: Fields) -> dict[str, Any]:
    """Fill in what a request takes from the run; what it can't know yet stays."""
    request = dict(template)
    for name, value in template.items():
        try:
            request[name] = (
                filled_url(value, data) if name == "url" else filled(value, data)
            )
        except InvalidError:
            continue
    return request


def _data(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.id,
        "instance_id": run.instance_id,
        "instance_name": run.instance_name,
        "server_id": run.server_id,
        "owner_id": run.owner_id,
        "playbook": run.playbook,
        "attempt": run.attempt,
        "payload": run.parameters,
        "metadata": run.metadata,
    }


_PLANS: Mapping[ExecutorType, Callable[[Run], dict[str, Any]]] = {
    ExecutorType.SHELL: _shell,
    ExecutorType.ANSIBLE: _ansible,
    ExecutorType.CLOUD_API: _cloud,
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
