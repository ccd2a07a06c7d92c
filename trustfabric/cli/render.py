"""How answers are printed: tables and records for people, JSON for programs.

Everything passes `terminal.escape` (or, as JSON, `escape_json`) on its way out.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from trustfabric.cli.terminal import escape, escape_json, escape_lines

Columns: TypeAlias = Sequence[tuple[str, str]]
"""(field, heading), in the order shown; a field that no row has is left out."""

WIDE = 100_000
"""Where the output is no terminal, one row stays one line."""

_FRACTION = re.compile(r"(?<=\d\d:\d\d:\d\d)\.\d+(?=Z|[+-]\d\d:\d\d$)")
_STYLES: Mapping[str, str] = {
    "restored": "green",
    "trusted": "green",
    "completed": "green",
    "running": "cyan",
    "remediating": "magenta",
    "suspect": "yellow",
    "pending": "yellow",
    "quarantined": "bold red",
    "untrusted": "bold red",
    "failed": "red",
    "error": "red",
    "blocked": "red",
}


def line(text: str) -> None:
    """One line to stdout, at once; `text` is already safe to print."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """One line to stderr: what a person should know and a program may ignore."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def jsonl(document: object) -> None:
    """One document on one line."""
    compact = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    line(escape_json(compact))


def whole(document: object) -> None:
    """One document, indented for people when it goes to a terminal."""
    if not sys.stdout.isatty():
        jsonl(document)
        return
    for text in json.dumps(document, ensure_ascii=False, indent=2).split("\n"):
        line(escape_json(text))


def table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> None:
    from rich.console import Console  # noqa: PLC0415 (only when a table is drawn)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown = [(key, head) for key, head in columns if any(key in row for row in rows)]
    drawn = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for _, heading in shown:
        drawn.add_column(heading, overflow="fold")
    for row in rows:
        drawn.add_row(
            *(Text(cell(row.get(k)), style=_style(row.get(k))) for k, _ in shown)
        )
    width = None if sys.stdout.isatty() else WIDE
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False)
    console.print(drawn, soft_wrap=width is not None)
    sys.stdout.flush()


def record(document: Mapping[str, Any]) -> None:
    """Print a field a line; objects and lists of them as JSON beside their name."""
    width = max((len(escape(key)) for key in document), default=0)
    for key, value in document.items():
        line(f"{escape(key):<{width}}  {cell(value)}".rstrip())


def text(content: str) -> None:
    """Foreign text of many lines."""
    line(escape_lines(content.removesuffix("\n")))


def cell(value: object) -> str:
    """One value as one short, safe line."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case str():
            return escape(_FRACTION.sub("", value))
        case list() if all(isinstance(item, str | int | float) for item in value):
            return ", ".join(cell(item) for item in value) or "-"
        case dict() | list():
            return escape(json.dumps(value, ensure_ascii=False))
        case _:
            return escape(str(value))


def show_rows(
    rows: Sequence[Any], columns: Columns, *, as_json: bool, more: bool = False
) -> None:
    if as_json:
        whole(rows)
    elif rows:
        table(rows, columns)
    else:
        note("nothing to list")
    if more:
        note(f"there are more than these {len(rows)}: raise --limit (0: all of them)")


def show_record(document: Any, *, as_json: bool) -> None:
    if as_json:
        whole(document)
    elif isinstance(document, Mapping):
        record(document)
    elif document is not None:
        line(cell(document))


def show_outcome(document: Any, fields: Columns, *, as_json: bool) -> None:
    """Print the few fields that say what something has become, on one line."""
    if as_json or not isinstance(document, Mapping):
        show_record(document, as_json=as_json)
        return
    parts = (f"{name} {cell(document[key])}" for key, name in fields if key in document)
    line(", ".join(part.strip() for part in parts))


def _style(value: object) -> str:
    return _STYLES.get(value, "") if isinstance(value, str) else ""
