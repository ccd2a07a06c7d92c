"""Parameter types and options that several commands share."""

import json
from pathlib import Path
from typing import Any

import click

DEFAULT_LIMIT = 500


class LiveId(click.ParamType[int | str]):
    """An id of something in the fleet; the shell completes it from what is there."""

    def __init__(self, kind: str, *, number: bool = True) -> None:
        self.kind = kind
        self.name = kind
        self._number = number

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if not self._number:
            return str(value)
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            article = "an" if self.kind[0] in "aeiou" else "a"
            self.fail(f"{value!r} is not the id of {article} {self.kind}", param, ctx)
        return number


class JsonValue(click.ParamType[Any]):
    """JSON as it stands, or @FILE to read it from; `kind` is what it must be."""

    name = "json"

    def __init__(self, kind: type[dict[str, Any]] | None = dict) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if not isinstance(value, str):
            return value
        try:
            text = (
                Path(value[1:]).read_text(encoding="utf-8")
                if value.startswith("@")
                else value
            )
            document = json.loads(text, parse_constant=_no_constant)
        except OSError as error:
            self.fail(f"{value[1:]}: {error.strerror}", param, ctx)
        except (ValueError, RecursionError) as error:
            self.fail(f"not JSON: {error}", param, ctx)
        if self._kind is not None and not isinstance(document, self._kind):
            self.fail("expected a JSON object", param, ctx)
        return document


SERVER = LiveId("server")
INSTANCE = LiveId("instance")
RUN = LiveId("run")
PLAYBOOK = LiveId("playbook")
PLAYBOOK_KEY = LiveId("playbook-key", number=False)
ACTOR = LiveId("actor", number=False)
EVALUATION = LiveId("evaluation")
OBJECT = JsonValue()
POSITIVE = click.IntRange(min=1)
NOT_NEGATIVE = click.IntRange(min=0)

as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)
limit = click.option(
    "--limit",
    type=NOT_NEGATIVE,
    default=DEFAULT_LIMIT,
    show_default=True,
    help="Rows at most, over as many pages as it takes; 0 is all.",
)


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Keep the fields whose flags were given: what is absent is not mentioned."""
    return {name: value for name, value in fields.items() if value is not None}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
