"""JSON that can't be stored is refused with a pointer to the fault."""

from typing import Any

import pytest

from trustfabric.domain.documents import check_document, plain
from trustfabric.errors import InvalidError


def nested(depth: int) -> Any:
    document: Any = 1
    for _ in range(depth):
        document = [document]
    return document


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ({"a": [1, "b\0"]}, r"m\.a\[1\]"),
        ({"a\0": 1}, "m: a text with NUL"),
        ({"a": "\ud800"}, r"m\.a"),
        ({"a": 2**63}, r"m\.a"),
        ({"a": float("inf")}, r"m\.a"),
        (nested(101), "nested too deeply"),
    ],
)
def test_what_can_not_be_stored_is_named(document: Any, where: str) -> None:
    with pytest.raises(InvalidError, match=where):
        check_document("m", document)


@pytest.mark.parametrize("document", [None, {}, {"a": [True, 1.5, "ä", -(2**63)]}])
def test_all_else_passes(document: Any) -> None:
    check_document("m", document)


def test_plain_text_can_be_stored() -> None:
    assert plain("a\0b\ud800c", 3) == "a\ufffdb"
