"""What keeps a console from being read is said, with what to do about it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trustfabric.domain.vms import ConsoleKind, ConsoleSource
from trustfabric.drivers.console_readers import open_reader, why_unreadable

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
