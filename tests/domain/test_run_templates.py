"""Run data in documents: typed, whole, and never able to change a document's shape."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.pointers import MISSING, Condition, check_pointer, find, same
from trustfabric.domain.run_templates import filled, filled_text, filled_url
from trustfabric.errors import InvalidError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
def test_a_whole_reference_is_the_value_itself(value: Any) -> None:
    made = filled({"a": ["${payload/x}"]}, {"payload": {"x": value}})

    assert same(made, {"a": [value]})


@given(st.text(max_size=40))
def test_a_text_stays_within_its_text(text: str) -> None:
    made = filled({"a": "<${payload/x}>"}, {"payload": {"x": text}})

    assert json.loads(json.dumps(made)) == {"a": f"<{text}>"}


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_a_value_is_one_segment_of_a_url(text: str) -> None:
    if text in {".", ".."}:
        return
    made = filled_url("https://a/b/${payload/x}/c", {"payload": {"x": text}})

    assert made.startswith("https://a/b/")
    assert made.endswith("/c")
    middle = made.removeprefix("https://a/b/").removesuffix("/c")
    assert not set(middle) & set("/?#&=@:")


@pytest.mark.parametrize("text", ["", ".", ".."])
def test_a_segment_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="no name"):
        filled_url("https://a/${payload/x}", {"payload": {"x": text}})


def test_values_are_not_looked_into_again() -> None:
    data = {"payload": {"x": "${run_id}"}, "run_id": 7}

    assert filled(["${payload/x}", "a ${payload/x}"], data) == [
        "${run_id}",
        "a ${run_id}",
    ]


def test_objects_have_no_text() -> None:
    with pytest.raises(InvalidError, match="not a text or number"):
        filled_text("a ${payload}", {"payload": {}})


def test_truth_is_written_as_json_writes_it() -> None:
    assert filled_text("${payload/x}", {"payload": {"x": True}}) == "true"


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(InvalidError, match=r"\$\{response/id\}: this run has nothing"):
        filled("${response/id}", {"response": MISSING})


def test_keys_are_never_templates() -> None:
    assert filled({"${run_id}": 1}, {"run_id": 7}) == {"${run_id}": 1}


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("", {"a/b": [1, {"~": 2}]}),
        ("/a~1b/0", 1),
        ("/a~1b/1/~0", 2),
        ("/a~1b/2", MISSING),
        ("/a~1b/01", MISSING),
        ("/a~1b/-", MISSING),
        ("/x", MISSING),
    ],
)
def test_pointers_are_rfc_6901(pointer: str, found: Any) -> None:
    check_pointer(pointer)

    assert find({"a/b": [1, {"~": 2}]}, pointer) == found


@pytest.mark.parametrize("pointer", ["a", "/a~", "/a~2", "/~/b"])
def test_what_is_no_pointer_is_refused(pointer: str) -> None:
    with pytest.raises(InvalidError):
        check_pointer(pointer)


def test_a_number_that_is_true_is_not_true() -> None:
    assert not Condition("/a", equals=True).holds({"a": 1})
    assert not Condition("/a", among=(0, "1")).holds({"a": False})
    assert Condition("/a", equals=1).holds({"a": 1.0})
