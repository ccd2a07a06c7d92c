"""The shell's history is private and holds no token."""

import stat
from pathlib import Path

import pytest

from trustfabric.cli.history import PrivateHistory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "trustfabric" / "shell_history"


def test_it_is_kept_for_its_owner_only(path: Path) -> None:
    PrivateHistory(path).append_string("trust registry")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(PrivateHistory(path).load_history_strings()) == ["trust registry"]


def test_a_file_that_others_could_read_is_closed_to_them(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("")
    path.chmod(0o644)

    PrivateHistory(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "line",
    [
        "--token abc trust registry",
        "--token=abc trust registry",
        "'--token' abc trust registry",
        "trust get eyJhbGciOi.x.y",
    ],
)
def test_a_line_with_a_token_is_not_stored(path: Path, line: str) -> None:
    history = PrivateHistory(path)

    history.append_string(line)

    assert path.read_text() == ""
    assert history.get_strings() == []


def test_a_token_file_may_be_named(path: Path) -> None:
    PrivateHistory(path).append_string("--token-file t trust registry")

    assert "--token-file" in path.read_text()
