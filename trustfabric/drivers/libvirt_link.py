"""One opening of a libvirt URI: its connections, their calls, how it is lost.

A connection carries one call at a time: libvirt's client (9.0 at least) sometimes
forgets to send a call that is made while another waits for its answer, until
something else happens on the connection.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Lock
from typing import Any, Final, TypeVar

from trustfabric.drivers.lanes import NOTHING, About, Lane, Place
from trustfabric.drivers.libvirt_connect import Credentials, Uri, connect
from trustfabric.drivers.libvirt_errors import is_link_loss, translate
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.libvirt_forks import cut, mind
from trustfabric.errors import UnavailableError

T = TypeVar("T")

CALL_S: Final = 10.0
_CLOSE_S: Final = 3.0
_WATCH: Final = 0
_OBSERVE: Final = (1,)
_OPERATE: Final = (2, 3, 4, 5)
"""Connections by number: of a daemon all are opened with the link."""
"""Others replace those of calls that are overdue, up to so many:"""
_OBSERVE_MORE: Final = 4
_OPERATE_MORE: Final = 16
"""With the first four as many as libvirtd works on at a time."""
THREADS: Final = len((_WATCH, *_OBSERVE, *_OPERATE)) + _OBSERVE_MORE + _OPERATE_MORE
"""That an executor needs for a link."""
_STUCK_LIMIT: Final = 3
"""Calls that concern no domain: so many without an answer are a lost link."""
_KEEPALIVE: Final = (5, 3)
_CLOSE_REASONS: Final = {0: "error", 1: "end of file", 2: "keepalive", 3: "client"}
_LIFECYCLE: Final = 0
_REBOOT: Final = 1


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where a link tells what it hears, always on the event loop."""

    lifecycle: Callable[[str, str, int, int], None]
    """UUID, name, event, detail."""
    rebooted: Callable[[str, str], None]
    lost: Callable[[str], None]


class Link:
    """Open until `close` or until it is lost; then every call is refused."""

    def __init__(
        self,
        binding: Any,
        uri: Uri,
        credentials: Credentials,
        events: EventLoop,
        executor: Executor,
    ) -> None:
        self._binding = binding
        self._uri = uri
        self._credentials = credentials
        self._events = events
        self._executor = executor
        more = count(max(_OPERATE) + 1)
        self._operating = Lane(_OPERATE, more, _OPERATE_MORE)
        self._observing = Lane(_OBSERVE, more, _OBSERVE_MORE)
        self._connections: dict[int, Any] = {}
        self._watch_lock = Lock()
        self._callbacks: list[int] = []
        self._stuck = 0
        self._lost: str | None = None
        self._listeners: Listeners | None = None
        mind(self)

    @property
    def lost(self) -> str | None:
        return self._lost

    async def open(self, listeners: Listeners, kept: Any | None) -> Any:
        """Connect and listen. `kept` is used in place of a new connection.

        Return the connection that events come over. A local driver has no limit of
        calls in flight and loses its state with its last connection, so it has one.
        """
        self._listeners = listeners
        if kept is not None:
            self._connections[_WATCH] = kept
        opening = f"opening {self._uri.shown}"
        await self._in_thread(opening, partial(self._listen, listeners), CALL_S)
        if not self._uri.local:
            # All with one secret: later it may be another, which this link outlives.
            others = (*_OBSERVE, *_OPERATE)
            await asyncio.gather(
                *(
                    self._in_thread(opening, partial(self._open_one, n), CALL_S)
                    for n in others
                )
            )
        if self._lost is not None:  # meanwhile: nobody was told of a link yet
            raise self._down(self._lost)
        return self._connections[_WATCH]

    async def call(
        self,
        doing: str,
        work: Callable[[Any], T],
        *,
        within_s: float = CALL_S,
        about: About = NOTHING,
    ) -> T:
        """Run `work` on a connection for operations."""
        return await self._in_lane(self._operating, doing, work, within_s, about)

    async def observe(
        self,
        doing: str,
        work: Callable[[Any], T],
        *,
        within_s: float = CALL_S,
        about: About = NOTHING,
    ) -> T:
        """Run `work` on another one, which hung operations don't hold up."""
        return await self._in_lane(self._observing, doing, work, within_s, about)

    def with_watch(self, act: Callable[[Any], None]) -> None:
        """Act, blocking, on the connection that events and consoles come over."""
        with self._watch_lock:
            act(self._connection(_WATCH))

    async def close(self) -> None:
        """Stop listening and let go; what still runs keeps its connection alive."""
        self._give_up(self._lost or "closed")
        self._listeners = None
        if self._connections:
            with suppress(UnavailableError):
                await self._in_thread("closing", self._let_go, _CLOSE_S)

    def lose(self, reason: str) -> None:
        """Refuse every call from now on and say so, once."""
        if self._lost is not None:
            return
        self._give_up(reason)
        if self._listeners is not None:
            self._events.deliver(self._listeners.lost, reason)

    def disown(self) -> None:
        """Be down in a forked child, and leave the connections to its parent."""
        self._lost = "this process was forked from the one that opened it"
        self._listeners = None
        connections, self._connections = self._connections, {}
        for conn in connections.values():
            cut(conn)

    def _give_up(self, reason: str) -> None:
        self._lost = reason
        for lane in (self._operating, self._observing):
            lane.fail(self._down(reason))

    def _down(self, reason: str) -> UnavailableError:
        return UnavailableError(f"{self._uri.shown} is down: {reason}")

    async def _in_lane(
        self,
        lane: Lane,
        doing: str,
        work: Callable[[Any], T],
        within_s: float,
        about: About,
    ) -> T:
        """Wait for a slot as long as the link is up, then for the answer."""
        if self._lost is not None:
            raise self._down(self._lost)
        place = await lane.take(doing, about)

        def on_connection() -> T:
            return work(self._connection(place.number))

        return await self._in_thread(doing, on_connection, within_s, place)

    async def _in_thread(
        self,
        doing: str,
        work: Callable[[], T],
        within_s: float,
        place: Place | None = None,
    ) -> T:
        """Wait for `work` at most so long; it is overdue then, whoever still waits."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._executor, work)
        overdue = loop.call_later(within_s, self._note_overdue, future, place)

        def ended(_: object) -> None:
            overdue.cancel()
            if place is not None:
                place.leave()

        future.add_done_callback(_look)
        future.add_done_callback(ended)
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.shield(future)
        except TimeoutError:
            raise UnavailableError(
                f"{doing}: no answer within {within_s:g} s", cause="deadline"
            ) from None
        except self._binding.libvirtError as error:
            if is_link_loss(error):
                self.lose(error.get_error_message())
            raise translate(error, doing) from error

    def _note_overdue(self, future: asyncio.Future[T], place: Place | None) -> None:
        if future.done():
            return
        if place is not None:
            place.note_overdue()
        if place is None or place.about == NOTHING:
            self._count_stuck(future)

    def _count_stuck(self, future: asyncio.Future[T]) -> None:
        def unstick(_: object) -> None:
            self._stuck -= 1

        self._stuck += 1
        future.add_done_callback(unstick)
        if self._stuck >= _STUCK_LIMIT:
            self.lose(f"{self._stuck} calls hang")

    def _connection(self, number: int) -> Any:
        """Return the connection of a slot, opened where it isn't yet."""
        number = _WATCH if self._uri.local else number
        conn = self._connections.get(number)
        if conn is None:
            conn = connect(self._binding, self._uri, self._credentials)
            self._connections[number] = conn
            self._guard(conn)
            if self._lost is not None:  # meanwhile
                self._let_go()
                raise self._down(self._lost)
        return conn

    def _open_one(self, number: int) -> None:
        self._connection(number)

    def _guard(self, conn: Any) -> None:
        """Notice when a connection that leaves our process ends."""
        if self._uri.local:
            return

        def closed(_: Any, reason: int, __: Any) -> None:
            why = _CLOSE_REASONS.get(reason, str(reason))
            self._events.deliver(self.lose, f"connection closed: {why}")

        conn.setKeepAlive(*_KEEPALIVE)
        conn.registerCloseCallback(closed, None)

    def _listen(self, listeners: Listeners) -> None:
        """Register callbacks; they run on libvirt's thread and only pass values on."""
        watch = self._connection(_WATCH)
        deliver = self._events.deliver

        def lifecycle(_: Any, domain: Any, event: int, detail: int, __: Any) -> None:
            uuid, name = domain.UUIDString(), domain.name()
            deliver(listeners.lifecycle, uuid, name, event, detail)

        def rebooted(_: Any, domain: Any, __: Any) -> None:
            deliver(listeners.rebooted, domain.UUIDString(), domain.name())

        for event, callback in ((_LIFECYCLE, lifecycle), (_REBOOT, rebooted)):
            self._callbacks.append(
                watch.domainEventRegisterAny(None, event, callback, None)
            )

    def _let_go(self) -> None:
        """Drop what keeps a socket open: callbacks do, whatever `close` says."""
        connections, self._connections = self._connections, {}
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._try(partial(connections[_WATCH].domainEventDeregisterAny, callback))
        while connections and not self._uri.local:
            _, conn = connections.popitem()
            self._try(conn.unregisterCloseCallback)
            self._events.bury(conn)
            del conn

    def _try(self, act: Callable[[], object]) -> None:
        with suppress(self._binding.libvirtError):
            act()


def _look(late: asyncio.Future[Any]) -> None:
    """Take notice of a failure that comes after its deadline; nobody else does."""
    if not late.cancelled():
        late.exception()
