"""Parameters of playbooks: `metadata.parameters` is a JSON Schema for a run's payload.

The dialect is draft 2020-12 less what could cost more than it tells: a schema refers
only to its own `$defs` and never to itself, so it is as large as it looks; patterns
run on an engine that takes linear time (Rust's, as in pydantic); what is in no list
here is refused by name when the playbook is saved. A fault of a payload is told with
the JSON Pointer (RFC 6901) to it.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from pydantic_core import SchemaError as PatternError
from pydantic_core import SchemaValidator, core_schema
from pydantic_core import ValidationError as NoMatchError

from trustfabric.domain.documents import whole_numbers
from trustfabric.errors import InvalidError

Schema: TypeAlias = Mapping[str, Any]

NAME = "metadata.parameters"
PAYLOAD = "automation_payload"
SCHEMA_BYTES = 65_536
DEEPEST = 32
LARGEST = 1000
"""Subschemas, those that are referred to counted each time."""
COSTLIEST = 200_000
"""Subschemas times values of a payload: what checking it may come to at most."""
PAYLOAD_BYTES = 65_536
PATTERN_LIMIT = 500
FAULTS = 20
"""How many faults of one payload are told."""

_REFERENCE = re.compile(r"#/\$defs/([A-Za-z0-9_.-]+)")
_ONE = frozenset({"additionalProperties", "propertyNames", "items", "contains", "not"})
_ONE |= {"if", "then", "else"}
_LISTED = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED = frozenset({"properties", "$defs"})
_PLAIN = frozenset(
    {
        *("$schema", "$comment", "$ref", "title", "description", "default", "examples"),
        *("deprecated", "readOnly", "writeOnly", "format", "type", "enum", "const"),
        *("required", "minProperties", "maxProperties", "dependentRequired"),
        *("minItems", "maxItems", "uniqueItems", "minContains", "maxContains"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "pattern"),
    }
)


def check_parameters(schema: object) -> None:
    """Raise InvalidError, with a pointer, where this can't be a playbook's parameters.

    Absent parameters are None: any payload goes.
    """
    if schema is None:
        return
    if not isinstance(schema, Mapping):
        raise InvalidError(f"{NAME}: not a JSON Schema, which is an object")
    if len(orjson.dumps(schema)) > SCHEMA_BYTES:
        raise InvalidError(f"{NAME}: larger than {SCHEMA_BYTES} bytes")
    if schema.get("type") != "object":
        raise InvalidError(f"{NAME}: its type has to be object, as a payload is one")
    defaults = list(_checked(schema))
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = _pointer(error.absolute_path)
        raise _fault(where, error.message[:200]) from None
    _measure(schema)
    for where, part in defaults:
        whole = {**part, "$defs": schema.get("$defs", {})}
        for wrong in _validator(whole).iter_errors(part["default"]):
            raise _fault(f"{where}/default", _told(wrong)["message"])


def filled(schema: Schema | None, payload: Mapping[str, Any] | None) -> Any:
    """Return the payload with defaults filled in; InvalidError names each fault.

    Without a schema the payload is returned as it is.
    """
    if schema is None:
        return payload
    given: Mapping[str, Any] = {} if payload is None else payload
    if len(orjson.dumps(given)) > PAYLOAD_BYTES:
        raise InvalidError(f"{PAYLOAD}: larger than {PAYLOAD_BYTES} bytes", pointer="")
    whole = _with_defaults(schema, schema, given)
    if _measure(schema) * _count(whole) > COSTLIEST:
        raise InvalidError(f"{PAYLOAD}: too large for these parameters", pointer="")
    faults = sorted(_validator(schema).iter_errors(whole), key=_by_place)
    if faults:
        told = [_told(error) for error in faults[:FAULTS]]
        first = told[0]
        raise InvalidError(
            f"{PAYLOAD}{first['pointer']}: {first['message']}",
            pointer=first["pointer"],
            faults=told,
        )
    return whole


# --- the schema itself ------------------------------------------------------------


def _checked(
    schema: object, where: str = "", depth: int = 0
) -> Iterator[tuple[str, Schema]]:
    """Check a schema's words; yield each part that has a default, and where it is."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise _fault(where, "not a schema")
    if depth > DEEPEST:
        raise _fault(where, "nested too deeply")
    for word, value in schema.items():
        _check_word(word, value, f"{where}/{_escaped(word)}")
    if "default" in schema:
        yield where, schema
    for name, part in _parts(schema, where):
        yield from _checked(part, name, depth + 1)


def _check_word(word: str, value: object, where: str) -> None:
    known = word in _PLAIN | _ONE | _LISTED | _NAMED or word.startswith("x-")
    if not known:
        raise _fault(where, "this word is not supported")
    if word == "$schema" and value != Draft202012Validator.META_SCHEMA["$id"]:
        raise _fault(where, "only draft 2020-12 is supported")
    if word == "$ref" and not (isinstance(value, str) and _REFERENCE.fullmatch(value)):
        raise _fault(where, "only #/$defs/NAME may be referred to")
    if word == "pattern":
        _check_pattern(value, where)


def _check_pattern(value: object, where: str) -> None:
    if not isinstance(value, str) or len(value) > PATTERN_LIMIT:
        raise _fault(where, f"not a pattern of at most {PATTERN_LIMIT} characters")
    try:
        _matcher(value)
    except PatternError:
        raise _fault(
            where, "not a regular expression (look-around and back references too)"
        ) from None


def _parts(schema: Schema, where: str) -> Iterator[tuple[str, object]]:
    for word, value in schema.items():
        place = f"{where}/{_escaped(word)}"
        if word in _ONE:
            yield place, value
        elif word in _LISTED and isinstance(value, list):
            yield from ((f"{place}/{n}", part) for n, part in enumerate(value))
        elif word in _NAMED and isinstance(value, Mapping):
            yield from ((f"{place}/{_escaped(n)}", part) for n, part in value.items())


def _measure(root: Schema) -> int:
    """Return how many subschemas there are; refuse cycles, and what is huge."""
    waiting: list[tuple[object, tuple[str, ...], int]] = [(root, (), 0)]
    size = 0
    while waiting:
        schema, within, depth = waiting.pop()
        size += 1
        if size > LARGEST or depth > DEEPEST:
            raise InvalidError(
                f"{NAME}: more than {LARGEST} schemas, or {DEEPEST} deep"
            )
        if not isinstance(schema, Mapping):
            continue
        reference = schema.get("$ref")
        if reference in within:
            raise InvalidError(f"{NAME}: {reference} refers to itself")
        if reference is not None:
            found = _target(root, reference)
            waiting.append((found, (*within, reference), depth + 1))
        waiting += [(part, within, depth + 1) for _, part in _parts(schema, "")]
    return size


def _target(root: Schema, reference: str) -> Any:
    try:
        return root["$defs"][reference.rpartition("/")[2]]
    except KeyError:
        raise InvalidError(f"{NAME}: {reference} is not there") from None


# --- a payload --------------------------------------------------------------------


def _with_defaults(root: Schema, schema: Any, value: Any) -> Any:
    """Return the value with the defaults of properties that it leaves out."""
    while isinstance(schema, Mapping) and "$ref" in schema:
        beside = {word: part for word, part in schema.items() if word != "$ref"}
        schema = {**_target(root, schema["$ref"]), **beside}
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, Mapping):
        return _object_with_defaults(root, schema, value)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        skip = len(schema.get("prefixItems", ()))
        rest = [_with_defaults(root, schema["items"], item) for item in value[skip:]]
        return [*value[:skip], *rest]
    return value


def _object_with_defaults(
    root: Schema, schema: Schema, value: Mapping[str, Any]
) -> dict[str, Any]:
    whole = dict(value)
    for name, part in schema.get("properties", {}).items():
        if name not in whole and isinstance(part, Mapping) and "default" in part:
            whole[name] = part["default"]
        if name in whole:
            whole[name] = _with_defaults(root, part, whole[name])
    return whole


def _count(value: object) -> int:
    """Return how many values there are in a document, itself included."""
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        count += 1
        if isinstance(one, Mapping):
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return count


def _told(error: ValidationError) -> dict[str, str]:
    """Say what is wrong where; the value itself may be a secret and is not repeated."""
    message = _SAID.get(str(error.validator))
    if message is None:
        message = f"does not satisfy {error.validator} {_short(error.validator_value)}"
    return {"pointer": _pointer(error.absolute_path)[:500], "message": message}


_SAID: Mapping[str, str] = {
    "None": "is not allowed",
    "required": "is required",
    "additionalProperties": "is not a parameter",
    **{
        word: f"does not satisfy {word}"
        for word in ("allOf", "anyOf", "oneOf", "not", "contains", "propertyNames")
    },
}


def _short(rule: object) -> str:
    text = orjson.dumps(rule).decode()
    return text if len(text) <= 200 else text[:200] + "…"  # noqa: PLR2004


def _by_place(error: ValidationError) -> tuple[str, str]:
    return _pointer(error.absolute_path), str(error.validator)


def _pointer(path: Any) -> str:
    return "".join(f"/{_escaped(str(step))}" for step in path)


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")


def _fault(pointer: str, message: str) -> InvalidError:
    return InvalidError(f"{NAME}{pointer[:300]}: {message}", pointer=pointer[:300])


# --- our own way with some of the words -----------------------------------------------


def _matcher(pattern: str) -> SchemaValidator:
    return SchemaValidator(
        core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
    )


def _validator(schema: Schema) -> Any:
    """Return a validator of a checked schema; each pattern is compiled once for it."""
    matcher = functools.cache(_matcher)

    def pattern(_: object, rule: str, value: object, __: object) -> _Errors:
        if isinstance(value, str):
            try:
                matcher(rule).validate_python(value)
            except NoMatchError:
                yield ValidationError("no match")

    own = {
        "pattern": pattern,
        "required": _required,
        "additionalProperties": _additional,
        "uniqueItems": _unique,
    }
    return extend(Draft202012Validator, own)(schema)  # type: ignore[no-untyped-call]


_Errors: TypeAlias = Iterator[ValidationError]


def _required(_: object, rule: list[str], value: object, __: object) -> _Errors:
    if isinstance(value, Mapping):
        for name in rule:
            if name not in value:
                yield ValidationError("missing", path=[name])


def _additional(validator: Any, rule: Any, value: object, schema: Schema) -> _Errors:
    if not isinstance(value, Mapping):
        return
    for name in value.keys() - schema.get("properties", {}).keys():
        if rule is False:
            yield ValidationError("unexpected", path=[name])
        else:
            yield from validator.descend(value[name], rule, path=name)


def _unique(_: object, rule: bool, value: object, __: object) -> _Errors:  # noqa: FBT001
    # In linear time, unlike the library's, which compares each with each.
    if rule and isinstance(value, list):
        seen = {json.dumps(whole_numbers(item), sort_keys=True) for item in value}
        if len(seen) < len(value):
            yield ValidationError("not unique")
