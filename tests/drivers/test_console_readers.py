"""What keeps a console from being read is said, with what to do about it."""

import pytest

from trustfabric.domain.vms import ConsoleKind, ConsoleSource
from trustfabric.drivers.console_readers import why_unreadable

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
