"""What an ansible playbook's metadata says, checked before it is saved."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from trustfabric.domain.spec_fields import (
    SECRET_PREFIX,
    Metadata,
    env_of,
    object_of,
    seconds_of,
    text_of,
    texts_of,
)
from trustfabric.errors import InvalidError

RUN_VARIABLE = "trustfabric"
"""The extra variable that holds the run's own data."""
DEFAULT_PROJECT_PLAYBOOK = "site.yml"
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_KILL_GRACE_S = 5.0
_TEXT_LIMIT = 512 * 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)

Inventory: TypeAlias = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsibleSpec:
    """Plays and hosts; what they are run with."""

    plays: str | Sequence[Any] | None
    """The playbook itself: YAML, or the plays as a list; None where a project's."""
    project_dir: str | None = None
    entry: str = ""
    """The file in `project_dir` that is run."""
    inventory: Inventory | None = None
    """None: localhost, without SSH."""
    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    """Values may be references, `secret:NAME`, at any depth."""
    limit: str | None = None
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ssh_key: str | None = None
    """The name of the secret that is the private key for all hosts."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    kill_grace_s: float = DEFAULT_KILL_GRACE_S


def read_ansible(metadata: Metadata) -> AnsibleSpec:
    """Read an ansible playbook's metadata; InvalidError names the field at fault."""
    plays, entry = _plays(metadata.get("playbook"), metadata.get("project_dir"))
    return AnsibleSpec(
        plays=plays,
        project_dir=_project_dir(metadata.get("project_dir")),
        entry=entry,
        inventory=_inventory(metadata.get("inventory")),
        extra_vars=_extra_vars(metadata.get("extra_vars", {})),
        limit=_pattern(metadata.get("limit"), "limit"),
        tags=_patterns(metadata.get("tags", []), "tags"),
        skip_tags=_patterns(metadata.get("skip_tags", []), "skip_tags"),
        env=env_of(metadata.get("env", {})),
        ssh_key=_ssh_key(metadata.get("ssh_key")),
        timeout_s=seconds_of(
            metadata.get("timeout_seconds", DEFAULT_TIMEOUT_S), "timeout_seconds"
        ),
        kill_grace_s=seconds_of(
            metadata.get("kill_grace_seconds", DEFAULT_KILL_GRACE_S),
            "kill_grace_seconds",
        ),
    )


def _plays(
    playbook: object, project_dir: object
) -> tuple[str | Sequence[Any] | None, str]:
    if project_dir is not None:
        entry = DEFAULT_PROJECT_PLAYBOOK if playbook is None else playbook
        return None, _entry(entry)
    if playbook is None:
        raise InvalidError("metadata: an ansible playbook has playbook or project_dir")
    plays = playbook
    if isinstance(playbook, str):
        plays = _parsed(text_of(playbook, "playbook", empty=False), "playbook")
    if not isinstance(plays, list) or not plays:
        raise InvalidError("metadata.playbook: not a list of plays")
    for number, play in enumerate(plays):
        if not isinstance(play, Mapping) or not (
            {"hosts", "import_playbook", "ansible.builtin.import_playbook"} & set(play)
        ):
            raise InvalidError(f"metadata.playbook[{number}]: a play that has no hosts")
    return (playbook if isinstance(playbook, str) else plays), ""


def _entry(value: object) -> str:
    entry = text_of(value, "playbook", empty=False)
    if "\n" in entry:
        raise InvalidError("metadata.playbook: with project_dir it names a file there")
    if entry.startswith(("/", "-")) or ".." in entry.split("/"):
        raise InvalidError("metadata.playbook: not a path inside project_dir")
    return entry


def _project_dir(value: object) -> str | None:
    if value is None:
        return None
    place = text_of(value, "project_dir", empty=False)
    if not place.startswith("/"):
        raise InvalidError("metadata.project_dir: not an absolute path")
    return place


def _inventory(value: object) -> Inventory | None:
    if value is None or isinstance(value, Mapping):
        return value
    return text_of(value, "inventory", empty=False)


def _extra_vars(value: object) -> Mapping[str, Any]:
    for name in object_of(value, "extra_vars"):
        if not _VARIABLE.fullmatch(name):
            raise InvalidError(f"metadata.extra_vars: {name!r} is no variable's name")
        if name == RUN_VARIABLE:
            raise InvalidError(f"metadata.extra_vars.{name}: it holds the run's data")
    assert isinstance(value, Mapping)
    return value


def _patterns(value: object, name: str) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else value
    for word in texts_of(words, name):
        _pattern(word, name)
    return texts_of(words, name)


def _pattern(value: object, name: str) -> str | None:
    if value is None:
        return None
    text = text_of(value, name, empty=False)
    if text.startswith(("-", "@")):
        raise InvalidError(f"metadata.{name}: it can't begin with {text[0]}")
    return text


def _ssh_key(value: object) -> str | None:
    if value is None:
        return None
    reference = text_of(value, "ssh_key")
    if not reference.startswith(SECRET_PREFIX):
        raise InvalidError("metadata.ssh_key: not a reference, secret:NAME")
    return reference.removeprefix(SECRET_PREFIX)


class _Tolerant(yaml.SafeLoader):
    """Reads the shape; what tags mean (!vault, !unsafe) is ansible's to know."""


def _ignore_tag(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> object:
    del loader, suffix
    return node.value if isinstance(node, yaml.ScalarNode) else None


_Tolerant.add_multi_constructor("", _ignore_tag)


def _parsed(text: str, name: str) -> object:
    if len(text) > _TEXT_LIMIT:
        raise InvalidError(f"metadata.{name}: longer than {_TEXT_LIMIT} characters")
    try:
        return yaml.load(text, Loader=_Tolerant)  # noqa: S506  a safe one
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise InvalidError(f"metadata.{name}: not YAML{where}") from None
    except (RecursionError, ValueError):
        raise InvalidError(f"metadata.{name}: not YAML that can be read") from None
