"""JSON from outside, read strictly: bounded, no duplicate keys, no surprises."""

import base64
import binascii
import json
from collections.abc import Mapping
from math import isfinite
from typing import NoReturn

from trustfabric.domain.evidence.model import Code, JsonValue, Reject

MAX_EVIDENCE = 64 * 1024
"""Bytes of one evidence document."""


class _Unfit(ValueError):  # noqa: N818 - never leaves this module
    pass


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Unfit("a key occurs twice")
    return members


def _finite(word: str) -> float:
    number = float(word)
    if not isfinite(number):
        raise _Unfit(f"{word} is too large a number")
    return number


def _no_constant(name: str) -> NoReturn:
    raise _Unfit(f"{name} is no JSON number")


def read_json(raw: bytes, check: str, limit: int = MAX_EVIDENCE) -> object:
    """Return what the document holds, or raise Reject(malformed)."""
    if len(raw) > limit:
        raise Reject(
            Code.MALFORMED, check, f"{len(raw)} bytes where at most {limit} may be"
        )
    try:
        value: object = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise Reject(Code.MALFORMED, check, f"not strict JSON: {error}") from None
    return value


def read_object(raw: bytes, check: str, limit: int = MAX_EVIDENCE) -> dict[str, object]:
    return as_object(read_json(raw, check, limit), check)


def as_object(value: object, check: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Reject(Code.MALFORMED, check, "an object is wanted")
    return value


def plain(value: JsonValue) -> JsonValue:
    """Return a value whose texts can be kept, sent and shown anywhere.

    What an attester says of itself may hold a NUL, which no database takes, half of a
    surrogate pair, or words for a terminal.
    """
    match value:
        case str():
            return plain_text(value)
        case Mapping():
            return {plain_text(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case _:
            return value


def plain_text(words: str) -> str:
    """Write what isn't printable as its escape."""
    if words.isprintable():
        return words
    return "".join(
        letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words
    )


def only_keys(
    members: Mapping[str, object],
    check: str,
    required: frozenset[str],
    optional: frozenset[str] = frozenset(),
) -> None:
    """Refuse a document that lacks a key or has one that nobody reads."""
    missing = required - members.keys()
    if missing:
        raise Reject(Code.MALFORMED, check, f"{min(missing)} is missing")
    unknown = members.keys() - required - optional
    if unknown:
        raise Reject(Code.MALFORMED, check, f"{min(unknown)!r} is unknown")


def text(members: Mapping[str, object], key: str, check: str) -> str:
    value = members.get(key)
    if not isinstance(value, str):
        raise Reject(Code.MALFORMED, check, f"{key}: a string is wanted")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Reject(Code.MALFORMED, check, f"{key}: half a character") from None
    return value


def base64_bytes(members: Mapping[str, object], key: str, check: str) -> bytes:
    try:
        return base64.b64decode(text(members, key, check), validate=True)
    except (binascii.Error, ValueError):
        raise Reject(Code.MALFORMED, check, f"{key}: not base64") from None


def hex_bytes(value: object, check: str) -> bytes:
    """Lower-case or upper-case hexadecimal without any white space."""
    if not isinstance(value, str) or any(map(str.isspace, value)):
        raise Reject(Code.MALFORMED, check, "hexadecimal digits are wanted")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise Reject(Code.MALFORMED, check, "not hexadecimal") from None
