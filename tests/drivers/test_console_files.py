"""Console lines that outlive a process, in files of bounded size."""

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trustfabric.domain.ports import ConsoleEntry
from trustfabric.drivers import console_files
from trustfabric.drivers.console_files import ConsoleFile
from trustfabric.drivers.console_lines import LineRing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "console-logs" / "vm-1"


def entries(first: int, last: int) -> list[ConsoleEntry]:
    return [ConsoleEntry(n, f"line {n}") for n in range(first, last + 1)]


def test_what_was_appended_is_read(path: Path) -> None:
    written = [*entries(1, 2), ConsoleEntry(3, "a new boot", breaks=True)]

    ConsoleFile(path).append(written[:1])
    ConsoleFile(path).append(written[1:])

    assert ConsoleFile(path).read() == written


def test_nobody_else_may_read_it(path: Path) -> None:
    ConsoleFile(path).append(entries(1, 1))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_its_size_is_bounded_and_the_newest_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_files, "FILE_CAP", 1000)
    file = ConsoleFile(path)

    for n in range(1, 1001):
        file.append(entries(n, n))

    found = file.read()
    assert found == entries(found[0].seq, 1000)
    assert len(found) >= 50
    assert sum(each.stat().st_size for each in path.parent.iterdir()) <= 2100


def test_a_torn_line_is_left_out_and_the_next_is_whole(path: Path) -> None:
    file = ConsoleFile(path)
    file.append(entries(1, 2))
    with path.open("ab") as raw:
        raw.write(b"3")

    file.append(entries(4, 4))

    assert file.read() == [*entries(1, 2), *entries(4, 4)]


def test_a_disk_that_takes_nothing_stops_nothing(path: Path) -> None:
    path.parent.write_text("no folder")

    ConsoleFile(path).append(entries(1, 1))
    ConsoleFile(path).remove()

    assert ConsoleFile(path).read() == []


def test_a_link_in_its_place_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere")

    ConsoleFile(path).append(entries(1, 1))

    assert not (tmp_path / "elsewhere").exists()


def test_removed_it_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_files, "FILE_CAP", 10)
    file = ConsoleFile(path)
    file.append(entries(1, 3))
    file.append(entries(4, 4))

    file.remove()
    file.remove()

    assert list(path.parent.iterdir()) == []


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_any_bytes_of_a_guest_come_back(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    file = ConsoleFile(tmp_path_factory.mktemp("console") / "vm")
    ring = LineRing(1000, keep=file.append)

    for piece in pieces:
        ring.feed(piece)
    ring.end()

    again = LineRing(1000, known=file.read())
    assert again.tail(1000) == ring.tail(1000)
    assert again.count == ring.count
