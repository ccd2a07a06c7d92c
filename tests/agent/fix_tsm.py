"""A folder that behaves like configfs-tsm: its files answer as the kernel's do.

What is read there is made when it is opened, so each output is a named pipe that a
thread of its own serves; it is replaced as soon as somebody has opened it, so that
nobody reads what was made for another.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

OUTPUTS = ("outblob", "auxblob", "provider", "generation")


@dataclass
class Entry:
    """One report entry of a kernel."""

    path: Path
    make: Callable[[bytes], bytes]
    provider: str = "sev_guest"
    auxblob: bytes = b""
    disturbances: int = 0
    """So often somebody else writes before the output is read."""
    inputs: list[bytes] = field(default_factory=list)
    generation: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        (self.path / "inblob").touch()
        for name in OUTPUTS:
            os.mkfifo(self.path / name)
            thread = threading.Thread(target=self._serve, args=(name,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        self._over.set()
        for name, thread in zip(OUTPUTS, self._threads, strict=True):
            while thread.is_alive():
                os.close(os.open(self.path / name, os.O_RDONLY | os.O_NONBLOCK))
                thread.join(0.01)
        for name in ("inblob", *OUTPUTS):
            (self.path / name).unlink()

    def _serve(self, name: str) -> None:
        while True:
            pipe = (self.path / name).open("wb")
            if self._over.is_set():
                pipe.close()
                return
            self._replace(name)
            with suppress(BrokenPipeError), pipe:
                pipe.write(self._content(name))

    def _replace(self, name: str) -> None:
        fresh = self.path / f".{name}"
        os.mkfifo(fresh)
        fresh.rename(self.path / name)

    def _content(self, name: str) -> bytes:
        with self._lock:
            self._take_input()
            match name:
                case "outblob":
                    if self.disturbances:
                        self.disturbances -= 1
                        self.generation += 1
                    return self.make(self.inputs[-1])
                case "auxblob":
                    return self.auxblob
                case "provider":
                    return f"{self.provider}\n".encode()
                case _:
                    return f"{self.generation}\n".encode()

    def _take_input(self) -> None:
        """Take what was written since: whoever writes also reads, one at a time."""
        inblob = self.path / "inblob"
        data = inblob.read_bytes()
        if data:
            inblob.write_bytes(b"")
            self.inputs.append(data)
            self.generation += 1


@contextmanager
def an_entry(
    path: Path, make: Callable[[bytes], bytes], **options: object
) -> Iterator[Entry]:
    path.mkdir(exist_ok=True)
    entry = Entry(path, make, **options)  # type: ignore[arg-type]
    entry.begin()
    try:
        yield entry
    finally:
        entry.end()
