"""Bounded readers: the only place that takes bytes of evidence apart."""

from typing import Literal

from trustfabric.domain.evidence.model import Code, Reject

Order = Literal["big", "little"]


class Cursor:
    """Reads a byte string from front to back; running past the end is a Reject."""

    __slots__ = ("_data", "_name", "_order", "offset")

    def __init__(self, data: bytes, name: str, order: Order = "big") -> None:
        self._data = data
        self._name = name
        self._order: Order = order
        self.offset = 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self.offset

    def malformed(self, detail: str) -> Reject:
        return Reject(Code.MALFORMED, self._name, f"at byte {self.offset}: {detail}")

    def take(self, size: int) -> bytes:
        if size > self.remaining:
            raise self.malformed(f"{size} bytes wanted, {self.remaining} left")
        start = self.offset
        self.offset += size
        return self._data[start : self.offset]

    def since(self, start: int) -> bytes:
        """Return what was read from that offset on."""
        return self._data[start : self.offset]

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), self._order)

    def u8(self) -> int:
        return self.uint(1)

    def u16(self) -> int:
        return self.uint(2)

    def u24(self) -> int:
        return self.uint(3)

    def u32(self) -> int:
        return self.uint(4)

    def u64(self) -> int:
        return self.uint(8)

    def sized(self, limit: int) -> bytes:
        """Read a u16 length and so many bytes: TPM's TPM2B."""
        size = self.u16()
        if size > limit:
            raise self.malformed(f"{size} bytes where at most {limit} may be")
        return self.take(size)

    def zeros(self, size: int, field: str) -> None:
        if any(self.take(size)):
            raise self.malformed(f"{field} must be zero")

    def end(self) -> None:
        if self.remaining:
            raise self.malformed(f"{self.remaining} bytes too many")
