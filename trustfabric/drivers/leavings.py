"""What a program left in its output directory, taken without trusting any of it.

The directory is the program's: links, devices, pipes, odd names and floods are
expected. Each file is opened below its directory's descriptor, never by a path that
could lead elsewhere, and only plain files of one name are read. What is not kept is
named, with the reason.
"""

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from trustfabric.domain.documents import check_document
from trustfabric.domain.executors import ProducedFile
from trustfabric.drivers.secrets import Masker
from trustfabric.errors import InvalidError

RESULT_FILE = "result.json"
"""The structured result: a JSON object, kept with the run beside its exit status."""

_NAME = re.compile(r"[A-Za-z0-9_+@=,. -]{1,100}", re.ASCII)
_MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "log": "text/plain; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingsLimits:
    """How much of an output directory is kept."""

    files: int = 32
    file_bytes: int = 4 << 20
    total_bytes: int = 8 << 20
    depth: int = 4
    entries: int = 1000
    """That many names are looked at."""
    result_bytes: int = 64 << 10
    notes: int = 20


@dataclass(slots=True)
class Leavings:
    """What was kept, and why the rest was not."""

    files: list[ProducedFile] = field(default_factory=list)
    result: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    """One a name; the last one tells how many more there were."""


def collect(folder: Path, limits: LeavingsLimits, masker: Masker) -> Leavings:
    """Read what is in the folder, within the limits; nothing in it is followed."""
    return _Collection(limits, masker).read(folder)


class _Collection:
    def __init__(self, limits: LeavingsLimits, masker: Masker) -> None:
        self._limits = limits
        self._masker = masker
        self._found = Leavings()
        self._bytes = 0
        self._unsaid = 0
        self._room = limits.entries

    def read(self, folder: Path) -> Leavings:
        try:
            top = os.open(folder, _FOLDER)
        except OSError as error:
            self._found.notes.append(
                f"no artifacts: the output directory can't be read: {error.strerror}"
            )
            return self._found
        with _closing(top):
            self._read_folder(top, "", self._limits.depth)
        if self._unsaid:
            self._found.notes.append(f"{self._unsaid} more files were not kept")
        return self._found

    def _read_folder(self, folder: int, path: str, depth: int) -> None:
        for name in self._names(folder, path):
            here = f"{path}{name}"
            try:
                below = os.open(name, _FOLDER, dir_fd=folder)
            except OSError:
                self._take(folder, here, name)
                continue
            with _closing(below):
                if depth > 1:
                    self._read_folder(below, f"{here}/", depth - 1)
                else:
                    self._refuse(here, f"folders are {self._limits.depth} deep")

    def _names(self, folder: int, path: str) -> list[str]:
        with os.scandir(folder) as entries:
            names = [one.name for one in itertools.islice(entries, self._room)]
            self._room -= len(names)
            if self._room <= 0 and next(entries, None) is not None:
                self._refuse(f"{path}…", f"more than {self._limits.entries} names")
        return sorted(names)

    def _take(self, place: int, path: str, name: str) -> None:
        """Keep one file of a folder, or say why not."""
        try:
            self._check_name(path)
            content = self._content(place, name)
        except InvalidError as error:
            self._refuse(path, str(error))
            return
        except OSError as error:
            self._refuse(path, error.strerror or "it can't be read")
            return
        self._bytes += len(content)
        masked = self._masker.mask_bytes(content)
        if path == RESULT_FILE:
            self._read_result(masked)
        ending = path.rpartition(".")[2].lower()
        self._found.files.append(
            ProducedFile(
                name=self._masker.mask(path),
                content=masked,
                media_type=_MEDIA_TYPES.get(ending, "application/octet-stream"),
                artifact_type="result" if path == RESULT_FILE else "output",
            )
        )

    def _check_name(self, path: str) -> None:
        if not all(_NAME.fullmatch(part) for part in path.split("/")):
            raise InvalidError("its name has characters that are not plain")

    def _content(self, place: int, name: str) -> bytes:
        file = os.open(name, _FILE, dir_fd=place)
        with _closing(file):
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode):
                raise InvalidError("not a plain file")
            if facts.st_nlink != 1:
                raise InvalidError("it has another name elsewhere (a hard link)")
            if len(self._found.files) >= self._limits.files:
                raise InvalidError(f"there are {self._limits.files} already")
            room = min(self._limits.file_bytes, self._limits.total_bytes - self._bytes)
            content = _read(file, room + 1)
            if len(content) > room:
                raise InvalidError(f"it is larger than the {room} bytes that are left")
            return content

    def _read_result(self, content: bytes) -> None:
        try:
            self._found.result = _result(content, self._limits.result_bytes)
        except InvalidError as error:
            self._refuse(RESULT_FILE, f"is no result: {error}")

    def _refuse(self, path: str, reason: str) -> None:
        if len(self._found.notes) >= self._limits.notes:
            self._unsaid += 1
            return
        shown = self._masker.mask(ascii(path)[1:-1])[:200]
        self._found.notes.append(f"artifact {shown}: not kept: {reason}")


def _result(content: bytes, limit: int) -> dict[str, Any]:
    if len(content) > limit:
        raise InvalidError(f"larger than {limit} bytes")
    try:
        result = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InvalidError(f"not JSON: {error}") from None
    if not isinstance(result, dict):
        raise InvalidError("not an object")
    check_document(RESULT_FILE, result)
    return result


def _read(file: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0 and (part := os.read(file, min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)
