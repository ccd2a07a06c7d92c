"""The documents of a folder: all of them valid, or none is used."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trustfabric.errors import ConfigError
from trustfabric.scenarios.model import Document, Scenario
from trustfabric.scenarios.strict import (
    FORMATS,
    SIZE_LIMIT,
    StrictError,
    format_of,
    parse,
)

DEFAULT_DIRECTORY = Path(__file__).parents[2] / "scenarios"
"""The repository's own."""

_ASIDE = ("README.md",)
"""What may lie beside the documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One document, and what it was read from."""

    path: Path
    format: str
    sha256: str
    document: Document


@dataclass(frozen=True, slots=True)
class Manifest:
    """The documents of one folder, in the order of their names."""

    root: Path
    sources: tuple[Source, ...]

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        return tuple(
            one for source in self.sources for one in source.document.scenarios
        )

    @property
    def tenants(self) -> tuple[str, ...]:
        """Every tenant that a scenario names, once, sorted."""
        return tuple(sorted({name for one in self.scenarios for name in one.tenants}))


def load(directory: Path | None = None) -> Manifest:
    """Read every document of `directory`. ConfigError names file and field."""
    root = (directory or DEFAULT_DIRECTORY).absolute()
    if not root.is_dir():
        raise ConfigError([f"{root}: no such folder of scenario documents"])
    sources: list[Source] = []
    faults: list[str] = []
    for path in sorted(root.iterdir()):
        if path.name in _ASIDE or path.name.startswith("."):
            continue
        try:
            sources.append(_read(path))
        except ConfigError as error:
            faults += str(error).splitlines()
    if not sources and not faults:
        faults.append(f"{root}: holds no scenario document")
    faults += _twice(sources)
    if faults:
        raise ConfigError(faults)
    return Manifest(root, tuple(sources))


def _read(path: Path) -> Source:
    kind = format_of(path)
    if kind is None or not path.is_file():
        known = ", ".join(FORMATS)
        raise ConfigError([f"{path.name}: not a document ({known})"])
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
        document = read_document(parse(content, kind))
    except (OSError, StrictError) as error:
        raise ConfigError([f"{path.name}: {error}"]) from error
    except ConfigError as error:
        lines = str(error).splitlines()
        raise ConfigError([f"{path.name}: {line}" for line in lines]) from None
    return Source(
        path=path,
        format=kind,
        sha256=hashlib.sha256(content).hexdigest(),
        document=document,
    )


def read_document(value: Any) -> Document:
    """Read `{description, scenarios}`, or one such scenario alone. ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError(["$: is not an object"])
    alone = "scenarios" not in value
    try:
        if alone:
            rest = {name: value[name] for name in value if name != "description"}
            scenario = Scenario.model_validate(rest)
            return Document(description=_description(value), scenarios=(scenario,))
        return Document.model_validate(value)
    except ValidationError as error:
        raise ConfigError(list(_faults(error))) from None


def _description(value: Mapping[str, Any]) -> str | None:
    text = value.get("description")
    if text is not None and not isinstance(text, str):
        raise ConfigError(["$.description: is not a text"])
    return text


def _faults(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        steps = (
            f"[{part}]" if isinstance(part, int) else f".{part}"
            for part in fault["loc"]
        )
        said = str(fault["msg"]).removeprefix("Value error, ")
        match fault["type"]:
            case "missing":
                said = "is required"
            case "extra_forbidden":
                said = "unknown field"
            case "enum":
                said = f"{str(fault['input'])[:64]!r} is not one of {_expected(fault)}"
            case _:
                pass
        yield f"${''.join(steps)}: {said}"


def _expected(fault: Mapping[str, Any]) -> str:
    return str(fault["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")


def _twice(sources: list[Source]) -> Iterator[str]:
    """Name each scenario whose name or tag another one has."""
    for field in ("name", "tag"):
        seen: dict[str, str] = {}
        for source in sources:
            for one in source.document.scenarios:
                word = getattr(one, field)
                if word in seen:
                    where = f"{source.path.name}: {field} {word!r}"
                    yield f"{where} is also in {seen[word]}"
                seen.setdefault(word, source.path.name)
