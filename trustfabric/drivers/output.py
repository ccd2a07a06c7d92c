"""A program's output as lines: whole ones, bounded, and without secrets."""

import codecs
from dataclasses import dataclass

from trustfabric.drivers.secrets import Masker

LINE_CUT = " … [line cut]"


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """How much of one stream is kept; the rest is read and dropped."""

    line_chars: int = 4096
    lines: int = 5_000
    chars: int = 2_000_000


class OutputLines:
    """Takes bytes as they come, gives the lines they complete.

    What is not UTF-8 shows as U+FFFD, and so does NUL, which PostgreSQL can't store.
    """

    def __init__(self, masker: Masker, limits: OutputLimits) -> None:
        self._masker = masker
        self._limits = limits
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial = ""
        self._inside_cut_line = False
        self._lines = 0
        self._chars = 0
        self._dropped = 0

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that these bytes end."""
        if self._is_full():
            self._dropped += len(data)
            return []
        text = self._decoder.decode(data).replace("\0", "\ufffd")
        *complete, rest = text.split("\n")
        lines: list[str] = []
        for piece in complete:
            self._add(piece, lines)
            self._end_line(lines)
        self._add(rest, lines)
        return lines

    def end(self) -> list[str]:
        """Return what is left when the stream has ended."""
        lines: list[str] = []
        self._add(self._decoder.decode(b"", final=True), lines)
        if self._partial:
            self._end_line(lines)
        if self._dropped:
            lines.append(f"[output limit: {self._dropped} more bytes were dropped]")
        return lines

    def _is_full(self) -> bool:
        return self._lines >= self._limits.lines or self._chars >= self._limits.chars

    def _add(self, piece: str, lines: list[str]) -> None:
        if self._inside_cut_line:
            return
        self._partial += piece
        bound = self._limits.line_chars + self._masker.longest
        if len(self._partial) <= bound:
            return
        # Masked before it is cut, with room for a secret behind the cut: half of one
        # would not be recognised.
        text = self._masker.mask(self._partial)
        if len(text) > bound:
            self._partial = ""
            self._inside_cut_line = True
            self._keep(text[: self._limits.line_chars] + LINE_CUT, lines)

    def _end_line(self, lines: list[str]) -> None:
        if self._inside_cut_line:
            self._inside_cut_line = False
            return
        text = self._masker.mask(self._partial.removesuffix("\r"))
        self._partial = ""
        if len(text) > self._limits.line_chars:
            text = text[: self._limits.line_chars] + LINE_CUT
        self._keep(text, lines)

    def _keep(self, text: str, lines: list[str]) -> None:
        if self._is_full():
            self._dropped += len(text) + 1
            return
        self._lines += 1
        self._chars += len(text)
        lines.append(text)
        if self._is_full():
            lines.append("[output limit reached: the rest is dropped]")
