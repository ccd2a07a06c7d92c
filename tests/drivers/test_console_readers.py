"""What keeps a console from being read is said, with what to do about it."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trustfabric.domain.vms import ConsoleKind, ConsoleSource
from trustfabric.drivers.console_readers import Reader, open_reader, why_unreadable

FILE = ConsoleSource(kind=ConsoleKind.FILE, path="/var/log/x.log")
UNIX = ConsoleSource(kind=ConsoleKind.UNIX, path="/run/x.sock")
TCP = ConsoleSource(kind=ConsoleKind.TCP, port=20_000)


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        (FILE, PermissionError(13, "denied"), ("may not read /var/log/x.log", "ACL")),
        (FILE, PermissionError(13, "denied"), ("SELinux", "AppArmor")),
        (FILE, FileNotFoundError(2, "gone"), ("is not there", "virtlogd")),
        (UNIX, FileNotFoundError(2, "gone"), ("nobody listens at /run/x.sock",)),
        (
            TCP,
            ConnectionRefusedError(111, "no"),
            ("nobody listens at 127.0.0.1:20000",),
        ),
        (UNIX, OSError(40, "a loop"), ("/run/x.sock can't be read: a loop",)),
    ],
)
def test_a_reason_names_the_place_and_the_remedy(
    source: ConsoleSource, error: OSError, said: tuple[str, ...]
) -> None:
    why = why_unreadable(source, error)

    for each in said:
        assert each in why


class Deaf:
    """Hears nothing: the console of this test is never opened."""

    def feed(self, data: bytes) -> None:
        raise AssertionError(data)

    def skip(self, why: str) -> None:
        raise AssertionError(why)

    def end(self) -> None:
        raise AssertionError


@contextmanager
def as_somebody_else() -> Iterator[None]:
    """Where tests run as root: who owns nothing here."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_log_that_only_its_writer_may_read_says_so() -> None:
    """As virtlogd makes them, mode 0600 and root's own."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "console.log"
        log.write_bytes(b"GUEST-UP\n")
        log.chmod(0o600 if os.geteuid() == 0 else 0)
        Path(folder).chmod(0o755)
        source = ConsoleSource(kind=ConsoleKind.FILE, path=str(log))

        with as_somebody_else(), pytest.raises(PermissionError) as refused:
            open_reader(None, source, Deaf(), from_start=True)

    assert f"may not read {log}" in why_unreadable(source, refused.value)


class Turn:
    """libvirt's event loop, of which the test takes a turn when it likes."""

    take: Callable[[], None]

    def virEventAddHandle(  # noqa: N802
        self, descriptor: int, events: int, ready: Any, opaque: Any
    ) -> int:
        self.take = lambda: ready(1, descriptor, 1, opaque)
        return 1

    def virEventRemoveHandle(self, watch: int) -> None:  # noqa: N802
        assert watch == 1


class Closing:
    """Closes what it hears, as another thread may at any time."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.reader: Reader | None = None

    def feed(self, data: bytes) -> None:
        self.heard.append(data)
        assert self.reader is not None
        self.reader.close()

    def skip(self, why: str) -> None:
        raise AssertionError(why)

    def end(self) -> None:
        raise AssertionError("it was closed: that is no end of the console")


def test_what_is_closed_while_it_is_read_says_no_more(tmp_path: Path) -> None:
    ears, turn = Closing(), Turn()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        source = ConsoleSource(kind=ConsoleKind.UNIX, path=str(tmp_path / "s"))
        ears.reader = open_reader(turn, source, ears, from_start=True)
        guest, _ = listening.accept()
        with guest:
            guest.sendall(b"x" * 100_000)
            turn.take()

    assert len(ears.heard) == 1
