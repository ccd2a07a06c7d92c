"""How TPM commands get to a TPM: a device file, or the socket of a software TPM."""

import os
import socket
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Protocol

_HEADER = 10
_MAX_RESPONSE = 4096
_MAX_SOCKET_PATH = 107
_PAUSE_S = 0.01


class UnansweredError(Exception):
    """This guest can't answer, and why: it is told to whoever asked."""


class UnreachableError(Exception):
    """A source of evidence that isn't there, or doesn't answer."""


class TpmUnreachableError(UnreachableError):
    """No TPM there, or it doesn't answer."""


class Transport(Protocol):
    """One command out, its response back."""

    def exchange(self, command: bytes) -> bytes: ...


class TpmSocket:
    """swtpm's data channel: raw commands on a unix socket, one client at a time."""

    def __init__(self, path: Path, within_s: float) -> None:
        """Connect; every answer together may take `within_s` seconds."""
        self._until = time.monotonic() + within_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path)
        except OSError as error:
            self._socket.close()
            raise TpmUnreachableError(f"{path.name}: {error}") from error

    def exchange(self, command: bytes) -> bytes:
        try:
            self._socket.settimeout(self._left())
            self._socket.sendall(command)
            header = self._receive(_HEADER)
            size = int.from_bytes(header[2:6], "big")
            if not _HEADER <= size <= _MAX_RESPONSE:
                raise TpmUnreachableError(f"a response of {size} bytes")
            return header + self._receive(size - _HEADER)
        except OSError as error:
            raise TpmUnreachableError(f"no answer: {error}") from error

    def close(self) -> None:
        self._socket.close()

    def _connect(self, path: Path) -> None:
        """Wait in line: swtpm has no room for others while it serves one."""
        while True:
            self._socket.settimeout(self._left())
            try:
                return _connect(self._socket, path)
            except BlockingIOError:
                time.sleep(_PAUSE_S)

    def _receive(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            self._socket.settimeout(self._left())
            part = self._socket.recv(size - len(received))
            if not part:
                raise TpmUnreachableError("the TPM hung up")
            received += part
        return received

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("time is up")
        return left


def _connect(unconnected: socket.socket, path: Path) -> None:
    """Connect, also where the path is longer than a socket address may be."""
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        unconnected.connect(os.fspath(path))
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unconnected.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


class TpmDevice:
    """A device file such as /dev/tpmrm0: one write, one read."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise TpmUnreachableError(str(error)) from error

    def exchange(self, command: bytes) -> bytes:
        try:
            os.write(self._file, command)
            response = os.read(self._file, _MAX_RESPONSE)
        except OSError as error:
            raise TpmUnreachableError(f"no answer: {error}") from error
        if len(response) < _HEADER:
            raise TpmUnreachableError(f"a response of {len(response)} bytes")
        return response

    def close(self) -> None:
        os.close(self._file)


def open_tpm(path: Path, within_s: float) -> "closing[TpmSocket | TpmDevice]":
    """Open whatever sort of TPM `path` is; the context closes it."""
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except OSError as error:
        raise TpmUnreachableError(str(error)) from error
    return closing(TpmSocket(path, within_s) if is_socket else TpmDevice(path))
