"""The folder of what makers publish: read where it is needed, anew when it changes."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from threading import Lock

import structlog

from trustfabric.domain.attestation.collateral import Stock, ends_of, most_bytes
from trustfabric.domain.evidence.anchors import Anchors, Collateral
from trustfabric.domain.evidence.model import Reject

log = structlog.get_logger(__name__)

MAKERS = ("amd", "intel")
MOST_FILES = 1024
"""Looked at in a survey."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A file as it was at the last look."""

    mark: tuple[int, ...]
    """Another one: it was changed."""
    collateral: Collateral
    ends: datetime | None
    """When it runs out; None: it can't be used."""


class CollateralFolder:
    """Every method blocks; any number of threads may call them."""

    def __init__(self, folder: Path, anchors: Anchors) -> None:
        self._folder = folder
        self._anchors = anchors
        self._known: dict[str, Known] = {}
        self._lock = Lock()

    def read(self, name: str) -> Collateral | None:
        """Return a file as it is now; None where there is none.

        One that can't be read is empty, and so is every file of a folder that is
        gone: nothing is judged as if no maker had said anything.
        """
        known = self._look(name)
        return None if known is None else known.collateral

    def survey(self) -> list[Known]:
        """Look at every file; what can't be used is logged, once per change."""
        found = (self._look(name) for name in self._names() if most_bytes(name))
        return [known for known in found if known is not None]

    def stock(self) -> dict[str, Stock]:
        """Sum the survey up, by maker. A folder that is gone is no empty one."""
        if not self._folder.is_dir():
            return dict.fromkeys(MAKERS, Stock(ends=None, unusable=1))
        known = self.survey()
        of = {
            maker: [each for each in known if each.collateral.name.startswith(maker)]
            for maker in MAKERS
        }
        return {
            maker: Stock(
                ends=min((each.ends for each in files if each.ends), default=None),
                unusable=sum(each.ends is None for each in files),
            )
            for maker, files in of.items()
        }

    def strange(self) -> list[str]:
        """Return the files that nothing reads, by their names."""
        return [name for name in self._names() if not most_bytes(name)]

    def _names(self) -> Iterator[str]:
        for path in islice(self._folder.glob("*/*"), MOST_FILES):
            yield path.relative_to(self._folder).as_posix()

    def _look(self, name: str) -> Known | None:
        with self._lock:
            mark = self._mark(name)
            if mark is None:
                self._known.pop(name, None)
                return None
            known = self._known.get(name)
            if known is None or known.mark != mark:
                known = self._known[name] = self._read(name, mark)
            return known

    def _mark(self, name: str) -> tuple[int, ...] | None:
        try:
            found = (self._folder / name).stat()
        except FileNotFoundError:
            return None if self._folder.is_dir() else ()
        except OSError:
            return ()
        times = (found.st_mtime_ns, found.st_ctime_ns)
        return (found.st_mode, found.st_ino, found.st_size, *times)

    def _read(self, name: str, mark: tuple[int, ...]) -> Known:
        collateral = Collateral(name=name, content=b"")
        try:
            collateral = Collateral(name=name, content=self._content(name, mark))
            ends = ends_of(collateral, self._anchors)
        except (OSError, Reject) as error:
            why = error.detail if isinstance(error, Reject) else error.strerror
            log.warning("collateral.unusable", name=name, error=why)
            return Known(mark=mark, collateral=collateral, ends=None)
        log.info("collateral.read", name=name, ends=ends.isoformat())
        return Known(mark=mark, collateral=collateral, ends=ends)

    def _content(self, name: str, mark: tuple[int, ...]) -> bytes:
        if mark and not stat.S_ISREG(mark[0]):  # a pipe would be waited for
            raise OSError(errno.EINVAL, "not a file")
        most = most_bytes(name) or 0
        with (self._folder / name).open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return content
