"""What the policy of the page forbids is not in its files either."""

import re

import pytest

from tests.dashboard.fake import STATIC

_FILES = sorted(path for path in STATIC.iterdir() if path.suffix != ".svg")
_FORBIDDEN = {
    "markup from a string": r"innerHTML|outerHTML|insertAdjacentHTML|document\.write",
    "code from a string": r"\beval\(|new Function|javascript:",
    "storage of secrets": r"localStorage|sessionStorage|indexedDB",
    "somewhere else": r"https?://",
    "inline style or handler": r"<[^>]+\s(style|on[a-z]+)=|<style",
    "inline script": r"<script(?![^>]*\bsrc=)",
    "a frame or plug-in": r"<(iframe|object|embed|base)\b",
}


@pytest.mark.parametrize("pattern", _FORBIDDEN.values(), ids=_FORBIDDEN.keys())
def test_no_file_has(pattern: str) -> None:
    found = [path.name for path in _FILES if re.search(pattern, path.read_text())]

    assert found == []
