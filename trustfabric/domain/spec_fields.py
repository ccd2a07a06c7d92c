"""Fields of a playbook's metadata, each read with a fault that names it."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from trustfabric.errors import InvalidError

SECRET_PREFIX = "secret:"  # noqa: S105  the mark of a reference, not a secret
LONGEST_S = 86_400.0

Metadata: TypeAlias = Mapping[str, Any]


def text_of(value: object, name: str, *, empty: bool = True) -> str:
    """Return a text without NUL."""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidError(f"metadata.{name}: not a text without NUL")
    if not empty and not value.strip():
        raise InvalidError(f"metadata.{name}: is empty")
    return value


def texts_of(value: object, name: str) -> tuple[str, ...]:
    """Return a list of texts; secrets have no place in any."""
    if not isinstance(value, list | tuple):
        raise InvalidError(f"metadata.{name}: not a list of texts")
    for number, item in enumerate(value):
        text_of(item, f"{name}[{number}]")
        if item.startswith(SECRET_PREFIX):
            raise InvalidError(
                f"metadata.{name}[{number}]: a secret goes into env: "
                "everybody on the host can read arguments"
            )
    return tuple(value)


def object_of(value: object, name: str, *known: str) -> Mapping[str, Any]:
    """Return an object; where names are `known`, it may have no others."""
    if not isinstance(value, Mapping):
        raise InvalidError(f"metadata.{name}: not an object")
    for key in value:
        if known and key not in known:
            raise InvalidError(
                f"metadata.{name}.{str(key)[:64]}: unknown; there is {', '.join(known)}"
            )
    return value


def env_of(value: object) -> Mapping[str, str]:
    """Return the variables that a playbook sets; ours are not for it to set."""
    if not isinstance(value, Mapping):
        raise InvalidError("metadata.env: not an object of texts")
    for name, text in value.items():
        if not name or "=" in name or "\0" in name:
            raise InvalidError(f"metadata.env: {name!r} is no variable's name")
        if name.startswith("TRUSTFABRIC_"):
            raise InvalidError(f"metadata.env.{name}: TRUSTFABRIC_ names are ours")
        text_of(text, f"env.{name}")
    return dict(value)


def seconds_of(value: object, name: str, *, longest: float = LONGEST_S) -> float:
    """Return a positive number of seconds."""
    number = number_of(value, name, "a number of seconds")
    if not 0 < number <= longest:
        raise InvalidError(f"metadata.{name}: not within 0 … {longest:.0f} s")
    return number


def number_of(value: object, name: str, what: str = "a number") -> float:
    """Return a number; a truth value is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidError(f"metadata.{name}: not {what}")
    return float(value)


def whole_of(value: object, name: str, low: int, high: int) -> int:
    """Return a whole number within its bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidError(f"metadata.{name}: not a whole number")
    if not low <= value <= high:
        raise InvalidError(f"metadata.{name}: not within {low} … {high}")
    return value
