"""Where consoles go, as one variable says it."""

import pytest

from trustfabric.config import load_settings
from trustfabric.config.templates import ConsoleTemplate


def read(text: str) -> ConsoleTemplate:
    given = {"LIBVIRT_CONSOLE_SOURCE": text, "TRUSTFABRIC_DATA_DIR": "/srv/tf"}
    return load_settings(given).libvirt.console_source


@pytest.mark.parametrize("kind", ["pty", "tcp", "unix", "file"])
def test_a_word_is_enough(kind: str) -> None:
    assert read(kind).kind == kind


def test_a_file_and_a_socket_may_lie_where_they_are_told_to() -> None:
    assert read("file:{data_dir}/consoles/{instance_id}.txt").path
    assert read("unix:/run/libvirt/tf-{instance_id}.sock").path


def test_ports_are_a_range() -> None:
    assert read("tcp:21000-21999").ports == (21_000, 21_999)
