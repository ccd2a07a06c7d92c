"""What a scenario document says, as values; every field checked by name."""

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from trustfabric.domain.trust import AttestationStatus, Lifecycle

DEFAULT_TENANTS = ("tenant-alpha", "tenant-bravo", "tenant-charlie")
RUNTIME = "runtime"
"""What a `process-kill` kills."""


class Kind(StrEnum):
    """What a scenario does; each is a function in `kinds.py`."""

    TENANT_ISOLATION = "tenant-isolation"
    CONCURRENT_APPROVALS = "concurrent-approvals"
    EXECUTOR_OUTAGE_RESUMPTION = "executor-outage-resumption"
    ACTOR_KILL = "actor-kill"
    PROCESS_KILL = "process-kill"
    STORM = "storm"

    @property
    def is_chaos(self) -> bool:
        """Whether it needs an experiment."""
        return self in {Kind.ACTOR_KILL, Kind.PROCESS_KILL}


class Phase(StrEnum):
    """Where the story is; a fault comes when its phase has begun."""

    LAUNCH = "launch"
    """The start was accepted, the VM boots and is challenged."""
    ATTEST = "attest"
    """The VM was tampered with and is challenged."""
    APPROVAL = "approval"
    """It is quarantined, its run waits for a person."""
    RUN = "run"
    """The playbook is being carried out."""
    VERIFY = "verify"
    """The run has ended well, the VM is challenged again."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_Word = StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][\w.:-]*$")
Name = Annotated[str, _Word]
# A YAML or JSON document has words and lists where the model has enums and tuples.
Words = Annotated[tuple[Name, ...], Field(strict=False)]


class SteadyState(_Part):
    """What the registry says of the instance while all is well."""

    lifecycle_state: Annotated[Lifecycle, Field(strict=False)] = Lifecycle.RESTORED
    attestation_status: Annotated[AttestationStatus, Field(strict=False)] = (
        AttestationStatus.TRUSTED
    )


class Action(_Part):
    """What is done to the product, and when."""

    kill: Annotated[
        str,
        StringConstraints(
            max_length=200,
            pattern=r"^(runtime|fabric(/([A-Za-z0-9_.:*-]|\{instance\}|\{run\})+)+)$",
        ),
    ]
    """An actor's path, with `{instance}`, `{run}` and `*` where it is one of many;
    for a `process-kill` the word `runtime`."""
    during: Annotated[Phase, Field(strict=False)]


class Experiment(_Part):
    """A hypothesis: the steady state comes back within so many seconds."""

    steady_state: SteadyState = SteadyState()
    action: Action
    recovery_seconds: float = Field(gt=0, le=600, strict=False)


class Scenario(_Part):
    """One scenario: what is done, and for which tenants."""

    name: Name
    tag: Name
    kind: Annotated[Kind, Field(strict=False)]
    tenants: Words = DEFAULT_TENANTS
    metadata: dict[str, Any] = Field(default_factory=dict)
    experiment: Experiment | None = None

    @field_validator("tenants")
    @classmethod
    def _once(cls, tenants: tuple[str, ...]) -> tuple[str, ...]:
        if not tenants:
            raise ValueError("is empty")
        for tenant in tenants:
            if tenants.count(tenant) > 1:
                raise ValueError(f"{tenant} is there twice")
        return tenants

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.kind.is_chaos and self.experiment is None:
            raise ValueError(f"experiment: is required by kind {self.kind}")
        if self.experiment is None:
            return self
        if not self.kind.is_chaos:
            raise ValueError(f"experiment: kind {self.kind} has none")
        of_process = self.experiment.action.kill == RUNTIME
        if of_process != (self.kind is Kind.PROCESS_KILL):
            what = f"the word {RUNTIME}" if not of_process else "an actor's path"
            raise ValueError(f"experiment.action.kill: {self.kind} takes {what}")
        return self

    def tag_for(self, tenant: str) -> str:
        """Return the tag that a run of this scenario carries in its metadata."""
        return f"{self.tag}::{tenant}"


class Document(_Part):
    """A file: one or more scenarios."""

    description: str | None = None
    scenarios: Annotated[tuple[Scenario, ...], Field(strict=False)]

    @field_validator("scenarios")
    @classmethod
    def _some(cls, scenarios: tuple[Scenario, ...]) -> tuple[Scenario, ...]:
        if not scenarios:
            raise ValueError("is empty")
        return scenarios
