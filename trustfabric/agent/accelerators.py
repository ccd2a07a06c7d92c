"""Evidence of this guest's accelerators, from a program that the operator names.

It is run as `PROGRAM ACCELERATOR NONCE`: the accelerator as the host's PCI address,
the nonce as 64 hexadecimal digits. It prints one evidence document and ends with 0.
Which of the guest's devices is meant only it can know: in the guest they have other
addresses.
"""

import os
import selectors
import subprocess
import time
from pathlib import Path
from typing import IO, Final

from trustfabric.agent.transport import UnansweredError
from trustfabric.domain.evidence.documents import MAX_EVIDENCE

_CHUNK: Final = 65_536
_SAID: Final = 200


def ask(program: Path | None, accelerator: str, nonce: bytes, within_s: float) -> bytes:
    """Return what the program prints. UnansweredError: nothing, late or too much."""
    if program is None:
        raise UnansweredError("accelerators are not asked here: give --accelerators")
    command = [str(program), accelerator, nonce.hex()]
    try:
        running = subprocess.Popen(  # the operator's own program
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise UnansweredError(f"{program}: {error}") from error
    with running:
        try:
            said, complained = _read(running, time.monotonic() + within_s)
        except UnansweredError as error:
            raise UnansweredError(f"{program}: {error}") from None
        finally:
            _end(running)
    if running.returncode != 0:
        why = complained[:_SAID].decode("utf-8", "replace").strip()
        raise UnansweredError(f"{program} ended with {running.returncode}: {why}")
    return said.strip()


def _read(running: subprocess.Popen[bytes], until: float) -> tuple[bytes, bytes]:
    """Return what it prints and what it complains of, once it has ended."""
    assert running.stdout is not None
    assert running.stderr is not None
    texts: dict[IO[bytes], bytearray] = {
        running.stdout: bytearray(),
        running.stderr: bytearray(),
    }
    with selectors.DefaultSelector() as selector:
        for pipe in texts:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = until - time.monotonic()
            if left <= 0:
                raise UnansweredError("no answer in time")
            for key, _ in selector.select(left):
                pipe = key.fileobj  # type: ignore[assignment]  # as it was registered
                data = os.read(key.fd, _CHUNK)
                texts[pipe] += data
                if not data:
                    selector.unregister(pipe)
                if len(texts[pipe]) > MAX_EVIDENCE:
                    raise UnansweredError("an answer without an end")
    try:
        running.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise UnansweredError("no answer in time") from None
    return bytes(texts[running.stdout]), bytes(texts[running.stderr])


def _end(running: subprocess.Popen[bytes]) -> None:
    """End it and whatever it started."""
    if running.poll() is None:
        os.killpg(running.pid, 9)
        running.wait()
