"""Secrets by name, and the mask."""

import base64
import json
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.drivers.secrets import MASK, Masker, Secrets, masker_of
from trustfabric.errors import NotFoundError


def test_a_file_wins_and_is_read_at_each_use(tmp_path: Path) -> None:
    secrets = Secrets({"db": "from-env"}, tmp_path)
    assert secrets.resolve("db") == "from-env"

    (tmp_path / "db").write_text("first\n")
    assert secrets.resolve("db") == "first"
    (tmp_path / "db").write_text("second\r\n")
    assert secrets.resolve("db") == "second"


@pytest.mark.parametrize("name", ["", "../db", "/etc/passwd", "a/b", ".", "absent"])
def test_other_names_are_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        Secrets({}, tmp_path).resolve(name)


def test_every_form_is_masked() -> None:
    secret = "päss word\nline-two"
    masker = Masker([secret, ""])

    for form in (
        secret,
        "line-two",
        base64.b64encode(secret.encode()).decode().rstrip("="),
        "p%C3%A4ss%20word%0Aline-two",
    ):
        assert masker.mask(f"<{form}>") == f"<{MASK}>"


def test_without_secrets_nothing_is_masked() -> None:
    assert Masker([]).mask("text") == "text"


@given(
    st.binary(max_size=20),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8),
    st.binary(max_size=20),
)
def test_a_secret_is_found_inside_longer_text_that_was_encoded(
    before: bytes, secret: str, after: bytes
) -> None:
    masker = Masker([secret])
    whole = before + secret.encode() + after

    for text in (
        base64.b64encode(whole).decode(),
        base64.urlsafe_b64encode(whole).decode(),
        whole.hex(),
        json.dumps({"a": secret}),
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
    ):
        assert MASK in masker.mask(text), text


def test_documents_and_files_are_masked_all_through() -> None:
    masker = Masker(["hunter2-hunter2"])

    assert masker.mask_document({"hunter2-hunter2": [("hunter2-hunter2", 1)]}) == {
        "***": [["***", 1]]
    }
    assert masker.mask_bytes(b"\xff hunter2-hunter2 \0") == b"\xff *** \0"
    assert Masker([]).mask_bytes(b"x") == b"x"


def test_the_secrets_of_a_playbook_are_those_that_it_names() -> None:
    secrets = Secrets({"a": "first-secret", "b": "second-secret"})

    masker = masker_of(secrets, {"env": {"X": "secret:a"}, "h": ["Bearer secret:none"]})

    assert masker.mask("first-secret second-secret") == "*** second-secret"
