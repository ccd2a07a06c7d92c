"""Settings of remediation runs and of the programs that they start."""

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, DirectoryPath, Field, SecretStr

from trustfabric.config.variable import Count, Seconds, Section, Variable, Words

SECRET_PREFIX = "EXECUTOR_SECRET_"  # noqa: S105 - a prefix of names

Percent = Annotated[float, Field(gt=0, le=100)]


class RemediationSettings(Section):
    """How runs are staged, approved, queued, retried and held."""

    default_playbook: Annotated[
        str,
        Field(min_length=1, max_length=200),
        Variable(
            "REMEDIATION_DEFAULT_PLAYBOOK", "Key of the playbook staged by a quarantine"
        ),
    ] = "default-vm-remediation"
    requester_may_approve: Annotated[
        bool,
        Variable(
            "REMEDIATION_REQUESTER_MAY_APPROVE",
            "Whether who requested a run may approve it",
        ),
    ] = False
    max_attempts: Annotated[
        Count,
        Variable(
            "REMEDIATION_MAX_ATTEMPTS",
            "Runs on one distrusted VM before it waits for a person",
        ),
    ] = 3
    concurrency: Annotated[
        Count, Variable("REMEDIATION_CONCURRENCY", "Runs at a time in this runtime")
    ] = 4
    owner_concurrency: Annotated[
        Count,
        Variable("REMEDIATION_OWNER_CONCURRENCY", "Runs at a time of one owner"),
    ] = 2
    tick_s: Annotated[
        Seconds,
        Variable(
            "REMEDIATION_TICK_SECONDS",
            "Pause between two sweeps of the queue, the net under its notifications",
        ),
    ] = 5.0
    lease_s: Annotated[
        Seconds,
        Variable(
            "REMEDIATION_LEASE_SECONDS",
            "How long a run stays claimed without a sign of life",
        ),
    ] = 30.0
    retry_limit: Annotated[
        int,
        Field(ge=0, le=1000),
        Variable("REMEDIATION_RETRY_LIMIT", "Retries of a transient failure"),
    ] = 5
    retry_base_s: Annotated[
        Seconds,
        Variable("REMEDIATION_RETRY_BASE_SECONDS", "Pause before the first retry"),
    ] = 5.0
    retry_max_s: Annotated[
        Seconds, Variable("REMEDIATION_RETRY_MAX_SECONDS", "Longest such pause")
    ] = 300.0
    approval_ttl_s: Annotated[
        Seconds,
        Variable(
            "REMEDIATION_APPROVAL_TTL_SECONDS", "How long a run waits for its approval"
        ),
    ] = 86400.0
    queue_ttl_s: Annotated[
        Seconds,
        Variable("REMEDIATION_QUEUE_TTL_SECONDS", "How long an approved run may queue"),
    ] = 86400.0
    breaker_minimum: Annotated[
        Count,
        Variable(
            "REMEDIATION_BREAKER_MINIMUM",
            "Quarantines within the window that storm control begins at",
        ),
    ] = 5
    breaker_percent: Annotated[
        Percent,
        Variable(
            "REMEDIATION_BREAKER_PERCENT",
            "Share of the living VMs that it begins above, in percent",
        ),
    ] = 20.0
    breaker_number: Annotated[
        Count | None,
        Variable(
            "REMEDIATION_BREAKER_NUMBER",
            "Quarantines within the window that are too many whatever their share",
            unset="no such limit",
        ),
    ] = None
    breaker_window_s: Annotated[
        Seconds, Variable("REMEDIATION_BREAKER_WINDOW_SECONDS", "That window")
    ] = 600.0


def _is_network(name: str) -> bool:
    try:
        ipaddress.ip_network(name.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return False
    return "/" in name or name.startswith("[")


def _hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    for host in value:
        name = re.sub(r":\d{1,5}$", "", host)
        if not re.fullmatch(r"[A-Za-z0-9.-]+", name) and not _is_network(name):
            raise ValueError(
                f'"{host}" is not a host name, an address or a network, '
                "with or without a port"
            )
    return tuple(host.lower() for host in value)


class ExecutorSettings(Section):
    """What the programs of a run may do."""

    user: Annotated[
        str,
        Field(min_length=1, max_length=32),
        Variable(
            "EXECUTOR_USER", "User that programs run as where the runtime is root"
        ),
    ] = "nobody"
    unsandboxed: Annotated[
        bool,
        Variable(
            "EXECUTOR_UNSANDBOXED",
            "Whether programs may run with the runtime's own rights where neither "
            "another user nor bubblewrap can be had",
        ),
    ] = False
    path: Annotated[
        str, Field(min_length=1), Variable("EXECUTOR_PATH", "`PATH` of programs")
    ] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    allowed_hosts: Annotated[
        Words,
        AfterValidator(_hosts),
        Variable(
            "EXECUTOR_ALLOWED_HOSTS",
            "Hosts that `cloud_api` playbooks may call, with commas between: names, "
            "addresses and networks, each with or without a port",
            unset="none",
        ),
    ] = ()
    secrets_dir: Annotated[
        DirectoryPath | None,
        Variable(
            "EXECUTOR_SECRETS_DIR",
            "Folder with a file per secret; `secret:NAME` is the content of `NAME`",
            unset="none",
        ),
    ] = None
    secrets: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Secrets given as variables, `EXECUTOR_SECRET_<NAME>`."""
