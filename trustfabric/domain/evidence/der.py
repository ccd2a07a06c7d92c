"""DER, as much of it as certificates need, read within bounds."""

from collections.abc import Iterator
from typing import NamedTuple

from trustfabric.domain.evidence.cursor import Cursor
from trustfabric.domain.evidence.model import Code, Reject

INTEGER, BIT_STRING, OCTET_STRING, OID = 0x02, 0x03, 0x04, 0x06
UTF8_STRING, PRINTABLE_STRING, IA5_STRING = 0x0C, 0x13, 0x16
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
SEQUENCE, SET = 0x30, 0x31

_LONG_FORM = 0x80
_MAX_LENGTH_BYTES = 3


class Element(NamedTuple):
    """One value, with the bytes that it was encoded as."""

    tag: int
    content: bytes
    encoded: bytes


def read(cursor: Cursor) -> Element:
    start = cursor.offset
    tag, length = cursor.u8(), cursor.u8()
    if length >= _LONG_FORM:
        length = _long_length(cursor, length - _LONG_FORM)
    content = cursor.take(length)
    return Element(tag, content, cursor.since(start))


def _long_length(cursor: Cursor, size: int) -> int:
    if not 1 <= size <= _MAX_LENGTH_BYTES:
        raise cursor.malformed("a length that DER doesn't have")
    length = cursor.uint(size)
    if length < _LONG_FORM or length >> 8 * (size - 1) == 0:
        raise cursor.malformed("a length that isn't the shortest")
    return length


def expect(cursor: Cursor, tag: int) -> Element:
    element = read(cursor)
    if element.tag != tag:
        raise cursor.malformed(f"tag {element.tag:#04x} where {tag:#04x} is wanted")
    return element


def whole(data: bytes, tag: int, name: str) -> bytes:
    """Return the content of the only element that `data` holds."""
    cursor = Cursor(data, name)
    element = expect(cursor, tag)
    cursor.end()
    return element.content


def elements(content: bytes, name: str) -> Iterator[Element]:
    cursor = Cursor(content, name)
    while cursor.remaining:
        yield read(cursor)


def unsigned(data: bytes, name: str) -> int:
    """Return the only INTEGER that `data` holds; it may not be negative."""
    content = whole(data, INTEGER, name)
    if not content or content[0] & 0x80:
        raise Reject(Code.MALFORMED, name, "no unsigned integer")
    return int.from_bytes(content, "big")


def oid(content: bytes, name: str) -> str:
    """Return the dotted form."""
    cursor = Cursor(content, name)
    arcs: list[int] = []
    while cursor.remaining:
        arc = 0
        while True:
            byte = cursor.u8()
            arc = arc << 7 | byte & 0x7F
            if not byte & 0x80:
                break
            if arc >> 64:
                raise cursor.malformed("an arc too large")
        arcs.append(arc)
    if not arcs:
        raise cursor.malformed("an empty object identifier")
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
