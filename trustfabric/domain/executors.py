"""What runs a playbook's work: one Protocol, and the values that cross it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId


class LogStream(StrEnum):
    """Where a line of a run's log comes from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"
    """The runtime's own remarks."""


@dataclass(frozen=True, slots=True)
class RemediationLogEvent:
    """One line that an execution printed, secrets already masked."""

    stream: LogStream
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducedFile:
    """A file that an execution left, secrets already masked."""

    name: str
    """Its path in the output directory, of plain characters only."""
    content: bytes = field(repr=False)
    media_type: str = "application/octet-stream"
    artifact_type: str = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How an execution ended; `failure_reason` None is success."""

    code: int | None
    """The program's exit code; None where there is none (never started, killed)."""
    message: str
    failure_reason: FailureReason | None
    duration_s: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    """What the run's result tells beside how it ended; secrets already masked."""
    files: tuple[ProducedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything an executor needs for one attempt of one run."""

    run_id: RunId
    instance_id: InstanceId
    instance_name: str
    server_id: ServerId
    owner_id: OwnerId
    playbook: str
    attempt: int
    lease_epoch: int
    """With the run's id this names the attempt once and for all."""
    spec: Mapping[str, Any]
    """The pinned playbook's metadata, checked when the playbook was saved."""
    payload: Mapping[str, Any] | None
    metadata: Mapping[str, Any]
    token: str = field(repr=False)
    """What the program may call the runtime with; ends with the lease."""


class Cancellation(Protocol):
    """Asks an execution to stop (an asyncio.Event is one)."""

    def is_set(self) -> bool: ...

    async def wait(self) -> object: ...


Emit: TypeAlias = Callable[[RemediationLogEvent], Awaitable[None]]
"""Takes one line; waits while the log is full, which slows the program down."""


class Executor(Protocol):
    """Runs jobs of one type."""

    async def execute(
        self, job: Job, emit: Emit, cancelled: Cancellation
    ) -> ExitStatus:
        """Run the job to its end, or stop it when `cancelled` is set.

        A failure of the job is a value. When this coroutine itself is cancelled
        nothing of the job may go on running.
        """
        ...

    async def reap(self, run_id: RunId) -> int:
        """Kill what an earlier runtime, or a dead actor, left of the run's attempts.

        Return how many processes were still there.
        """
        ...
