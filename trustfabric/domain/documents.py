"""JSON from outside that is to be stored: what PostgreSQL and the encoder can hold."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from trustfabric.errors import InvalidError

DEEPEST = 100
_INT_LIMIT = 2**63


def check_document(name: str, document: Any) -> None:
    """Raise InvalidError with a pointer to what can't be stored as it is."""
    waiting = [(name, document, 0)]
    while waiting:
        where, value, depth = waiting.pop()
        if depth > DEEPEST:
            raise InvalidError(f"{where[:200]}: nested too deeply")
        match value:
            case dict():
                for key, item in value.items():
                    _check_text(where, key)
                    waiting.append((f"{where}.{key}", item, depth + 1))
            case list() | tuple():
                waiting.extend(
                    (f"{where}[{at}]", item, depth + 1) for at, item in enumerate(value)
                )
            case _:
                _check_scalar(where, value)


def whole_numbers(value: Any) -> Any:
    """Return a document with whole numbers as such, however they were written.

    1.0, 1e0 and 1 are one number in JSON Schema, and in PostgreSQL's `jsonb`.
    """
    match value:
        case float() if value.is_integer():
            return int(Decimal(repr(value)))
        case Mapping():
            return {name: whole_numbers(item) for name, item in value.items()}
        case list() | tuple():
            return [whole_numbers(item) for item in value]
        case _:
            return value


def plain(text: str, limit: int) -> str:
    """Return text as a column of `limit` characters can hold it."""
    storable = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return storable[:limit]


def _check_text(where: str, text: str) -> None:
    if "\0" in text:
        raise InvalidError(f"{where}: a text with NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{where}: a text with half a character") from None


def _check_scalar(where: str, value: object) -> None:
    if isinstance(value, str):
        _check_text(where, value)
    elif isinstance(value, int) and not -_INT_LIMIT <= value < _INT_LIMIT:
        raise InvalidError(f"{where}: a number beyond 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidError(f"{where}: not a finite number")
