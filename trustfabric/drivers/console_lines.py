"""The newest lines of a console, from any bytes, in bounded memory."""

import re
from collections import deque
from itertools import islice
from threading import Lock
from typing import Final

LINE_CAP: Final = 4096
CUT: Final = " [cut]"

_ESCAPES: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor, screen
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # OSC, DCS and other strings
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def clean(line: bytes) -> str:
    """Return a line that can't move a cursor or reorder text; bad bytes as hex."""
    text = line.decode("utf-8", "backslashreplace")
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class LineRing:
    """Fed on one thread, read on others; forgets the oldest."""

    def __init__(self, capacity: int) -> None:
        self._lines: deque[str] = deque(maxlen=capacity)
        self._partial = bytearray()
        self._cut = False
        self._count = 0
        self._lock = Lock()

    @property
    def count(self) -> int:
        """How many whole lines there ever were."""
        return self._count

    def feed(self, data: bytes) -> None:
        """Take what came; lines end with a line feed, a line's end may come later."""
        with self._lock:
            *whole, rest = data.split(b"\n")
            for part in whole:
                self._extend(part)
                self._finish()
            self._extend(rest)

    def end(self) -> None:
        """Take what came without a line feed as the last line."""
        with self._lock:
            if self._partial:
                self._finish()

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the newest lines, a begun one included."""
        with self._lock:
            known = list(self._lines)
            if self._partial:
                known.append(self._text())
        return tuple(known[-lines:]) if lines > 0 else ()

    def since(self, position: int) -> tuple[tuple[str, ...], int]:
        """Return the whole lines after the first `position` ones, and `count`.

        Lines that were forgotten since are not among them.
        """
        with self._lock:
            new = min(self._count - position, len(self._lines))
            start = len(self._lines) - new
            return tuple(islice(self._lines, start, None)), self._count

    def _extend(self, part: bytes) -> None:
        room = LINE_CAP - len(self._partial)
        self._partial += part[:room]
        self._cut = self._cut or len(part) > room

    def _finish(self) -> None:
        self._lines.append(self._text())
        self._count += 1
        self._partial.clear()
        self._cut = False

    def _text(self) -> str:
        line = bytes(self._partial).removesuffix(b"\r")
        return clean(line) + (CUT if self._cut else "")
