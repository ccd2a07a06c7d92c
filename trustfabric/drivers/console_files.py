"""The newest lines of a console in a file, so that they outlive our process.

Two files of bounded size: the older one is what was there before the last rotation.
A line is an entry: its number, a blank (or `!` for a break), its text.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from trustfabric.domain.ports import ConsoleEntry

log = structlog.get_logger(__name__)

FILE_CAP: Final = 1 << 20
"""Bytes after which a file is the older one."""
_ENTRY: Final = re.compile(r"([1-9][0-9]{0,17})([ !])(.*)")
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class ConsoleFile:
    """Used by one thread at a time; trouble with the disk is logged, never raised."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = path.with_name(f"{path.name}.1")
        self._failed = False

    def read(self) -> list[ConsoleEntry]:
        """Return what is there, oldest first; what is torn or garbled is left out."""
        found: list[ConsoleEntry] = []
        for path in (self._older, self._path):
            for entry in _entries(_text(path)):
                if not found or entry.seq > found[-1].seq:
                    found.append(entry)
        return found

    def append(self, entries: Sequence[ConsoleEntry]) -> None:
        lines = "".join(
            f"{entry.seq}{'!' if entry.breaks else ' '}{entry.text}\n"
            for entry in entries
        )
        try:
            self._write(lines.encode("utf-8", "backslashreplace"))
        except OSError as error:
            if not self._failed:
                log.warning("console.not-kept", path=self._path.name, error=str(error))
            self._failed = True
        else:
            self._failed = False

    def remove(self) -> None:
        for path in (self._path, self._older):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("console.not-removed", path=path.name, error=str(error))

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, _FLAGS, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data  # after a torn line
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        if size + len(data) > FILE_CAP:
            self._path.replace(self._older)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        log.warning("console.not-read", path=path.name, error=str(error))
        return ""


def _entries(text: str) -> Iterator[ConsoleEntry]:
    whole: Iterable[str] = text.split("\n")[:-1]
    for line in whole:
        if (match := _ENTRY.fullmatch(line)) is not None:
            yield ConsoleEntry(int(match[1]), match[3], match[2] == "!")
