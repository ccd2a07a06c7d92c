"""Playbooks' parameters: what is refused when saved, and what a payload may be."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.parameters import check_parameters, filled
from trustfabric.errors import InvalidError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 1, "maximum": 5, "default": 3},
        "host": {"type": "string", "pattern": "^[a-z]+$"},
        "a/b~c": {"type": "boolean"},
        "where": {"$ref": "#/$defs/where"},
        "steps": {
            "type": "array",
            "items": {"type": "object", "properties": {"wait": {"default": 0}}},
            "uniqueItems": True,
        },
    },
    "required": ["host"],
    "additionalProperties": False,
    "$defs": {
        "where": {
            "type": "object",
            "properties": {"zone": {"type": "string", "default": "a"}},
        }
    },
}


def a_schema(part: object) -> dict[str, Any]:
    return {"type": "object", "properties": {"it": part}}


def refused(payload: Any, schema: dict[str, Any] = SCHEMA) -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        filled(schema, payload)
    return caught.value


def test_defaults_are_filled_in_at_every_depth() -> None:
    check_parameters(SCHEMA)

    whole = filled(SCHEMA, {"host": "web", "where": {}, "steps": [{}, {"wait": 2}]})

    assert whole == {
        "host": "web",
        "count": 3,
        "where": {"zone": "a"},
        "steps": [{"wait": 0}, {"wait": 2}],
    }


def test_without_a_schema_any_payload_goes() -> None:
    check_parameters(None)
    assert filled(None, None) is None
    assert filled(None, {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("payload", "pointer", "word"),
    [
        (None, "/host", "is required"),
        ({"host": "web", "count": 9}, "/count", "maximum 5"),
        ({"host": "web", "count": "1"}, "/count", "type"),
        ({"host": "WEB"}, "/host", "pattern"),
        ({"host": "web", "a/b~c": 1}, "/a~1b~0c", "type"),
        ({"host": "web", "no": 1}, "/no", "is not a parameter"),
        ({"host": "web", "where": {"zone": 1}}, "/where/zone", "type"),
        ({"host": "web", "steps": [{}, 3]}, "/steps/1", "type"),
        ({"host": "web", "steps": [{"wait": 1}, {"wait": 1.0}]}, "/steps", "unique"),
    ],
)
def test_a_fault_is_told_with_a_pointer_to_it(
    payload: Any, pointer: str, word: str
) -> None:
    error = refused(payload)

    assert error.facts["pointer"] == pointer
    assert word in str(error)
    assert str(error).startswith(f"automation_payload{pointer}: ")


def test_every_fault_is_told_and_no_value_is_repeated() -> None:
    error = refused({"host": "HUNTER2", "count": 0, "no": "HUNTER2"})

    faults = error.facts["faults"]
    assert isinstance(faults, list)
    assert [fault["pointer"] for fault in faults] == ["/count", "/host", "/no"]
    assert "HUNTER2" not in str(error.facts) + str(error)


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ([], None),
        ({}, None),
        ({"type": "array"}, None),
        (a_schema({"type": "strin"}), "/properties/it/type"),
        (a_schema({"$ref": "https://example.org/schema"}), "/properties/it/$ref"),
        (a_schema({"$ref": "file:///etc/passwd"}), "/properties/it/$ref"),
        (a_schema({"$ref": "#/properties/it"}), "/properties/it/$ref"),
        (a_schema({"$ref": "#/$defs/a%25"}), "/properties/it/$ref"),
        (a_schema({"$ref": "#/$defs/gone"}), None),
        (a_schema({"$dynamicRef": "#x"}), "/properties/it/$dynamicRef"),
        (a_schema({"$id": "https://example.org"}), "/properties/it/$id"),
        (a_schema({"$schema": "http://json-schema.org/draft-07/schema#"}), None),
        (a_schema({"patternProperties": {}}), "/properties/it/patternProperties"),
        (a_schema({"unevaluatedItems": False}), "/properties/it/unevaluatedItems"),
        (a_schema({"minimun": 1}), "/properties/it/minimun"),
        (a_schema({"pattern": "("}), "/properties/it/pattern"),
        (a_schema({"pattern": "(?=a)b"}), "/properties/it/pattern"),
        (a_schema({"pattern": "a" * 501}), "/properties/it/pattern"),
        (a_schema({"pattern": 1}), "/properties/it/pattern"),
        (a_schema({"type": "string", "default": 1}), "/properties/it/default"),
        (a_schema({"items": 3}), "/properties/it/items"),
        ({"type": "object", "properties": []}, "/properties"),
        ({"type": "object", "properties": {"a": {"enum": ["x" * 70_000]}}}, None),
    ],
)
def test_bad_schemas_are_refused_when_saved(schema: Any, pointer: str | None) -> None:
    with pytest.raises(InvalidError) as caught:
        check_parameters(schema)

    assert str(caught.value).startswith("metadata.parameters")
    if pointer is not None:
        assert caught.value.facts["pointer"] == pointer


def test_a_schema_may_not_grow_when_it_is_followed() -> None:
    doubling = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(12)
    }
    doubling["d12"] = {"type": "null"}  # type: ignore[dict-item]
    loop = {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"items": deep}

    for schema in (
        {**a_schema({"$ref": "#/$defs/d0"}), "$defs": doubling},
        {**a_schema({"$ref": "#/$defs/a"}), "$defs": loop},
        {"type": "object", "$defs": loop},
        a_schema(deep),
    ):
        with pytest.raises(InvalidError):
            check_parameters(schema)


def test_s_no_pattern_takes_long() -> None:
    schema = a_schema({"type": "string", "pattern": "^(a+)+$"})
    check_parameters(schema)
    began = time.process_time()

    error = refused({"it": "a" * 60_000 + "!"}, schema)

    assert error.facts["pointer"] == "/it"
    assert time.process_time() - began < 1.0


def test_a_payload_too_large_for_its_schema_is_refused() -> None:
    many = {"type": "array", "contains": {"anyOf": [{"const": n} for n in range(200)]}}

    assert refused({"it": [-1] * 5000}, a_schema(many)).facts["pointer"] == ""
    assert refused({"it": "x" * 70_000}, a_schema({})).facts["pointer"] == ""


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "items", "properties", "$ref", "$defs", "default", "enum"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), _JSON, max_size=3), _JSON)
def test_whatever_comes_is_taken_or_refused(payload: Any, part: Any) -> None:
    schema = a_schema(part)
    try:
        check_parameters(schema)
        filled(schema, payload)
    except InvalidError:
        pass
