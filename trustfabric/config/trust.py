"""Settings of attestation and of the scheduler that renews it."""

import json
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, DirectoryPath

from trustfabric.config.variable import Count, Seconds, Section, Variable, Words

_NAMED_POLICIES = ("default", "demo-software-tpm")


def _policy(value: str) -> str:
    if value in _NAMED_POLICIES:
        return value
    try:
        document = json.loads(Path(value).read_bytes())
    except OSError as error:
        names = " nor ".join(f'"{name}"' for name in _NAMED_POLICIES)
        raise ValueError(
            f'"{value}" is neither {names} nor a readable file ({error.strerror})'
        ) from None
    except ValueError as error:
        raise ValueError(f"{value} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{value} does not hold a JSON object")  # noqa: TRY004
    return value


def _digests(value: tuple[str, ...]) -> tuple[str, ...]:
    for digest in value:
        if re.fullmatch(r"([0-9a-fA-F]{64}|[0-9a-fA-F]{96}|[0-9a-fA-F]{128})", digest):
            continue
        raise ValueError(
            f'"{digest[:20]}" is not a digest of 32, 48 or 64 bytes in hex'
        )
    return tuple(digest.lower() for digest in value)


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f'"{value}" is not an absolute path')
    return value


class AttestationSettings(Section):
    """What evidence is believed, and for how long."""

    policy: Annotated[
        str,
        AfterValidator(_policy),
        Variable(
            "VM_ATTESTATION_POLICY",
            "`default`, `demo-software-tpm` (believes software TPMs: for trying out "
            "only) or the path of a JSON policy document",
        ),
    ] = "default"
    measurements: Annotated[
        Words,
        AfterValidator(_digests),
        Variable(
            "VM_ATTESTATION_MEASUREMENTS",
            "Launch measurements that are allowed, in hex, with commas between",
            unset="those of the policy only",
        ),
    ] = ()
    trust_roots: Annotated[
        DirectoryPath | None,
        Variable(
            "VM_ATTESTATION_TRUST_ROOTS",
            "Folder of PEM files to trust instead of the vendors' roots that ship",
            unset="the roots that ship",
        ),
    ] = None
    collateral: Annotated[
        Annotated[DirectoryPath, AfterValidator(_absolute)] | None,
        Variable(
            "VM_ATTESTATION_COLLATERAL",
            "Folder (absolute) of AMD's revocation lists and Intel's TDX collateral, "
            "read anew when its files change",
            unset="no revocation lists, and no verdict on TDX quotes",
        ),
    ] = None
    max_age_s: Annotated[
        Seconds,
        Variable(
            "VM_ATTESTATION_MAX_AGE_SECONDS",
            "How long a trusted verdict holds, from its challenge on",
        ),
    ] = 300.0
    timeout_s: Annotated[
        Seconds,
        Variable(
            "VM_ATTESTATION_TIMEOUT_SECONDS",
            "How long evidence may take before the verdict is `unknown`",
        ),
    ] = 30.0
    attempts: Annotated[
        Count,
        Variable(
            "VM_ATTESTATION_ATTEMPTS",
            "Challenges after a run before its VM counts as `unverified`",
        ),
    ] = 3


class SchedulerSettings(Section):
    """When certifications are renewed."""

    look_ahead_s: Annotated[
        Seconds,
        Variable(
            "SCHEDULER_LOOK_AHEAD_SECONDS",
            "How long before it is due a refresh is made",
        ),
    ] = 3600.0
    tick_s: Annotated[
        Seconds, Variable("SCHEDULER_TICK_SECONDS", "Pause between two looks")
    ] = 60.0
    cadence_s: Annotated[
        Seconds,
        Variable(
            "SCHEDULER_CADENCE_SECONDS",
            "Cadence of a certification that states none of its own",
        ),
    ] = 1800.0
