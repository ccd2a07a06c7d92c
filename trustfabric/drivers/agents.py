"""Guest agents that are asked from outside: over virtio-serial, or over vsock.

A question and its answer are a line of JSON each: see `trustfabric.agent.serve`.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from trustfabric.domain.accelerators import Attester
from trustfabric.domain.evidence.documents import MAX_EVIDENCE, plain_text, read_object
from trustfabric.domain.evidence.model import Reject
from trustfabric.domain.vms import check_instance_name, vm_uuid, vsock_cid
from trustfabric.errors import UnavailableError

VSOCK_PORT: Final = 7610
"""As the guest agent listens on it."""
_MAX_ANSWER = 2 * MAX_EVIDENCE
"""Evidence inside one more JSON document."""
_PASSED_OVER = 32
"""Answers to others, who did not wait for them; more would take up everybody's time."""

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AgentSockets:
    """Asks the agent of a VM by the VM's name; time is kept by whoever asks."""

    def __init__(self, root: Path) -> None:
        """`root` is the folder of sockets that the domains' ports end in."""
        self._root = root

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        """Return what the agent shows. UnavailableError: nothing, or it can't.

        What is no answer at all is returned as it came: it is judged, and refused.
        """
        return await ask_at(name, self._path(name), extra_data)

    async def collect_of(
        self, name: str, accelerator: Attester, extra_data: bytes
    ) -> bytes:
        """As `collect`, of one of its accelerators."""
        question = _about(accelerator, extra_data)
        return await _ask(name, _open_socket(self._path(name)), question)

    def _path(self, name: str) -> Path:
        check_instance_name(name)
        return self._root / f"{name}.sock"


class AgentVsock:
    """The same over vsock, for VMs of hypervisors on this machine."""

    def __init__(self, runtime_id: str) -> None:
        """Know the context ids of this runtime's VMs, which it gave them."""
        self._runtime_id = runtime_id

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        """As `AgentSockets.collect`."""
        check_instance_name(name)
        cid = vsock_cid(vm_uuid(self._runtime_id, name))
        question = {"extra_data": extra_data.hex()}
        return await _ask(name, _open_vsock(cid), question)

    async def collect_of(
        self, name: str, accelerator: Attester, extra_data: bytes
    ) -> bytes:
        """As `collect`, of one of its accelerators."""
        check_instance_name(name)
        cid = vsock_cid(vm_uuid(self._runtime_id, name))
        return await _ask(name, _open_vsock(cid), _about(accelerator, extra_data))


async def ask_at(name: str, path: Path, extra_data: bytes) -> bytes:
    """As `AgentSockets.collect`, of the agent that answers at this socket."""
    return await _ask(name, _open_socket(path), {"extra_data": extra_data.hex()})


async def listens(path: Path) -> bool:
    """Tell whether somebody answers at this socket."""
    try:
        _, writer = await _open_socket(path)
    except OSError:
        return False
    writer.close()
    return True


def _about(accelerator: Attester, extra_data: bytes) -> dict[str, str]:
    return {
        "extra_data": extra_data.hex(),
        "kind": accelerator.kind,
        "accelerator": accelerator.id,
    }


async def _open_socket(path: Path) -> Streams:
    """Connect, also where the path is longer than a socket address may be."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(
            f"/proc/self/fd/{folder}/{path.name}", limit=_MAX_ANSWER
        )
    finally:
        os.close(folder)


async def _open_vsock(cid: int) -> Streams:
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (cid, VSOCK_PORT))
        return await asyncio.open_connection(sock=connection, limit=_MAX_ANSWER)
    except BaseException:
        connection.close()
        raise


async def _ask(
    name: str, opening: Awaitable[Streams], question: Mapping[str, str]
) -> bytes:
    try:
        reader, writer = await opening
    except OSError as error:
        raise UnavailableError(f"agent of {name}: {error.strerror}") from error
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        await writer.drain()
        line = await reader.readuntil(b"\n")
        passed = 0
        while _answers_another(line, question["extra_data"]):
            if (passed := passed + 1) > _PASSED_OVER:
                raise UnavailableError(f"agent of {name}: it answers others only")
            line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        return b"an answer without an end"
    except (OSError, asyncio.IncompleteReadError) as error:
        raise UnavailableError(f"agent of {name}: it hung up") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return _evidence(name, line)


def _answers_another(line: bytes, extra_data: str) -> bool:
    """Whether it was asked before, by somebody who did not wait for it."""
    try:
        asked = read_object(line, "answer", _MAX_ANSWER).get("extra_data")
    except Reject:
        return False
    return asked is not None and asked != extra_data


def _evidence(name: str, line: bytes) -> bytes:
    try:
        members = read_object(line, "answer", _MAX_ANSWER)
    except Reject:
        return line
    if isinstance(refused := members.get("refused"), str):
        raise UnavailableError(f"agent of {name}: {plain_text(refused[:200])}")
    evidence = members.get("evidence")
    try:
        return evidence.encode() if isinstance(evidence, str) else line
    except UnicodeEncodeError:  # half a character
        return line
