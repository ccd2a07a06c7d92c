"""Consoles that are a socket or a file of this host, read on libvirt's thread.

What nobody reads stalls the guest, or is lost: so they are read at all times.
"""

import os
import socket
from pathlib import Path
from threading import Lock
from typing import Any, Final, Protocol

from trustfabric.domain.vms import ConsoleKind, ConsoleSource

_READABLE: Final = 1
_ANY_EVENT: Final = 1 | 4 | 8
"""Readable, error, hang-up."""
_CHUNK: Final = 65536
_CHUNKS_A_TURN: Final = 16
_CONNECT_S: Final = 2.0
_TICK_MS: Final = 250
_IDLE_MS: Final = 2000
_IDLE_TICKS: Final = 40
"""A file that has been quiet for so many looks is looked at less often."""
_OLD_BYTES: Final = 256 << 10
"""Of what a file held before it was opened, that much is read."""


class Reader(Protocol):
    """Open from its making until `close`, or until it says that it ended."""

    def close(self) -> None:
        """Stop; nothing is fed afterwards. Fine when it has ended."""


class Ears(Protocol):
    """Where a reader puts what it reads; called on libvirt's thread."""

    def feed(self, data: bytes) -> None: ...

    def skip(self, why: str) -> None:
        """Tell that what comes next doesn't continue what came."""

    def end(self) -> None: ...


def open_reader(
    binding: Any, source: ConsoleSource, ears: Ears, *, from_start: bool
) -> Reader:
    """Open a console that is no pty; blocks, raises OSError.

    A file's old lines are read too where it shall be read from its start.
    """
    match source.kind:
        case ConsoleKind.FILE:
            return _FileReader(binding, Path(source.path or ""), ears, old=from_start)
        case ConsoleKind.UNIX:
            return _SocketReader(binding, _connect_unix(source.path or ""), ears)
        case ConsoleKind.TCP:
            where = (source.host, source.port)
            link = socket.create_connection(where, timeout=_CONNECT_S)
            return _SocketReader(binding, link, ears)
        case _:
            raise OSError(f"a console of kind {source.kind} can't be read")


def place_of(source: ConsoleSource) -> str:
    """Say where a console's lines go, for people."""
    if source.kind is ConsoleKind.TCP:
        return f"{source.host}:{source.port}"
    return source.path or "nowhere"


def why_unreadable(source: ConsoleSource, error: OSError) -> str:
    """Say what keeps a console from being read, and what to do about it."""
    place = place_of(source)
    match error:
        case PermissionError():
            return (
                f"this user may not read {place}: QEMU's user or virtlogd owns it "
                "(give read permission by group or ACL; check SELinux or AppArmor)"
            )
        case FileNotFoundError() if source.kind is ConsoleKind.FILE:
            return (
                f"{place} is not there: its guest is off, or what writes it "
                "(QEMU or virtlogd) does not run on this host or may not write there"
            )
        case FileNotFoundError() | ConnectionRefusedError():
            return f"nobody listens at {place}: its guest is off, or on another host"
        case _:
            return f"{place} can't be read: {error.strerror or error}"


def _connect_unix(path: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(_CONNECT_S)
        link.connect(path)
    except BaseException:
        link.close()
        raise
    return link


class _SocketReader:
    def __init__(self, binding: Any, link: socket.socket, ears: Ears) -> None:
        self._binding = binding
        self._link = link
        self._ears = ears
        self._closing = Lock()
        self._closed = False
        link.setblocking(False)
        self._watch: int = binding.virEventAddHandle(
            link.fileno(), _ANY_EVENT, self._ready, None
        )

    def close(self) -> None:
        self._shut()

    def _shut(self) -> bool:
        """Close it; False if it was closed already, maybe by another thread."""
        with self._closing:
            if self._closed:
                return False
            self._closed = True
        self._binding.virEventRemoveHandle(self._watch)
        self._link.close()
        return True

    def _ready(self, _watch: int, _fd: int, events: int, _opaque: Any) -> None:
        if self._closed:
            return
        if (not events & _READABLE or not self._drain()) and self._shut():
            self._ears.end()

    def _drain(self) -> bool:
        """Read what there is, up to a bound; False at its end."""
        for _ in range(_CHUNKS_A_TURN):
            if self._closed:
                return True
            try:
                data = self._link.recv(_CHUNK)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._ears.feed(data)
        return True


class _FileReader:
    """Follows a file that grows, through its rotation and truncation."""

    def __init__(self, binding: Any, path: Path, ears: Ears, *, old: bool) -> None:
        self._binding = binding
        self._path = path
        self._ears = ears
        self._closing = Lock()
        self._closed = False
        self._idle = 0
        self._file = _open(path)
        size = os.fstat(self._file).st_size
        self._position = max(0, size - _OLD_BYTES) if old else size
        self._timer: int = binding.virEventAddTimeout(_TICK_MS, self._tick, None)

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._binding.virEventRemoveTimeout(self._timer)
            os.close(self._file)

    def _tick(self, _timer: int, _opaque: Any) -> None:
        with self._closing:
            if self._closed:
                return
            try:
                found = self._read()
                if not found:
                    self._notice_rotation()
            except OSError:
                found = False  # the next look tries again
        self._pace(found=found)

    def _read(self) -> bool:
        """Feed what was added; tell whether there was anything."""
        found = False
        if os.fstat(self._file).st_size < self._position:
            self._ears.skip("the console's file was emptied")
            self._position = 0
        for _ in range(_CHUNKS_A_TURN):
            data = os.pread(self._file, _CHUNK, self._position)
            if not data:
                break
            self._position += len(data)
            self._ears.feed(data)
            found = True
        return found

    def _notice_rotation(self) -> None:
        """Go on with the file that took the old one's place."""
        there, ours = self._path.stat(), os.fstat(self._file)
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            return
        newer = _open(self._path)
        os.close(self._file)
        self._file, self._position = newer, 0

    def _pace(self, *, found: bool) -> None:
        before, self._idle = self._idle, 0 if found else self._idle + 1
        if found and before >= _IDLE_TICKS:
            self._binding.virEventUpdateTimeout(self._timer, _TICK_MS)
        elif self._idle == _IDLE_TICKS:
            self._binding.virEventUpdateTimeout(self._timer, _IDLE_MS)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
