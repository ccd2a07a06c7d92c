"""Secrets by name, and the mask."""

import base64
from pathlib import Path

import pytest

from trustfabric.drivers.secrets import MASK, Masker, Secrets
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
