"""S12 and S13 of the scenario documents: text that readers disagree on is refused."""

import json

import pytest

from trustfabric.scenarios.strict import DEPTH_LIMIT, SIZE_LIMIT, StrictError, parse

BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ]
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: key 'a' is there twice"),
        ("a: {b: 1, b: 2}\n", "key 'b' is there twice"),
        (BOMB, "line 1: anchors and aliases are not accepted"),
        ("a: &x {}\nb: {<<: *x}\n", "anchors and aliases"),
        ("b: {<<: {c: 1}}\n", "merge keys are not accepted"),
        ("a: !!python/object:os.system {}\n", "tags are not accepted"),
        ("a: !!str 1\n", "tags are not accepted"),
        ("1: a\n", "keys are texts"),
        ("? [a]\n: b\n", "keys are texts"),
        ("[" * 10_000, f"nested deeper than {DEPTH_LIMIT}"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("a: [1\n", "expected"),
        ("a: 1e400\n", "$.a: is not a finite number"),
        ("a: 18446744073709551616\n", "$.a: not every reader holds"),
        ("a:\n\tb: 1\n", "line 2: found character"),
        ("a: \x07\n", "is not YAML"),
    ],
)
def test_s12_yaml_that_readers_disagree_on_is_refused(text: str, fault: str) -> None:
    with pytest.raises(StrictError, match=r".") as refused:
        parse(text.encode(), "yaml")
    assert fault in str(refused.value)


def test_s12_words_of_yaml_stay_words() -> None:
    text = "on: yes\nat: 12:30:00\nday: 2026-01-01\nmode: 0o17\nlead: 007\nx: .inf\n"
    assert parse(text.encode(), "yaml") == {
        "on": "yes",
        "at": "12:30:00",
        "day": "2026-01-01",
        "mode": "0o17",
        "lead": "007",
        "x": ".inf",
    }


def test_yaml_reads_what_json_reads() -> None:
    value = {"a": [1, -2, 0.5, 1e3, True, False, None, "x"], "b": {}, "c": ""}
    text = "a: [1, -2, 0.5, 1e3, true, false, null, x]\nb: {}\nc: ''\n"
    assert parse(text.encode(), "yaml") == value
    assert parse(json.dumps(value).encode(), "json") == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' is there twice"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": 1e400}', "$.a: is not a finite number"),
        (b'{"a": 18446744073709551616}', "not every reader holds"),
        (b'{"a": "\\ud800"}', "$.a: holds NUL or half a character"),
        (b'{"\\u0000": 1}', "$: holds NUL or half a character"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 40 + b"]" * 40, "nested deeper"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"{", "is not JSON"),
        (b'"\xff"', "is not UTF-8 at byte 1"),
        (b" " * (SIZE_LIMIT + 1), "is larger than"),
    ],
)
def test_s13_json_that_readers_disagree_on_is_refused(text: bytes, fault: str) -> None:
    with pytest.raises(StrictError) as refused:
        parse(text, "json")
    assert fault in str(refused.value)
