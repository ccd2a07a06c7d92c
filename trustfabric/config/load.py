"""How the settings are read: once, with every fault of every variable at once."""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from trustfabric.config.faults import wording
from trustfabric.config.remediation import (
    SECRET_PREFIX,
    ExecutorSettings,
    RemediationSettings,
)
from trustfabric.config.serving import SECRET_BYTES, AuthSettings, HttpSettings
from trustfabric.config.settings import DATA_DIR, SECTIONS, Settings, all_variables
from trustfabric.config.variable import Section
from trustfabric.config.vms import HypervisorSettings, ProvisionerSettings
from trustfabric.errors import ConfigError

_TYPO = 0.85
"""How alike an unknown variable and one of ours are for it to be a slip."""
_LIBVIRTS_OWN = frozenset(
    {
        "LIBVIRT_DEBUG",
        "LIBVIRT_DEFAULT_URI",
        "LIBVIRT_LOG_FILTERS",
        "LIBVIRT_LOG_OUTPUTS",
    }
)


def load_settings(
    environ: Mapping[str, str] | None = None, *, flags: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings from `environ`, else from the process's environment.

    `flags` are variables given on the command line; they win. An empty value counts
    as not set. Raise ConfigError with a line for every fault.
    """
    given = dict(os.environ if environ is None else environ) | dict(flags or {})
    given = {name: value for name, value in given.items() if value}
    data_dir = _data_dir(given)
    faults = list(_misspelt(given))
    read: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        read[name], wrong = _read(section, given)
        faults += wrong
    faults += _between_sections(read, data_dir)
    if faults:
        raise ConfigError(faults)
    settings = Settings(data_dir=data_dir, **read)
    return settings.model_copy(update={"warnings": tuple(_warnings(settings))})


def _data_dir(given: Mapping[str, str]) -> Path:
    home = Path(given.get("HOME", "/var/lib"))
    state = Path(given.get("XDG_STATE_HOME", home / ".local" / "state"))
    return Path(given.get(DATA_DIR.name, state / "trustfabric")).expanduser().absolute()


def _misspelt(given: Mapping[str, str]) -> Iterator[str]:
    """Name each variable that is nearly one of ours: ignored, it would mislead."""
    ours = {variable.name for _, variable, _ in all_variables()}
    families = {name.split("_")[0] for name in ours}
    for name in sorted(given.keys() - ours - _LIBVIRTS_OWN):
        if name.split("_")[0] not in families or name.startswith(SECRET_PREFIX):
            continue
        if close := difflib.get_close_matches(name, ours, n=1, cutoff=_TYPO):
            yield f"{name}: unknown variable (did you mean {close[0]}?)"


def _read(
    section: type[Section], given: Mapping[str, str]
) -> tuple[Section, list[str]]:
    """Return the section and its faults.

    What is wrong is left at its default, so that what else is wrong still shows.
    """
    values, faults = _values(section, given)
    try:
        return section.model_validate(values), faults
    except ValidationError as error:
        details = error.errors()
    faults += [_fault(detail, section) for detail in details]
    for detail in details:
        values.pop(str(detail["loc"][0]), None)
    return section.model_validate(values), faults


def _values(
    section: type[Section], given: Mapping[str, str]
) -> tuple[dict[str, object], list[str]]:
    """Return the fields that were given, and the faults of those not readable."""
    values: dict[str, object] = {}
    faults: list[str] = []
    for field, _, variable in section.variables():
        text = given.get(variable.name)
        if text is None:
            continue
        if variable.template is None:
            values[field] = text
            continue
        try:
            _check_json(text)
            values[field] = variable.template.model_validate_json(text, strict=True)
        except ValidationError as error:
            faults += [
                f"{variable.name}: {wording(detail, detail['loc'], keys, secret=False)}"
                for detail in error.errors()
                for keys in [_keys(variable.template, detail["loc"])]
            ]
        except ValueError as error:
            faults.append(f"{variable.name}: {error}")
    if section is ExecutorSettings:
        values["secrets"] = {
            name.removeprefix(SECRET_PREFIX): SecretStr(value)
            for name, value in given.items()
            if name.startswith(SECRET_PREFIX)
        }
    return values, faults


def _check_json(text: str) -> None:
    """Raise ValueError where a text is no JSON, or where a key comes twice."""

    def once(pairs: list[tuple[str, object]]) -> None:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f'key "{key}" comes twice')

    try:
        json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"is not JSON: {error.msg} at character {error.pos + 1}"
        ) from None
    except RecursionError:
        raise ValueError("is not JSON that we read: nested too deeply") from None


def _keys(template: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the object at `path` may have."""
    for step in path[:-1]:
        if isinstance(step, int):
            continue
        inner = get_args(template.model_fields[step].annotation)
        template = next(kind for kind in inner if isinstance(kind, type(BaseModel)))
    return list(template.model_fields)


def _fault(detail: ErrorDetails, section: type[Section]) -> str:
    field, *path = detail["loc"]
    variables = {name: variable for name, _, variable in section.variables()}
    variable = variables[str(field)]
    return f"{variable.name}: {wording(detail, path, (), secret=variable.secret)}"


def _between_sections(read: Mapping[str, Any], data_dir: Path) -> Iterator[str]:
    yield from _exposed(read["http"], read["auth"])
    yield from _unreachable(read["provisioner"], read["hypervisor"])
    remediation: RemediationSettings = read["remediation"]
    if remediation.retry_max_s < remediation.retry_base_s:
        yield (
            "REMEDIATION_RETRY_MAX_SECONDS: is below REMEDIATION_RETRY_BASE_SECONDS "
            f"({remediation.retry_base_s:g})"
        )
    yield from read["libvirt"].volume_faults(data_dir)
    yield from read["libvirt"].console_faults(data_dir)


def _unreachable(
    provisioner: ProvisionerSettings, hypervisor: HypervisorSettings
) -> Iterator[str]:
    if provisioner.driver == "http" and hypervisor.endpoint is None:
        yield "VM_HYPERVISOR_ENDPOINT: is needed by VM_PROVISIONER_DRIVER=http"


def _exposed(http: HttpSettings, auth: AuthSettings) -> Iterator[str]:
    if http.on_loopback:
        return
    where = f"where BIND_ADDRESS is {http.bind_address}, which others can reach"
    if auth.secret is None and auth.jwks_file is None:
        yield f"JWT_SECRET: is needed {where}"
    if auth.secret_is_short:
        yield f"JWT_SECRET: is shorter than {SECRET_BYTES} bytes, too short {where}"
    if http.metrics_open:
        yield f"METRICS_OPEN: tells of every owner; it can't be true {where}"


def _warnings(settings: Settings) -> Iterator[str]:
    if settings.auth.secret_is_short:
        yield (
            f"JWT_SECRET: is shorter than {SECRET_BYTES} bytes: its tokens can be "
            "forged; accepted on loopback only"
        )
    if settings.attestation.policy == "demo-software-tpm":
        yield "VM_ATTESTATION_POLICY: believes software TPMs; for trying out only"
    if settings.executor.unsandboxed:
        yield "EXECUTOR_UNSANDBOXED: playbooks may run with the runtime's own rights"
    if settings.chaos.enabled:
        yield "CHAOS_ENABLED: an admin may kill actors through the API"
    libvirt = settings.libvirt
    if "+ssh://" in libvirt.uri and (libvirt.password or libvirt.password_file):
        yield "LIBVIRT_PASSWORD: is not used by qemu+ssh, which asks for keys only"
