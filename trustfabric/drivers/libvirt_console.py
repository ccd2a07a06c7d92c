"""A guest's console, over libvirt's stream or where else it is, in a bounded ring.

A reader that stalls would not stall the guest: this process would buffer without
bound. So it is drained on libvirt's thread, and what nobody read is forgotten.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from trustfabric.domain.vms import ConsoleKind, ConsoleSource
from trustfabric.drivers import libvirt_errors as codes
from trustfabric.drivers.console_lines import LineRing
from trustfabric.drivers.console_rate import RateCap
from trustfabric.drivers.console_readers import Reader, open_reader, why_unreadable
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_xml import NAMESPACE, console_of

_NONBLOCK: Final = 1
_READABLE: Final = 1
_ANY_EVENT: Final = 1 | 4 | 8
"""Readable, error, hang-up."""
_CHUNK: Final = 65536
_CHUNKS_A_TURN: Final = 16
_METADATA_ELEMENT: Final = 2
_NOWHERE: Final = "its serial port leads nowhere: see LIBVIRT_CONSOLE_SOURCE"
_ELSEWHERE: Final = (
    "its console is a {kind} on its hypervisor's host, which this one is not: "
    "only a pty comes over the network (LIBVIRT_CONSOLE_SOURCE)"
)
_WHY_NOT: Final = {
    codes.INTERNAL_ERROR: "its serial port is no pty: see LIBVIRT_CONSOLE_SOURCE",
    codes.NO_SUPPORT: "its hypervisor offers no console",
    codes.OPERATION_FAILED: "another client holds its console",
    codes.OPERATION_INVALID: "it is off",
    codes.SYSTEM_ERROR: (
        "the hypervisor may not read its console device: "
        "check permissions, SELinux or AppArmor"
    ),
}


class _Ear:
    """Stands in for a stream: libvirt-python never lets go of what it calls back.

    The stream itself would keep its connection open for ever (its issue 8).
    """

    def __init__(self, stream: Any, heard: Callable[[Any, int], None]) -> None:
        self._o = stream._o  # noqa: SLF001 - what libvirt-python asks a stream for
        self.cb: object = None
        self.stream: Any | None = stream
        self._heard = heard

    def listen(self) -> None:
        add = type(self.stream).eventAddCallback  # type: ignore[union-attr] # libvirt's
        add(self, _ANY_EVENT, None, None)

    def _dispatchStreamEventCallback(self, events: int, _data: Any) -> int:  # noqa: N802 - libvirt-python's name
        if self.stream is not None:
            self._heard(self.stream, events)
        return 0


class Console:
    """One guest's lines, over as many attachments as it takes."""

    def __init__(
        self, binding: Any, events: EventLoop, ring: LineRing, *, here: bool
    ) -> None:
        """Its hypervisor is on this host where `here` says so."""
        self._binding = binding
        self._error: type[Exception] = binding.libvirtError
        self._events = events
        self._here = here
        self._stream: Any | None = None
        self._ear: _Ear | None = None
        self._dropped: Any | None = None
        self._reader: Reader | None = None
        self._cap = RateCap(events.time)
        self._changed = asyncio.Event()
        self._told = False
        self.ring = ring
        self.source = ConsoleSource()
        """What the domain has, as it was defined."""
        self.why_not: str | None = None
        """Why the last attempt to attach failed."""

    @property
    def attached(self) -> bool:
        return self._stream is not None or self._reader is not None

    def attach(self, conn: Any, uuid: str, why: str) -> None:
        """Open it unless it is open; blocks, and never raises libvirt's.

        `why` is what readers are told between the lines before and after.
        """
        if self.attached:
            return
        if self._dropped is not None:
            self._end(self._dropped)
            self._dropped = None
        try:
            domain = conn.lookupByUUIDString(uuid)
            self.source = console_of(self._mark(domain))
            if self.source.kind is ConsoleKind.PTY:
                self._open_stream(conn, domain, why)
            else:
                self._open_reader(why)
        except self._error as error:
            self._stream = None
            code = error.get_error_code()  # type: ignore[attr-defined] # libvirt's
            self.why_not = _WHY_NOT.get(code, f"libvirt error {code}")

    def detach(self) -> None:
        """Close what is open; blocks."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
            self.ring.end()
            self._tell()
        stream = self._stream
        if stream is not None:
            self._end(stream)
            self._tell()

    def drop(self) -> None:
        """Forget the stream of a lost link: libvirt never ends it."""
        if self._stream is not None:
            self._dropped, self._stream = self._stream, None
        self._tell()

    def feed(self, data: bytes) -> None:
        dropped, part = self._cap.pass_on(data)
        if dropped:
            self.ring.break_with(f"{dropped} bytes were dropped: too many a second")
        if part:
            self.ring.feed(part)
            self._tell()

    def skip(self, why: str) -> None:
        self.ring.break_with(why)

    def end(self) -> None:
        """Take notice that the reader's console is over."""
        self._reader = None
        self.ring.end()
        self._tell()

    def _mark(self, domain: Any) -> str | None:
        try:
            mark: str = domain.metadata(_METADATA_ELEMENT, NAMESPACE, 0)
        except self._error as error:
            if error.get_error_code() != codes.NO_DOMAIN_METADATA:  # type: ignore[attr-defined] # libvirt's
                raise
            return None
        return mark

    def _open_stream(self, conn: Any, domain: Any, why: str) -> None:
        stream = conn.newStream(_NONBLOCK)
        domain.openConsole(None, stream, 0)
        self.ring.break_with(why)
        self._stream = stream
        self._ear = _Ear(stream, self._readable)
        self._ear.listen()
        self.why_not = None

    def _open_reader(self, why: str) -> None:
        if self.source.kind is ConsoleKind.NULL:
            self.why_not = _NOWHERE
            return
        if not self._here:
            self.why_not = _ELSEWHERE.format(kind=self.source.kind)
            return
        fresh = self.ring.count == 0
        self.ring.break_with(why)
        try:
            self._reader = open_reader(
                self._binding, self.source, self, from_start=fresh
            )
            self.why_not = None
        except OSError as error:
            self.why_not = why_unreadable(self.source, error)

    def next_change(self) -> asyncio.Event:
        """Return what is set when more came, or the end; take it, then look."""
        return self._changed

    def _readable(self, stream: Any, events: int) -> None:
        if not events & _READABLE or not self._drain(stream):
            self._end(stream)
        self._tell()

    def _drain(self, stream: Any) -> bool:
        """Read what there is, up to a bound; False at the end of the stream."""
        for _ in range(_CHUNKS_A_TURN):
            try:
                data = stream.recv(_CHUNK)
            except self._error:
                return False
            if isinstance(data, int):  # nothing more for now
                return True
            if not data:
                return False
            self.feed(data)
        return True

    def _end(self, stream: Any) -> None:
        for act in (stream.eventRemoveCallback, stream.abort):
            try:
                act()
            except self._error:
                continue
        if self._ear is not None and self._ear.stream is stream:
            self._ear.stream = None
            self.ring.end()
        if self._stream is stream:
            self._stream = None

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._events.deliver(self._wake)

    def _wake(self) -> None:
        self._told = False
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
