"""What comes in: queries and bodies, refused by field name when they don't fit.

A query that is wrong is 400, a body that can't be read is 400, and one of the wrong
shape is 422 (contract §5).
"""

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, NoReturn, TypeVar

from aiohttp import web
from aiohttp.http import HttpProcessingError
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from trustfabric.domain.documents import check_document
from trustfabric.errors import InvalidError, MalformedError

E = TypeVar("E", bound=StrEnum)
B = TypeVar("B", bound="Body")

MAX_INTEGER = 2**63 - 1
_DIGITS = 19
"""No more than these are an id, a version or a count."""
_SAID = 500
"""Of a fault, that many characters are told: callers choose names of fields."""
MAX_LIMIT = 500
DEFAULT_LIMIT = 100


class Body(BaseModel):
    """Base of request bodies: no unknown field, no conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SMALL_BYTES = 16_384
"""Of an object that every event about its row tells again, as JSON."""


def _small(value: dict[str, Any]) -> dict[str, Any]:
    size = len(json.dumps(value))
    if size > SMALL_BYTES:
        raise ValueError(f"{size} bytes of JSON, where {SMALL_BYTES} are the most")
    return value


SmallObject = Annotated[dict[str, Any], AfterValidator(_small)]


class Query:
    """The query parameters of a request, of which only `known` may be there."""

    def __init__(self, request: web.Request, *known: str) -> None:
        for name in request.query:
            if name not in known:
                shown = name[:64] if _is_plain(name) else "?"
                raise MalformedError(f"{shown}: unknown query parameter")
            if len(request.query.getall(name)) > 1:
                raise MalformedError(f"{name}: given more than once")
        self._values = request.query

    def text(self, name: str) -> str | None:
        text = self._values.get(name)
        if text is not None and not _is_plain(text):
            raise MalformedError(f"{name}: not a text")
        return text

    def integer(
        self, name: str, *, minimum: int = 0, maximum: int = MAX_INTEGER
    ) -> int | None:
        text = self._values.get(name)
        if text is None:
            return None
        if not _is_number(text.removeprefix("-")):
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

    def moment(self, name: str) -> datetime | None:
        """Read an RFC 3339 time; its offset is required."""
        text = self._values.get(name)
        if text is None:
            return None
        try:
            # A plus sign that was not escaped arrives as a blank.
            at = datetime.fromisoformat(text.replace(" ", "+"))
        except ValueError:
            raise MalformedError(f"{name}: not an RFC 3339 time") from None
        if at.tzinfo is None:
            raise MalformedError(f"{name}: a time needs an offset, like Z")
        return at

    def limit(self, *, default: int = DEFAULT_LIMIT, maximum: int = MAX_LIMIT) -> int:
        return self.integer("limit", minimum=1, maximum=maximum) or default

    def cursor(self) -> int | None:
        return self.integer("cursor")


async def read_body(request: web.Request, kind: type[B], *known: str) -> B:
    """Read a JSON body as `kind`. MalformedError or InvalidError name the field.

    What is sent in a body is sent there only: a query beside it is refused, but for
    the parameters that are `known`.
    """
    Query(request, *known)
    try:
        raw = await request.read()
    except (HttpProcessingError, web.RequestPayloadError):
        raise MalformedError("body: not encoded as its headers say") from None
    _check_json(raw)
    try:
        return kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise InvalidError(_faults(error)) from None


async def read_nothing(request: web.Request) -> None:
    """Read a request that says all by its address: no query, no body, or `{}`."""
    if request.body_exists:
        await read_body(request, Body)
    Query(request)


def expected_version(request: web.Request, given: int | None) -> int | None:
    """Return the version a writer states: in the body or query, or as If-Match."""
    header = request.headers.get("If-Match")
    if header is None:
        return given
    text = header.strip().removeprefix('"').removesuffix('"')
    if not _is_number(text) or int(text) > MAX_INTEGER:
        raise MalformedError('If-Match: not a version in quotes, like "3"')
    if given is not None and given != int(text):
        raise MalformedError("If-Match: differs from expected_version")
    return int(text)


def path_id(request: web.Request, name: str = "id") -> int:
    """Return an id of the path; what can't be one is not there."""
    text = request.match_info[name]
    if not _is_number(text) or int(text) > MAX_INTEGER:
        raise web.HTTPNotFound
    return int(text)


def in_utc(name: str, at: datetime | None) -> datetime | None:
    """Return a time as UTC; refuse one without an offset: nobody knows when that is."""
    if at is None:
        return None
    if at.tzinfo is None:
        raise InvalidError(f"{name}: a time needs an offset, like Z")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise InvalidError(f"{name}: beyond the calendar in UTC") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS


def _is_plain(text: str) -> bool:
    """Whether a text can be stored and sent on: no NUL, no half characters."""
    try:
        check_document("", text)
    except InvalidError:
        return False
    return True


def _check_json(raw: bytes) -> None:
    """Refuse what parsers disagree on and what can't be stored, by its place."""
    try:
        text = raw.decode()  # of bytes, loads would guess the encoding
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        check_document("body", value)
    except RecursionError:
        raise MalformedError("body: nested too deeply") from None
    except UnicodeError:
        raise MalformedError("body: not well-formed Unicode") from None
    except ValueError as error:
        raise MalformedError(f"body: not JSON: {error}") from None
    except InvalidError as error:
        raise MalformedError(_cut(str(error))) from None
    if not isinstance(value, dict):
        raise InvalidError("body: not an object")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ValueError(f"{name[:64]!r} is there twice")
        value[name] = item
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _faults(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False, include_input=False)[:20]:
        field = ".".join(str(part) for part in fault["loc"]) or "body"
        lines.append(f"{_cut(field)}: {fault['msg']}")
    return "; ".join(lines)


def _cut(text: str) -> str:
    return text if len(text) <= _SAID else f"{text[:_SAID]}…"
