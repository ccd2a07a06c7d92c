"""Events as the bytes of a stream: those that just came are made once for all clients.

Only those: what is read again later is made again, because a view looks at the clock.
"""

from collections.abc import Callable, Sequence
from typing import Any

from trustfabric.actors.streams import Event
from trustfabric.domain.events import Position
from trustfabric.http.reply import dump

KEPT = 2000
"""Frames held for the clients that have yet to send them."""

View = Callable[[Event], Any]
FrameOf = Callable[[str, View, Event], bytes]


def make_frame(name: str, position: str, data: Any) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        position.encode(),
        name.encode(),
        dump(data),
    )


def frame_of(name: str, view: View, event: Event) -> bytes:
    """Make an event's frame as it is to be seen now."""
    return make_frame(name, str(event.position), view(event))


class Frames:
    """The frames of the newest events, by what they look like."""

    def __init__(self) -> None:
        self._kept: dict[tuple[View, Position], bytes] = {}
        self._newest: Sequence[Event] = ()
        self._chunks: dict[View, bytes] = {}

    def of(self, name: str, view: View, event: Event) -> bytes:
        """Return an event's frame as the first client with this view saw it."""
        key = (view, event.position)
        frame = self._kept.get(key)
        if frame is None:
            frame = self._kept[key] = frame_of(name, view, event)
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return frame

    def chunk(self, name: str, view: View, events: Sequence[Event]) -> bytes:
        """Return their frames as one chunk of a body in chunked encoding.

        It is kept for whoever comes next with the very same events.
        """
        if events is not self._newest:
            self._newest, self._chunks = events, {}
        chunk = self._chunks.get(view)
        if chunk is None:
            data = b"".join([self.of(name, view, event) for event in events])
            chunk = self._chunks[view] = b"%x\r\n%b\r\n" % (len(data), data)
        return chunk
