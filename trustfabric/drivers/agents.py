"""Guest agents behind virtio-serial: the host's end of their port is a unix socket."""

import asyncio
import contextlib
import json
from pathlib import Path

from trustfabric.domain.evidence.documents import MAX_EVIDENCE, read_object
from trustfabric.domain.evidence.model import Reject
from trustfabric.domain.vms import check_instance_name
from trustfabric.errors import UnavailableError

_MAX_ANSWER = 2 * MAX_EVIDENCE
"""Evidence inside one more JSON document."""


class AgentSockets:
    """Asks the agent of a VM by the VM's name; time is kept by whoever asks."""

    def __init__(self, root: Path) -> None:
        """`root` is the folder of sockets that the domains' ports end in."""
        self._root = root

    async def collect(self, name: str, extra_data: bytes) -> bytes:
        """Return what the agent shows. UnavailableError: nothing, or it can't.

        What is no answer at all is returned as it came: it is judged, and refused.
        """
        check_instance_name(name)
        path = self._root / f"{name}.sock"
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_ANSWER)
        except OSError as error:
            raise UnavailableError(f"agent of {name}: {error.strerror}") from error
        try:
            question = json.dumps({"extra_data": extra_data.hex()})
            writer.write(question.encode() + b"\n")
            await writer.drain()
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


def _evidence(name: str, line: bytes) -> bytes:
    try:
        members = read_object(line, "answer", _MAX_ANSWER)
    except Reject:
        return line
    if isinstance(refused := members.get("refused"), str):
        raise UnavailableError(f"agent of {name}: {refused[:200]}")
    evidence = members.get("evidence")
    return evidence.encode() if isinstance(evidence, str) else line
