"""What programs leave: files are kept, everything cunning is refused and named."""

import os
from pathlib import Path

import pytest

from trustfabric.drivers.leavings import Leavings, LeavingsLimits, collect
from trustfabric.drivers.secrets import Masker

SMALL = LeavingsLimits(files=3, file_bytes=100, total_bytes=150, depth=2, entries=20)


def taken(folder: Path, limits: LeavingsLimits = SMALL) -> Leavings:
    return collect(folder, limits, Masker(["hunter2-hunter2"]))


def names(found: Leavings) -> list[str]:
    return [file.name for file in found.files]


def test_files_are_kept_with_their_types(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\0text")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.json").write_text("{}")

    found = taken(tmp_path)

    assert [(f.name, f.media_type.partition(";")[0]) for f in found.files] == [
        ("a.txt", "text/plain"),
        ("sub/b.json", "application/json"),
    ]
    assert found.files[0].content == b"\xff\0text"
    assert found.notes == []


def test_s14_links_pipes_and_devices_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's own")
    output = tmp_path / "output"
    output.mkdir()
    (output / "link").symlink_to(secret)
    (output / "folder").symlink_to("/etc")
    (output / "hard").hardlink_to(secret)
    os.mkfifo(output / "pipe")
    (output / "null").symlink_to("/dev/zero")
    if os.geteuid() == 0:
        os.mknod(output / "device", 0o20644, os.makedev(1, 5))

    found = taken(output)

    assert names(found) == []
    assert len(found.notes) == len(list(output.iterdir()))
    assert "hard link" in "".join(found.notes)


def test_the_output_directory_may_not_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "output").symlink_to("/etc")

    found = taken(tmp_path / "output")

    assert (names(found), len(found.notes)) == ([], 1)


@pytest.mark.parametrize("name", ["a\nb", "ä", "\x1b]8;;x", "a\\b", "x" * 120])
def test_s14_names_that_are_not_plain_are_refused_and_shown_plainly(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("x")

    found = taken(tmp_path)

    assert names(found) == []
    (note,) = found.notes
    assert note.isascii()
    assert note.isprintable()


def test_sizes_and_counts_are_bounded(tmp_path: Path) -> None:
    for name, size in (("a", 101), ("b", 100), ("c", 51), ("d", 50), ("e", 0)):
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "f").write_text("")

    found = taken(tmp_path)

    assert names(found) == ["b", "d", "e"]
    assert len(found.notes) == 3


def test_a_file_that_pretends_to_be_huge_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 << 40)

    found = taken(tmp_path)

    assert names(found) == []
    assert "larger" in found.notes[0]


def test_a_million_names_are_not_looked_at(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"d{number:03}").mkdir()
        (tmp_path / f"d{number:03}" / "x").write_text("")

    found = taken(tmp_path)

    assert len(found.files) <= SMALL.files
    assert any("more than 20 names" in note for note in found.notes)


def test_folders_are_so_deep_and_no_deeper(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "x").write_text("")
    (tmp_path / "a" / "b" / "y").write_text("")

    found = taken(tmp_path)

    assert names(found) == ["a/x"]
    assert any("a/b" in note for note in found.notes)


def test_notes_are_bounded_too(tmp_path: Path) -> None:
    limits = LeavingsLimits(notes=2)
    for number in range(5):
        (tmp_path / f"{number}").symlink_to("/etc/passwd")

    found = taken(tmp_path, limits)

    assert len(found.notes) == 3
    assert found.notes[-1] == "3 more files were not kept"


def test_secrets_are_masked_in_files_and_names(tmp_path: Path) -> None:
    (tmp_path / "hunter2-hunter2.log").write_text("x hunter2-hunter2 x")

    found = taken(tmp_path)

    assert names(found) == ["***.log"]
    assert found.files[0].content == b"x *** x"


def test_the_result_is_a_json_object(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"fixed": 3, "by": "hunter2-hunter2"}')

    found = taken(tmp_path)

    assert found.result == {"fixed": 3, "by": "***"}
    assert found.files[0].artifact_type == "result"


@pytest.mark.parametrize("content", ["[]", "{", "{" + '"a":{' * 200, '"\\u0000"'])
def test_what_is_no_result_is_kept_as_a_file_and_told(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "result.json").write_text(content)

    found = taken(tmp_path, LeavingsLimits())

    assert found.result is None
    assert "is no result" in found.notes[0]
