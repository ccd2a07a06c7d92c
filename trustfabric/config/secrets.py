"""Secrets that are kept in files."""

import os
import stat
from pathlib import Path

from pydantic import SecretStr

_LARGEST = 4096
_BY_OTHERS = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH


class SecretFileError(Exception):
    """A file can't be used as a secret; the text never holds what is in it."""


def read_secret(path: Path) -> SecretStr:
    """Read a secret, less one newline at its end.

    Raise SecretFileError for a file that is missing, that others can read or write,
    that is no regular file, or that is empty, too long or binary.
    """
    try:
        with path.open("rb") as file:
            _check_mode(path, os.fstat(file.fileno()).st_mode)
            raw = file.read(_LARGEST + 1)
    except OSError as error:
        raise SecretFileError(f"{path}: {error.strerror}") from error
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not raw:
        raise SecretFileError(f"{path} is empty")
    if len(raw) > _LARGEST:
        raise SecretFileError(f"{path} is longer than {_LARGEST} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise SecretFileError(f"{path} is not UTF-8 text") from None
    if not text.isprintable():
        raise SecretFileError(f"{path} holds control characters")
    return SecretStr(text)


def _check_mode(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise SecretFileError(f"{path} is not a regular file")
    if mode & _BY_OTHERS:
        raise SecretFileError(
            f"{path} is open to others than its owner (chmod 600 {path})"
        )
