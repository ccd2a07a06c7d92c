"""Reports through configfs-tsm, the kernel's one interface to every sort of TEE.

A report is made by writing 64 bytes to `inblob` of an entry and reading `outblob`.
Others may use the same entry: `generation` rises with each write, so a report counts
only when exactly our one write lies between two readings of it.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trustfabric.agent.transport import UnreachableError

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
SEV_GUEST, TDX_GUEST = "sev_guest", "tdx_guest"
"""Providers, as the kernel names them."""

REPORT_DATA = 64
_MAX_BLOB = 64 * 1024
_ATTEMPTS = 5
_AGAIN = frozenset({errno.EWOULDBLOCK, errno.EBUSY, errno.EINTR})


@dataclass(frozen=True, slots=True)
class TsmReport:
    """What the processor signed, and what came along."""

    provider: str
    outblob: bytes
    auxblob: bytes
    """For SEV-SNP: the host's table of certificates; may be empty."""


def ask(report_data: bytes, root: Path = REPORTS) -> TsmReport:
    """Have a report made. `root` is the folder of entries, or one entry in it.

    UnreachableError where there is no such interface, or others keep disturbing.
    """
    if len(report_data) != REPORT_DATA:
        raise ValueError(f"report data has {REPORT_DATA} bytes")
    try:
        with _entry(root) as entry:
            for _ in range(_ATTEMPTS):
                report = _attempt(entry, report_data)
                if report is not None:
                    return report
    except OSError as error:
        raise UnreachableError(f"configfs-tsm: {error}") from error
    raise UnreachableError("configfs-tsm: others write to the same entry")


@contextmanager
def _entry(root: Path) -> Iterator[Path]:
    """Use an entry that was prepared for us, else one of our own while it lasts."""
    if (root / "inblob").exists():
        yield root
        return
    entry = root / f"trustfabric-{os.getpid()}-{secrets.token_hex(4)}"
    os.mkdir(entry)  # noqa: PTH102 - the kernel makes its files
    try:
        yield entry
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(entry)  # noqa: PTH106 - and takes them away


def _attempt(entry: Path, report_data: bytes) -> TsmReport | None:
    """Write and read once; None where somebody else wrote in between."""
    before = _generation(entry)
    try:
        _write(entry / "inblob", report_data)
        outblob = _read(entry / "outblob")
        auxblob = _read(entry / "auxblob", missing=b"")
    except OSError as error:
        if error.errno in _AGAIN:
            return None
        raise
    provider = _read(entry / "provider").decode("ascii", "replace").strip()
    if _generation(entry) != before + 1:
        return None
    return TsmReport(provider, outblob, auxblob)


def _generation(entry: Path) -> int:
    text = _read(entry / "generation").strip()
    try:
        return int(text)
    except ValueError:
        raise UnreachableError("configfs-tsm: a generation that is none") from None


def _write(path: Path, data: bytes) -> None:
    """Write with one call: each is an input of its own."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.EIO, "short write")
    finally:
        os.close(descriptor)


def _read(path: Path, missing: bytes | None = None) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BLOB + 1)
    except OSError as error:
        if missing is not None and error.errno in {errno.ENOENT, errno.ENXIO}:
            return missing
        raise
    if len(data) > _MAX_BLOB:
        raise OSError(errno.EFBIG, f"{path.name} is too large")
    return data
