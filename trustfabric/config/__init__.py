"""The settings: a section for each subject, read from the environment once.

This package alone reads the environment. A part of the product is handed its own
section, never the whole. `load_settings` reports every fault of every variable
together, so that one look at the message is enough to mend them all.
"""

from trustfabric.config.load import load_settings
from trustfabric.config.remediation import ExecutorSettings, RemediationSettings
from trustfabric.config.runtime import (
    ChaosSettings,
    DatabaseSettings,
    LogSettings,
    ScenarioSettings,
)
from trustfabric.config.secrets import SecretFileError, read_secret
from trustfabric.config.serving import AuthSettings, HttpSettings
from trustfabric.config.settings import Settings
from trustfabric.config.templates import (
    GpuDevice,
    GpuPolicy,
    NetworkTemplate,
    VolumeTemplate,
)
from trustfabric.config.trust import AttestationSettings, SchedulerSettings
from trustfabric.config.vms import (
    HypervisorSettings,
    IsolationTier,
    LibvirtSettings,
    ProvisionerSettings,
)

__all__ = [
    "AttestationSettings",
    "AuthSettings",
    "ChaosSettings",
    "DatabaseSettings",
    "ExecutorSettings",
    "GpuDevice",
    "GpuPolicy",
    "HttpSettings",
    "HypervisorSettings",
    "IsolationTier",
    "LibvirtSettings",
    "LogSettings",
    "NetworkTemplate",
    "ProvisionerSettings",
    "RemediationSettings",
    "ScenarioSettings",
    "SchedulerSettings",
    "SecretFileError",
    "Settings",
    "VolumeTemplate",
    "load_settings",
    "read_secret",
]
