"""One opening of a libvirt URI: its connections, their calls, how it is lost."""

import asyncio
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlsplit

from trustfabric.drivers.credentials import Secret
from trustfabric.drivers.libvirt_errors import is_link_loss, translate
from trustfabric.drivers.libvirt_events import EventLoop
from trustfabric.drivers.slots import Slots
from trustfabric.errors import InvalidError, UnavailableError

T = TypeVar("T")

_DRIVERS: Final = frozenset({"test", "qemu"})
_TRANSPORTS: Final = frozenset(
    {"", "unix", "ssh", "libssh", "libssh2", "tls", "tcp", "ext"}
)
_OPEN_S: Final = 10.0
_CLOSE_S: Final = 3.0
_SLOTS: Final = 4
"""libvirtd drops a client that has more than five calls in flight."""
_STUCK_LIMIT: Final = 3
_KEEPALIVE: Final = (5, 3)
_CRED_NAMES: Final = frozenset({1, 2})
_CRED_SECRETS: Final = frozenset({5, 7})
_CRED_TYPES: Final = [1, 2, 5, 7]
_CLOSE_REASONS: Final = {0: "error", 1: "end of file", 2: "keepalive", 3: "client"}
_LIFECYCLE: Final = 0
_REBOOT: Final = 1


@dataclass(frozen=True, slots=True)
class Credentials:
    """What libvirt may ask for; the secret is read anew for each opening."""

    username: str | None = None
    password: Callable[[], Secret | None] | None = None


@dataclass(frozen=True, slots=True)
class Uri:
    """A connection URI that is known to be one of ours."""

    text: str
    simulated: bool
    local: bool
    """The driver runs in our own process: its state is ours to keep open."""
    volatile: bool
    """That state is only in memory."""

    @property
    def shown(self) -> str:
        """The URI without user information and without its parameters."""
        return re.sub(r"//[^/]*@", "//", self.text.partition("?")[0], count=1)


def parse_uri(text: str) -> Uri:
    """Refuse what libvirt would quietly send to the local daemon instead."""
    parts = _split(text)
    driver, _, transport = parts.scheme.partition("+")
    if driver not in _DRIVERS or transport not in _TRANSPORTS:
        raise InvalidError(f"not a libvirt URI of the drivers test or qemu: {text!r}")
    if parts.password is not None:
        raise InvalidError("a libvirt URI may not hold a password")
    remote = bool(transport) or bool(parts.netloc)
    simulated = driver == "test"
    local = not remote and (simulated or parts.path == "/embed")
    return Uri(text, simulated, local, volatile=local and simulated)


def _split(text: str) -> SplitResult:
    plain = re.fullmatch(r"[a-z0-9+]+://[\x21-\x7e]*", text) is not None
    parts = urlsplit(text) if plain else None
    if parts is None or not parts.path:
        raise InvalidError(f"not a libvirt URI: {text!r}")
    return parts


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
        self, binding: Any, uri: Uri, events: EventLoop, executor: Executor
    ) -> None:
        self._binding = binding
        self._uri = uri
        self._events = events
        self._executor = executor
        self._slots = Slots(_SLOTS)
        self._watching = Slots(1)
        self._connections: tuple[Any, ...] = ()
        self._callbacks: list[int] = []
        self._stuck = 0
        self._lost: str | None = None
        self._listeners: Listeners | None = None

    @property
    def lost(self) -> str | None:
        return self._lost

    @property
    def watched(self) -> Any:
        """The connection that events and consoles come over."""
        return self._connections[0]

    async def open(
        self, credentials: Credentials, listeners: Listeners, kept: Any | None
    ) -> Any:
        """Connect and listen. `kept` is used in place of a new connection.

        Return the connection that events come over. A local driver has no limit of
        calls in flight and loses its state with its last connection, so it has one.
        """
        self._listeners = listeners
        watch = kept or await self._connect(credentials)
        self._connections = (watch,)
        if not self._uri.local:
            ops = await self._connect(credentials)
            self._connections = (watch, ops)
        await self._in_thread("listening", self._listen, _OPEN_S)
        return watch

    async def call(
        self, doing: str, work: Callable[[Any], T], *, within_s: float = _OPEN_S
    ) -> T:
        """Run `work` on the connection for operations."""
        return await self._limited(self._slots, doing, work, -1, within_s)

    async def watch(
        self, doing: str, work: Callable[[Any], T], *, within_s: float = _OPEN_S
    ) -> T:
        """Run `work` on the other one, which hung operations don't hold up."""
        return await self._limited(self._watching, doing, work, 0, within_s)

    async def close(self) -> None:
        """Stop listening and let go; what still runs keeps its connection alive."""
        connections, self._connections = self._connections, ()
        self._give_up(self._lost or "closed")
        self._listeners = None
        if connections:
            with suppress(UnavailableError):
                await self._in_thread(
                    "closing", lambda: self._unlisten(connections), _CLOSE_S
                )

    def lose(self, reason: str) -> None:
        """Refuse every call from now on and say so, once."""
        if self._lost is not None:
            return
        self._give_up(reason)
        if self._listeners is not None:
            self._events.deliver(self._listeners.lost, reason)

    def _give_up(self, reason: str) -> None:
        self._lost = reason
        for slots in (self._slots, self._watching):
            slots.fail(UnavailableError(f"the link is down: {reason}"))

    async def _connect(self, credentials: Credentials) -> Any:
        def connect() -> Any:
            auth = [_CRED_TYPES, _OneShot(credentials), None]
            return self._binding.openAuth(self._uri.text, auth, 0)

        opening = asyncio.get_running_loop().run_in_executor(self._executor, connect)
        try:
            async with asyncio.timeout(_OPEN_S):
                return await asyncio.shield(opening)
        except TimeoutError:
            raise UnavailableError(
                f"{self._uri.shown}: no connection within {_OPEN_S:g} s"
            ) from None
        except self._binding.libvirtError as error:
            raise translate(error, self._uri.shown) from error
        finally:
            if not opening.done():
                opening.add_done_callback(_close_late)

    async def _limited(
        self,
        slots: Slots,
        doing: str,
        work: Callable[[Any], T],
        which: int,
        within_s: float,
    ) -> T:
        """Wait for a slot as long as the link is up, then for the answer."""
        if self._lost is None:
            await slots.take()
        if self._lost is not None:
            raise UnavailableError(f"{doing}: the link is down: {self._lost}")
        conn = self._connections[which]
        return await self._in_thread(doing, lambda: work(conn), within_s, slots.give)

    async def _in_thread(
        self,
        doing: str,
        work: Callable[[], T],
        within_s: float,
        done: Callable[[], None] = lambda: None,
    ) -> T:
        """Wait for `work` at most so long; its slot is free when it really ends."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        future.add_done_callback(_look)
        future.add_done_callback(lambda _: done())
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.shield(future)
        except TimeoutError:
            self._count_stuck(future)
            raise UnavailableError(
                f"{doing}: no answer within {within_s:g} s", cause="deadline"
            ) from None
        except self._binding.libvirtError as error:
            if is_link_loss(error):
                self.lose(error.get_error_message())
            raise translate(error, doing) from error

    def _count_stuck(self, future: asyncio.Future[T]) -> None:
        def unstick(_: object) -> None:
            self._stuck -= 1

        self._stuck += 1
        future.add_done_callback(unstick)
        if self._stuck >= _STUCK_LIMIT:
            self.lose(f"{self._stuck} calls hang")

    def _listen(self) -> None:
        """Register callbacks; they run on libvirt's thread and only pass values on."""
        watch, listeners = self._connections[0], self._listeners
        assert listeners is not None
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
        if not self._uri.local:
            self._guard()

    def _guard(self) -> None:
        def closed(_: Any, reason: int, __: Any) -> None:
            why = _CLOSE_REASONS.get(reason, str(reason))
            self._events.deliver(self.lose, f"connection closed: {why}")

        for conn in self._connections:
            conn.setKeepAlive(*_KEEPALIVE)
            conn.registerCloseCallback(closed, None)

    def _unlisten(self, connections: tuple[Any, ...]) -> None:
        """Drop what keeps a socket open: callbacks do, whatever `close` says."""
        watch = connections[0]
        for callback in self._callbacks:
            self._try(partial(watch.domainEventDeregisterAny, callback))
        for conn in () if self._uri.local else connections:
            self._try(conn.unregisterCloseCallback)
            self._try(conn.close)

    def _try(self, act: Callable[[], object]) -> None:
        with suppress(self._binding.libvirtError):
            act()


class _OneShot:
    """Answers each kind of question once: a second one means it was wrong.

    Some transports ask for ever otherwise.
    """

    def __init__(self, credentials: Credentials) -> None:
        """Read the secret here: an exception inside the callback would be lost."""
        secret = None if credentials.password is None else credentials.password()
        self._left = {
            **dict.fromkeys(_CRED_NAMES, credentials.username),
            **dict.fromkeys(_CRED_SECRETS, secret),
        }

    def __call__(self, questions: list[list[Any]], _opaque: Any) -> int:
        for question in questions:
            answer = self._left.pop(question[0], None)
            if answer is None:
                return -1
            plain = answer if isinstance(answer, str) else answer.get_secret_value()
            question[4] = plain
        return 0


def _look(late: asyncio.Future[Any]) -> None:
    """Take notice of a failure that comes after its deadline; nobody else does."""
    if not late.cancelled():
        late.exception()


def _close_late(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def snapshot_of(credentials: Credentials) -> Mapping[str, object]:
    """Return what may be shown of credentials."""
    return {
        "username": credentials.username,
        "method": "password" if credentials.password is not None else "none",
        "secret_provided": credentials.password is not None,
    }
