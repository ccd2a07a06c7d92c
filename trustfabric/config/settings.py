"""All settings together, a section for each subject."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from trustfabric.config.remediation import ExecutorSettings, RemediationSettings
from trustfabric.config.runtime import (
    ChaosSettings,
    DatabaseSettings,
    LogSettings,
    ScenarioSettings,
)
from trustfabric.config.serving import AuthSettings, HttpSettings
from trustfabric.config.trust import AttestationSettings, SchedulerSettings
from trustfabric.config.variable import Section, Variable
from trustfabric.config.vms import (
    HypervisorSettings,
    LibvirtSettings,
    ProvisionerSettings,
)

DATA_DIR = Variable(
    "TRUSTFABRIC_DATA_DIR",
    "Where everything is kept; `--data-dir` wins over it",
    unset="`$XDG_STATE_HOME/trustfabric`, else `~/.local/state/trustfabric`",
)


class Settings(BaseModel):
    """The settings by subject; each part of the product is handed its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    http: HttpSettings = Field(default_factory=HttpSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    provisioner: ProvisionerSettings = Field(default_factory=ProvisionerSettings)
    hypervisor: HypervisorSettings = Field(default_factory=HypervisorSettings)
    libvirt: LibvirtSettings = Field(default_factory=LibvirtSettings)
    attestation: AttestationSettings = Field(default_factory=AttestationSettings)
    scheduler: SchedulerSettings = Field(default_factory=SchedulerSettings)
    remediation: RemediationSettings = Field(default_factory=RemediationSettings)
    executor: ExecutorSettings = Field(default_factory=ExecutorSettings)
    chaos: ChaosSettings = Field(default_factory=ChaosSettings)
    scenarios: ScenarioSettings = Field(default_factory=ScenarioSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    warnings: tuple[str, ...] = ()
    """What is allowed and still worth a loud line at start."""


SECTIONS: Mapping[str, type[Section]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def all_variables() -> Iterator[tuple[str, Variable, object]]:
    """Yield section, variable and default of every setting; for the documents."""
    yield "data_dir", DATA_DIR, None
    for name, section in SECTIONS.items():
        for _, field, variable in section.variables():
            yield name, variable, field.get_default(call_default_factory=True)
