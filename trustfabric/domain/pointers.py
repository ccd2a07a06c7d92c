"""JSON pointers (RFC 6901), and conditions on what they find."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trustfabric.errors import InvalidError


class Missing:
    """The type of `MISSING`: a pointer found nothing."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()


def check_pointer(pointer: str) -> None:
    """Raise InvalidError where a text is no JSON pointer."""
    if pointer and not pointer.startswith("/"):
        raise InvalidError("a JSON pointer is empty or begins with /")
    if any(part[:1] not in {"0", "1"} for part in pointer.split("~")[1:]):
        raise InvalidError("in a JSON pointer ~ is written ~0, and / is ~1")


def find(document: Any, pointer: str) -> Any:
    """Return what the pointer leads to, or MISSING."""
    value = document
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(key, MISSING)
        elif isinstance(value, list) and _is_index(key, len(value)):
            value = value[int(key)]
        else:
            return MISSING
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            same(one[key], other[key]) for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@dataclass(frozen=True, slots=True)
class Condition:
    """What the value at a pointer has to be; one of the three is given."""

    pointer: str
    equals: Any = MISSING
    among: tuple[Any, ...] | None = None
    exists: bool | None = None

    def holds(self, document: Any) -> bool:
        """Whether it is so in this document."""
        value = find(document, self.pointer)
        if self.exists is not None:
            return (value is not MISSING) is self.exists
        if value is MISSING:
            return False
        if self.among is not None:
            return any(same(value, one) for one in self.among)
        return same(value, self.equals)

    def __str__(self) -> str:
        where = self.pointer or "the document"
        if self.exists is not None:
            return f"{where} {'exists' if self.exists else 'does not exist'}"
        if self.among is not None:
            return f"{where} in {list(self.among)!r:.200}"
        return f"{where} equals {self.equals!r:.200}"


def read_conditions(value: object, name: str) -> tuple[Condition, ...]:
    """Read `{pointer: value | {equals | in | exists: …}}`; InvalidError names it."""
    if not isinstance(value, Mapping):
        raise InvalidError(f"metadata.{name}: not an object of JSON pointers")
    return tuple(_condition(pointer, rule, name) for pointer, rule in value.items())


def _condition(pointer: str, rule: object, name: str) -> Condition:
    where = f"metadata.{name}.{pointer[:64]}"
    try:
        check_pointer(pointer)
    except InvalidError as error:
        raise InvalidError(f"{where}: {error}") from None
    if isinstance(rule, list):
        raise InvalidError(f"{where}: a list is compared with equals or in")
    if not isinstance(rule, Mapping):
        return Condition(pointer, equals=rule)
    match list(rule.items()):
        case [("equals", wanted)]:
            return Condition(pointer, equals=wanted)
        case [("in", list() as wanted)] if wanted:
            return Condition(pointer, among=tuple(wanted))
        case [("exists", bool() as wanted)]:
            return Condition(pointer, exists=wanted)
        case _:
            raise InvalidError(
                f"{where}: one of equals, in (a list) or exists (true, false)"
            )


def _is_index(text: str, length: int) -> bool:
    return (
        text.isascii()
        and text.isdecimal()
        and (text == "0" or text[0] != "0")
        and len(text) <= len(str(length))
        and int(text) < length
    )
