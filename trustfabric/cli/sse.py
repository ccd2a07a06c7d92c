"""Server-sent events from bytes, by the HTML standard's rules; no IO.

Lines end in LF, CR or CRLF. An event counts once its empty line was seen: what
a cut connection left unfinished is dropped, and so is its id.
"""

import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TypeAlias

EVENT_LIMIT = 16 * 1024 * 1024
"""Bytes that one event may take before the stream counts as broken."""

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    id: str
    """Where a client that comes back resumes; opaque."""
    event: str
    data: str


@dataclass(frozen=True, slots=True)
class Comment:
    text: str
    """A heartbeat, usually."""


Frame: TypeAlias = Event | Comment


class EventTooLongError(ValueError):
    """One event went past EVENT_LIMIT."""


class Parser:
    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        """The id of the newest complete event."""
        self.retry_s: float | None = None
        """How long the host asks to wait before coming back."""
        self._rest = b""
        self._first = True
        self._id = last_event_id
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[Frame]:
        """Every frame that `chunk` completed."""
        buffer = self._rest + chunk
        if self._first:
            if len(buffer) < len(BOM_UTF8) and BOM_UTF8.startswith(buffer):
                self._rest = buffer
                return []
            buffer = buffer.removeprefix(BOM_UTF8)
            self._first = False
        frames: list[Frame] = []
        start = 0
        for end in _LINE_END.finditer(buffer):
            if end.group() == b"\r" and end.end() == len(buffer):
                break  # its LF may come with the next bytes
            frame = self._line(buffer[start : end.start()].decode(errors="replace"))
            if frame is not None:
                frames.append(frame)
            start = end.end()
        self._rest = buffer[start:]
        if len(self._rest) + self._size > EVENT_LIMIT:
            raise EventTooLongError
        return frames

    def _line(self, line: str) -> Frame | None:
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            return Comment(line[1:].removeprefix(" "))
        name, _, value = line.partition(":")
        self._field(name, value.removeprefix(" "))
        return None

    def _field(self, name: str, value: str) -> None:
        match name:
            case "data":
                self._data.append(value)
                self._size += len(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_s = int(value) / 1000

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id
        data, event = self._data, self._event
        self._data, self._event, self._size = [], "", 0
        if not data:
            return None
        return Event(self._id, event or "message", "\n".join(data))
