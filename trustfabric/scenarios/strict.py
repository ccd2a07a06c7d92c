"""YAML and JSON as data that reads the same to everybody, or not at all.

No key twice, no anchor, alias, merge or tag, no word that turns into a date or a
base-60 number; numbers that every reader holds exactly; bounded size and depth.
"""

import json
import math
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NoReturn

import yaml

SIZE_LIMIT = 1 << 20
DEPTH_LIMIT = 32
_EXACT = 2**53

FORMATS = {".yaml": "yaml", ".yml": "yaml", ".json": "json"}


class StrictError(ValueError):
    """A text that is refused; says where and why."""


def parse(text: bytes, kind: str) -> Any:
    """Read a document of a kind of `FORMATS`. StrictError."""
    if len(text) > SIZE_LIMIT:
        raise StrictError(f"is larger than {SIZE_LIMIT} bytes")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictError(f"is not UTF-8 at byte {error.start}") from None
    value = _read_json(decoded) if kind == "json" else _read_yaml(decoded)
    _check(value, "$", 0)
    return value


def format_of(path: Path) -> str | None:
    """Return what a file's name says it holds; None for neither YAML nor JSON."""
    return FORMATS.get(path.suffix)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise StrictError(f"is nested deeper than {DEPTH_LIMIT}") from None
    except StrictError:
        raise
    except ValueError as error:
        raise StrictError(f"is not JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise StrictError(f"key {key!r} is there twice")
        seen[key] = value
    return seen


def _no_constant(word: str) -> NoReturn:
    raise StrictError(f"{word} is no JSON")


def _read_yaml(text: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise StrictError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        said = str(error).splitlines()[0]
        raise StrictError(f"is not YAML: {said}") from None


class _Loader(yaml.SafeLoader):
    """YAML with JSON's types: what is no number, word or null of JSON is a text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own name

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self._refuse("anchors and aliases are not accepted", event)
        if getattr(event, "tag", None) is not None:
            self._refuse("tags are not accepted", event)
        if self._depth >= DEPTH_LIMIT:
            self._refuse(f"nested deeper than {DEPTH_LIMIT}", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002  PyYAML's signature
    ) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                self._refuse("keys are texts", key)
            if key.value == "<<":
                self._refuse("merge keys are not accepted", key)
            if key.value in seen:
                self._refuse(f"key {key.value!r} is there twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def _refuse(self, why: str, at: yaml.Event | yaml.Node) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=why, problem_mark=at.start_mark)  # type: ignore[arg-type]


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    (
        "float",
        r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)",
        list("-0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
    )


def _check(value: Any, where: str, depth: int) -> None:
    if depth > DEPTH_LIMIT:
        raise StrictError(f"is nested deeper than {DEPTH_LIMIT}")
    match value:
        case dict():
            for key, item in value.items():
                _check_text(key, where)
                _check(item, f"{where}.{key}", depth + 1)
        case list():
            for number, item in enumerate(value):
                _check(item, f"{where}[{number}]", depth + 1)
        case str():
            _check_text(value, where)
        case int() | float():
            _check_number(value, where)
        case _:
            assert value is None


def _check_number(value: float, where: str) -> None:
    if not math.isfinite(value):
        raise StrictError(f"{where}: is not a finite number")
    if isinstance(value, int) and abs(value) > _EXACT:
        raise StrictError(f"{where}: not every reader holds {value} exactly")


def _check_text(text: str, where: str) -> None:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise StrictError(f"{where}: holds NUL or half a character")
