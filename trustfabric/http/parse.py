"""What comes in: queries and bodies, refused by field name when they don't fit.

A query that is wrong is 400, a body that can't be read is 400, and one of the wrong
shape is 422 (contract §5).
"""

import json
from datetime import datetime
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from trustfabric.errors import InvalidError, MalformedError

E = TypeVar("E", bound=StrEnum)
B = TypeVar("B", bound="Body")

MAX_INTEGER = 2**63 - 1
MAX_LIMIT = 500
DEFAULT_LIMIT = 100


class Body(BaseModel):
    """Base of request bodies: no unknown field, no conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Query:
    """The query parameters of a request, of which only `known` may be there."""

    def __init__(self, request: web.Request, *known: str) -> None:
        for name in request.query:
            if name not in known:
                raise MalformedError(f"{name[:64]}: unknown query parameter")
            if len(request.query.getall(name)) > 1:
                raise MalformedError(f"{name}: given more than once")
        self._values = request.query

    def text(self, name: str) -> str | None:
        return self._values.get(name)

    def integer(
        self, name: str, *, minimum: int = 0, maximum: int = MAX_INTEGER
    ) -> int | None:
        text = self._values.get(name)
        if text is None:
            return None
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 20):  # noqa: PLR2004
            raise MalformedError(f"{name}: not an integer")
        value = int(text)
        if not minimum <= value <= maximum:
            raise MalformedError(f"{name}: not between {minimum} and {maximum}")
        return value

    def choice(self, name: str, kind: type[E]) -> E | None:
        """Read an enum's word, trimmed and case-folded."""
        text = self._values.get(name)
        if text is None:
            return None
        try:
            return kind(text.strip().casefold())
        except ValueError:
            words = ", ".join(kind)
            raise MalformedError(f"{name}: not one of {words}") from None

    def flag(self, name: str) -> bool | None:
        text = self._values.get(name)
        if text is None:
            return None
        match text.strip().casefold():
            case "true" | "1" | "yes":
                return True
            case "false" | "0" | "no":
                return False
            case _:
                raise MalformedError(f"{name}: not true or false")

    def limit(self, *, default: int = DEFAULT_LIMIT, maximum: int = MAX_LIMIT) -> int:
        return self.integer("limit", minimum=1, maximum=maximum) or default

    def cursor(self) -> int | None:
        return self.integer("cursor")


async def read_body(request: web.Request, kind: type[B]) -> B:
    """Read a JSON body as `kind`. MalformedError or InvalidError name the field."""
    raw = await request.read()
    _check_json(raw)
    try:
        return kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise InvalidError(_faults(error)) from None


def expected_version(request: web.Request, given: int | None) -> int | None:
    """Return the version a writer states: in the body or query, or as If-Match."""
    header = request.headers.get("If-Match")
    if header is None:
        return given
    text = header.strip().removeprefix('"').removesuffix('"')
    if not (text.isascii() and text.isdecimal()):
        raise MalformedError('If-Match: not a version in quotes, like "3"')
    if given is not None and given != int(text):
        raise MalformedError("If-Match: differs from expected_version")
    return int(text)


def path_id(request: web.Request, name: str = "id") -> int:
    """Return an id of the path; its route lets only digits through."""
    value = int(request.match_info[name])
    if value > MAX_INTEGER:
        raise web.HTTPNotFound
    return value


def check_aware(name: str, at: datetime | None) -> None:
    """Refuse a time without an offset: nobody knows when that is."""
    if at is not None and at.tzinfo is None:
        raise InvalidError(f"{name}: a time needs an offset, like Z")


def _check_json(raw: bytes) -> None:
    """Refuse what JSON parsers disagree on, before anything believes it."""
    try:
        value = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise MalformedError("body: nested too deeply") from None
    except UnicodeError:
        raise MalformedError("body: not well-formed Unicode") from None
    except ValueError as error:
        raise MalformedError(f"body: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidError("body: not an object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:64]!r} is there twice")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _faults(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False, include_input=False)[:20]:
        field = ".".join(str(part) for part in fault["loc"]) or "body"
        lines.append(f"{field}: {fault['msg']}")
    return "; ".join(lines)
