"""What the remediation stream tells of a run: contract §6's data, made when written.

`context` is the part that all events of a batch share, `log_event` and `status_event`
are the part of each. An event's `seq` is given by the database.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from trustfabric.domain.accelerators import PASSING_POSTURES, Accelerator
from trustfabric.domain.documents import plain
from trustfabric.domain.executors import LogStream, RemediationLogEvent
from trustfabric.domain.failures import classification_of
from trustfabric.domain.runs import ERROR_LIMIT, Run, RunStatus
from trustfabric.domain.times import rfc3339

_ELSEWHERE = frozenset({"accelerators", "policy_feedback", "policy_gate"})
"""Keys of a run's metadata that the data shows in places of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """One event of a run, before it is written."""

    kind: str
    """`log` or `status`."""
    stream: LogStream
    message: str
    at: datetime
    event: Mapping[str, Any]
    """The `event` member of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a run's log, as it is read back."""

    seq: int
    stream: LogStream
    message: str
    at: datetime


def begins(attempt: int) -> str:
    """Return the system's line that an attempt's program may have been started."""
    return f"attempt {attempt} begins"


def log_event(line: RemediationLogEvent, at: datetime) -> RunEvent:
    """Return the event of a line that the execution printed."""
    return RunEvent(
        kind="log",
        stream=line.stream,
        message=line.message,
        at=at,
        event={
            "event": "log",
            "timestamp": rfc3339(at),
            "stream": line.stream.value,
            "message": line.message,
        },
    )


def status_event(
    run: Run, message: str, at: datetime, *, was: RunStatus | None = None
) -> RunEvent:
    """Return the event of a change that made the run what it is now.

    `was` is the status that it left, where that changed.
    """
    deadline, message = run.sla_deadline, plain(message, ERROR_LIMIT)
    return RunEvent(
        kind="status",
        stream=LogStream.SYSTEM,
        message=message,
        at=at,
        event={
            "event": "status",
            "timestamp": rfc3339(at),
            "status": run.status.value,
            "previous_status": None if was is None else was.value,
            "approval_state": run.approval_state.value,
            "failure_reason": run.failure_reason,
            "message": message,
            "approvals_given": run.approvals_given,
            "approvals_required": run.approvals_required,
            "sla_deadline": None if deadline is None else rfc3339(deadline),
            "sla_breached": run.sla_breached_at is not None,
        },
    )


def context(run: Run, accelerators: Sequence[Accelerator]) -> dict[str, Any]:
    """Return what the stream's data says of the run itself."""
    return {
        "run_id": run.id,
        "instance_id": run.instance_id,
        "playbook": run.playbook,
        "manifest_tags": manifest_tags(run),
        "manifest_metadata": {
            name: value
            for name, value in run.metadata.items()
            if name not in _ELSEWHERE
        },
        "policy_feedback": _policy_feedback(run, accelerators),
        "policy_gate": _policy_gate(run, accelerators),
        "accelerators": _accelerators(run, accelerators),
    }


def manifest_tags(run: Run) -> list[str]:
    """Return `scenario`, `tag` and `tags` of playbook and run, sorted and unique."""
    found: set[str] = set()
    for metadata in (run.spec, run.metadata):
        found.update(_texts([metadata.get("scenario"), metadata.get("tag")]))
        found.update(_texts(metadata.get("tags")))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class LogDigest:
    """What is recorded of a log when its run ends, kept up as lines are written."""

    lines: int = 0
    size: int = 0
    through_seq: int = 0
    """No line of it has a higher number."""
    _sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def after(
        self, lines: Sequence[LogLine | RunEvent], through_seq: int
    ) -> "LogDigest":
        """Return the digest of the log with these lines at its end."""
        text, sha256 = render_log(lines), self._sha256.copy()
        sha256.update(text)
        return LogDigest(
            self.lines + len(lines), self.size + len(text), through_seq, sha256
        )

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def render_log(lines: Iterable[LogLine | RunEvent]) -> bytes:
    """Return the log as the text of its `execution-log` artifact."""
    return b"".join(
        f"{rfc3339(line.at)} {line.stream} {line.message}\n".encode("utf-8", "replace")
        for line in lines
    )


def _policy_feedback(run: Run, accelerators: Sequence[Accelerator]) -> list[str]:
    return _unique(
        _texts(run.spec.get("policy_feedback")),
        _texts(run.metadata.get("policy_feedback")),
        *(accelerator.policy_feedback for accelerator in accelerators),
    )


def _policy_gate(run: Run, accelerators: Sequence[Accelerator]) -> dict[str, Any]:
    told = run.metadata.get("policy_gate")
    told = told if isinstance(told, Mapping) else {}
    return {
        "remediation_hooks": _unique(
            _texts(told.get("remediation_hooks")), _hooks(run)
        ),
        "accelerator_gates": _accelerator_gates(
            told.get("accelerator_gates"), accelerators
        ),
    }


def _hooks(run: Run) -> list[str]:
    if run.status.active:
        return [f"policy_hook:remediation_gate=active-run:{run.id}:{run.status}"]
    if run.failure_reason is None:
        return []
    kind = classification_of(run.failure_reason)
    return [f"policy_hook:remediation_gate=failure:{run.failure_reason}:{kind}"]


def _accelerator_gates(
    told: object, accelerators: Sequence[Accelerator]
) -> list[dict[str, Any]]:
    gates: dict[str, dict[str, list[str]]] = {}

    def add(accelerator_id: str, hooks: Iterable[str], reasons: Iterable[str]) -> None:
        gate = gates.setdefault(accelerator_id, {"hooks": [], "reasons": []})
        gate["hooks"] = _unique(gate["hooks"], hooks)
        gate["reasons"] = _unique(gate["reasons"], reasons)

    for entry in told if isinstance(told, list) else []:
        if isinstance(entry, Mapping) and entry.get("accelerator_id"):
            add(
                str(entry["accelerator_id"]),
                _texts(entry.get("hooks")),
                _texts(entry.get("reasons")),
            )
    for one in accelerators:
        posture = one.posture_now
        if posture not in PASSING_POSTURES:
            hook = f"policy_hook:accelerator_gate={one.accelerator_id}:{posture}"
            add(one.accelerator_id, [hook], one.policy_feedback)
    return [{"accelerator_id": name, **gate} for name, gate in gates.items()]


def _accelerators(
    run: Run, accelerators: Sequence[Accelerator]
) -> list[dict[str, Any]]:
    told = _told(run)
    seen = {one.accelerator_id for one in accelerators}
    return [
        *(_enriched(one, told.get(one.accelerator_id, {})) for one in accelerators),
        *(_only_told(name, entry) for name, entry in told.items() if name not in seen),
    ]


def _told(run: Run) -> dict[str, Mapping[str, Any]]:
    entries = run.metadata.get("accelerators")
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping):
            name = entry.get("accelerator_id") or entry.get("id")
            if isinstance(name, str):
                found[name] = entry
    return found


def _enriched(one: Accelerator, told: Mapping[str, Any]) -> dict[str, Any]:
    # The table decides the posture; the run's metadata may only add to it.
    return {
        "accelerator_id": one.accelerator_id,
        "accelerator_type": one.accelerator_type,
        "posture": one.posture_now,
        "policy_feedback": _unique(
            one.policy_feedback, _texts(told.get("policy_feedback"))
        ),
        "metadata": {**_object(told.get("metadata")), **one.metadata},
    }


def _only_told(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "accelerator_id": name,
        "accelerator_type": told.get("accelerator_type") or told.get("kind"),
        "posture": told.get("posture") or "unknown",
        "policy_feedback": _texts(told.get("policy_feedback")),
        "metadata": _object(told.get("metadata")),
    }


def _texts(value: object) -> list[str]:
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []


def _object(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _unique(*lists: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for texts in lists for text in texts))
