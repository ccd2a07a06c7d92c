"""The newest lines of a console, from any bytes, in bounded memory."""

import re
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

from trustfabric.domain.ports import ConsoleEntry, ConsoleGap, ConsoleItem

LINE_CAP: Final = 4096
CUT: Final = " [cut]"
RING_CAP: Final = 2 << 20
"""Characters that a ring keeps, however many lines it may."""

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

    def __init__(
        self,
        capacity: int,
        *,
        known: Sequence[ConsoleEntry] = (),
        begin: int = 0,
        keep: Callable[[Sequence[ConsoleEntry]], object] | None = None,
    ) -> None:
        """Go on after `known`, else after number `begin`.

        `keep` gets every entry on the feeding thread, before it is forgotten.
        """
        self._entries = deque(known[-capacity:])
        self._capacity = capacity
        self._size = sum(len(entry.text) for entry in self._entries)
        self._partial = bytearray()
        self._cut = False
        self._count = known[-1].seq if known else begin
        self._break: str | None = None
        self._keep = keep
        self._new: list[ConsoleEntry] = []
        self._lock = Lock()

    @property
    def count(self) -> int:
        """How many entries there ever were: the number of the newest."""
        return self._count

    def feed(self, data: bytes) -> None:
        """Take what came; lines end with a line feed, a line's end may come later."""
        with self._lock:
            self._begin_anew()
            *whole, rest = data.split(b"\n")
            for part in whole:
                self._extend(part)
                self._finish()
            self._extend(rest)
        self._hand_over()

    def end(self) -> None:
        """Take what came without a line feed as the last line."""
        with self._lock:
            if self._partial:
                self._finish()
        self._hand_over()

    def break_with(self, why: str) -> None:
        """Mark, before what is fed next, that it doesn't continue what was."""
        self._break = why

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the newest lines, a begun one included."""
        with self._lock:
            known = [entry.text for entry in self._entries if not entry.breaks]
            if self._partial:
                known.append(self._text())
        return tuple(known[-lines:]) if lines > 0 else ()

    def since(self, position: int) -> tuple[ConsoleItem, ...]:
        """Return what came after number `position`, what was forgotten as a gap."""
        with self._lock:
            # At most so many: what is known of an earlier life may have gaps.
            new = min(self._count - position, len(self._entries))
            newest = (self._entries[i] for i in range(-new, 0))
            found = [entry for entry in newest if entry.seq > position]
            oldest = found[0].seq if found else self._count + 1
        if position + 1 < oldest:
            return (ConsoleGap(position + 1, oldest - 1), *found)
        return tuple(found)

    def _begin_anew(self) -> None:
        why, self._break = self._break, None
        if why is None or not self._count:
            return
        if self._partial:
            self._finish()
        self._add(why, breaks=True)

    def _extend(self, part: bytes) -> None:
        room = LINE_CAP - len(self._partial)
        self._partial += part[:room]
        self._cut = self._cut or len(part) > room

    def _finish(self) -> None:
        self._add(self._text(), breaks=False)
        self._partial.clear()
        self._cut = False

    def _add(self, text: str, *, breaks: bool) -> None:
        self._count += 1
        entry = ConsoleEntry(self._count, text, breaks)
        self._entries.append(entry)
        self._new.append(entry)
        self._size += len(text)
        while len(self._entries) > self._capacity or self._size > RING_CAP:
            self._size -= len(self._entries.popleft().text)

    def _hand_over(self) -> None:
        new, self._new = self._new, []
        if new and self._keep is not None:
            self._keep(new)

    def _text(self) -> str:
        line = bytes(self._partial).removesuffix(b"\r")
        return clean(line) + (CUT if self._cut else "")
