"""Answers whoever asks from outside the guest: vsock, a virtio-serial port, a socket.

One question a line, one answer a line, both JSON:

    {"extra_data": "<hex>", "kind": "amd-sev-snp"?, "accelerator": "<id>"?}
        →  {"evidence": "<document>"} or {"refused": "<why>"}

Whoever can open the channel may ask anything: an answer is worth nothing to one whose
challenge it is not about. Questions are answered one at a time.
"""

import contextlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from trustfabric.agent.answers import Sources, answer
from trustfabric.agent.transport import UnansweredError, UnreachableError
from trustfabric.domain.evidence.documents import (
    hex_bytes,
    only_keys,
    read_object,
    text,
)
from trustfabric.domain.evidence.model import EvidenceKind, Reject

PORT: Final = 7610
"""Of vsock, where nothing else is said."""
VIRTIO_NAME: Final = "trustfabric.agent.0"
VIRTIO_PORT: Final = Path("/dev/virtio-ports") / VIRTIO_NAME

MAX_QUESTION = 4096
MAX_DATA = 64
_WAITING = 128
"""Connections in line; one is answered at a time."""
_IDLE_S = 60.0
"""A connection that asks nothing that long is closed."""
_ABSENT_S = 0.5
"""Between two looks at a port that nobody outside has opened."""


class Channel(Protocol):
    """Bytes in and out; `receive` gives nothing when the other side is gone."""

    def receive(self, most: int) -> bytes: ...

    def send(self, data: bytes) -> None: ...


def reply_to(line: bytes, sources: Sources) -> bytes:
    """Return the one line that answers a question, and says which.

    Who asks over a port may have gone meanwhile, and come back with another question.
    """
    said: dict[str, str] = {}
    try:
        kind, data, accelerator = _question(line)
        said["extra_data"] = data.hex()
        shown = answer(kind, data, sources, accelerator)
        said["evidence"] = shown.decode("ascii")
    except UnicodeDecodeError:
        said["refused"] = "the evidence is no document"
    except (Reject, UnansweredError) as error:
        said["refused"] = str(error)[:500]
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def _question(line: bytes) -> tuple[EvidenceKind | None, bytes, str | None]:
    members = read_object(line, "question", MAX_QUESTION)
    optional = frozenset({"kind", "accelerator"})
    only_keys(members, "question", frozenset({"extra_data"}), optional)
    accelerator = None
    if "accelerator" in members:
        accelerator = text(members, "accelerator", "question")
    data = hex_bytes(members["extra_data"], "question extra_data")
    if not 0 < len(data) <= MAX_DATA:
        raise UnansweredError(f"extra_data has 1 to {MAX_DATA} bytes")
    if "kind" not in members:
        return None, data, accelerator
    try:
        return EvidenceKind(text(members, "kind", "question")), data, accelerator
    except ValueError:
        raise UnansweredError("no such kind of evidence") from None


def converse(channel: Channel, sources: Sources) -> None:
    """Answer each line until the other side goes, or says something endless."""
    pending = b""
    while True:
        line, end, pending = pending.partition(b"\n")
        if end:
            channel.send(reply_to(line, sources))
            continue
        if len(line) > MAX_QUESTION:
            return
        received = channel.receive(MAX_QUESTION)
        if not received:
            return
        pending = line + received


class SocketChannel:
    """A connection of a stream socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(_IDLE_S)

    def receive(self, most: int) -> bytes:
        return self._connection.recv(most)

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)


class PortChannel:
    """A virtio-serial port: a character device, silent while nobody has it open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def receive(self, most: int) -> bytes:
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLIN)
        for _, event in waiting.poll():
            if event & select.POLLIN:
                return os.read(self._descriptor, most)
        return b""

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def listen_vsock(port: int) -> socket.socket:
    """Listen for the host. UnreachableError where this guest has no vsock."""
    try:
        listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listening.bind((socket.VMADDR_CID_ANY, port))
        listening.listen(_WAITING)
    except OSError as error:
        raise UnreachableError(f"vsock: {error.strerror}") from error
    return listening


def listen_unix(path: Path) -> socket.socket:
    """Listen on a socket of the file system, for its owner alone. UnreachableError.

    For a VMM whose vsock ends in one, and for an agent that stands beside its VM. A
    socket that is there already is an earlier agent's, and makes room.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.is_socket():
            path.unlink()
        listening.bind(os.fspath(path))
        listening.listen(_WAITING)
    except OSError as error:
        listening.close()
        raise UnreachableError(f"{path}: {error.strerror or error}") from error
    finally:
        os.umask(before)
    return listening


def serve_socket(listening: socket.socket, sources: Sources) -> None:
    """Answer one connection after the other, for ever."""
    while True:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            converse(SocketChannel(connection), sources)


def serve_port(
    path: Path, sources: Sources, pause: Callable[[float], None] = time.sleep
) -> None:
    """Answer on a virtio-serial port, for ever. UnreachableError: there is none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UnreachableError(f"{path}: {error.strerror}") from error
    try:
        while True:
            try:
                converse(PortChannel(descriptor), sources)
            except OSError as error:
                sys.stderr.write(f"{path}: {error.strerror}\n")
            pause(_ABSENT_S)
    finally:
        os.close(descriptor)
