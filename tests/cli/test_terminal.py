"""Foreign text is shown, never obeyed (S16)."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import Mcpctl
from tests.cli.host import Host, registry_row
from trustfabric.cli.terminal import LINE_LIMIT, escape, escape_json, escape_lines


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain, größer, 漢字, 🦀", "plain, größer, 漢字, 🦀"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]8;;http://evil\x07x", r"\x1b]8;;http://evil\x07x"),
        ("\x1b]52;c;ZXZpbA==\x07", r"\x1b]52;c;ZXZpbA==\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("done\rfailed", r"done\rfailed"),
        ("two\nlines\tand", r"two\nlines\tand"),
        ("user\u202etxt.exe", r"user\u202etxt.exe"),
        ("a\u2066b\u200bc\ufeff", r"a\u2066b\u200bc\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        ("\udc80", r"\udc80"),
    ],
)
def test_s16_controls_are_escaped_and_the_rest_is_kept(raw: str, shown: str) -> None:
    assert escape(raw) == shown


def test_s16_an_endless_line_is_cut_with_a_marker() -> None:
    shown = escape("x" * 50_000_000)

    assert len(shown) < LINE_LIMIT + 100
    assert shown.endswith(f"[{50_000_000 - LINE_LIMIT} characters more]")


def test_lines_and_tabs_stay_where_they_belong_to_the_text() -> None:
    assert escape_lines("a\tb\nc\x1b") == "a\tb\nc\\x1b"


@given(st.text(st.characters(exclude_categories=())))
def test_s16_nothing_that_acts_on_a_terminal_is_left(raw: str) -> None:
    shown = escape(raw)

    assert shown.isascii() or not any(
        unicodedata.category(char) in ("Cc", "Cs")
        or unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF")
        or unicodedata.bidirectional(char) in ("LRI", "RLI", "FSI", "PDI")
        for char in shown
    )
    assert "\x1b" not in shown


@given(st.text(st.characters(exclude_categories=())))
def test_escaped_json_is_the_same_document(raw: str) -> None:
    document = json.dumps({"text": raw}, ensure_ascii=False)

    safe = escape_json(document)

    assert json.loads(safe) == {"text": raw}
    assert "\x7f" not in safe
    assert "\u202e" not in safe
    safe.encode()


EVIL = "\x1b]0;owned\x07\u202e\rname"


@pytest.mark.parametrize("flags", [(), ("--json",)])
@pytest.mark.parametrize("command", [("get", "7"), ("registry",), ("history", "7")])
async def test_s16_no_command_passes_an_escape_through(
    host: Host, mcpctl: Mcpctl, command: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    row = registry_row(server_name=EVIL)
    event = {"registry_version": 1, "transition_reason": EVIL, "actor": EVIL}
    host.answers("GET", "/api/trust/registry/7", row)
    host.answers("GET", "/api/trust/registry", [row])
    history = {
        "server_id": 3,
        "server_name": EVIL,
        "instance_id": EVIL,
        "events": [event],
    }
    host.answers("GET", "/api/trust/registry/7/history", history)

    done = await mcpctl("trust", *command, *flags)

    assert done.code == 0
    assert not set("\x1b\x07\u202e\r") & set(done.out + done.err)
    if flags:
        assert EVIL in _strings(json.loads(done.out))


def _strings(document: object) -> list[str]:
    match document:
        case str():
            return [document]
        case dict():
            return [s for value in document.values() for s in _strings(value)]
        case list():
            return [s for value in document for s in _strings(value)]
        case _:
            return []


async def test_s16_a_refusal_is_escaped_too(host: Host, mcpctl: Mcpctl) -> None:
    host.refuses("GET", "/api/servers/3", 409, f"x{EVIL}", detail=EVIL, notes=[EVIL])

    done = await mcpctl("servers", "get", "3")

    assert not set("\x1b\x07\u202e\r") & set(done.err)
