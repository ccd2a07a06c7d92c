"""The one thread that waits for libvirt, and what its events mean.

libvirt calls back on that thread; everything it says crosses to the event loop as
plain values, in order. libvirt allows one event implementation per process, for
ever, so the application makes one `EventLoop` and hands it to its drivers.
"""

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, TypeVarTuple

from trustfabric.domain.vms import PowerChange, PowerState
from trustfabric.drivers.libvirt_errors import load_binding

_Ts = TypeVarTuple("_Ts")

_WAKE_MS: Final = 500
"""A timer that does nothing but end a wait, so that the thread can stop."""
_STOP_S: Final = 5.0
_OURS: Final = 2
"""References to what only one local variable holds, as `getrefcount` counts them."""

_CHANGES: Final[Mapping[int, PowerChange]] = MappingProxyType(
    {
        1: PowerChange.UNDEFINED,
        2: PowerChange.STARTED,
        3: PowerChange.PAUSED,
        4: PowerChange.RESUMED,
        5: PowerChange.SHUT_DOWN,
        7: PowerChange.PAUSED,
        8: PowerChange.PANICKED,
    }
)
"""virDomainEventType; DEFINED (0) and SHUTDOWN (6, under way) change no power."""

_STOPPED: Final = 5
_STOPS: Final[Mapping[int, PowerChange]] = MappingProxyType(
    {1: PowerChange.DESTROYED, 2: PowerChange.PANICKED, 5: PowerChange.FAILED}
)
"""virDomainEventStoppedDetailType; the others ended in order."""

_STATES: Final[Mapping[int, PowerState]] = MappingProxyType(
    {
        1: PowerState.RUNNING,
        2: PowerState.RUNNING,
        3: PowerState.PAUSED,
        4: PowerState.STOPPING,
        5: PowerState.STOPPED,
        6: PowerState.CRASHED,
        7: PowerState.PAUSED,
    }
)
"""virDomainState."""

_STATES_BY_REASON: Final[Mapping[tuple[int, int], PowerState]] = MappingProxyType(
    {
        (3, 10): PowerState.CRASHED,
        (5, 0): PowerState.DEFINED,
        (5, 3): PowerState.CRASHED,
        (5, 6): PowerState.CRASHED,
        (5, 8): PowerState.CRASHED,
    }
)


def power_change(event: int, detail: int) -> PowerChange | None:
    """Return what a lifecycle event means, None when it moves no power."""
    if event == _STOPPED:
        return _STOPS.get(detail, PowerChange.SHUT_DOWN)
    return _CHANGES.get(event)


def power_state(state: int, reason: int) -> PowerState:
    """Return what libvirt's state and its reason mean."""
    by_reason = _STATES_BY_REASON.get((state, reason))
    return by_reason or _STATES.get(state, PowerState.UNKNOWN)


class EventLoop:
    """Runs libvirt's event implementation from `start` to `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._binding = load_binding()
        self._thread: threading.Thread | None = None  # noqa: TID251 - see start
        self._stopping = threading.Event()
        self._timer: int | None = None
        self._buried: deque[Any] = deque()

    def start(self) -> None:
        """Call before the first connection is opened."""
        self._binding.virEventRegisterDefaultImpl()
        self._timer = self._binding.virEventAddTimeout(_WAKE_MS, self._wake, None)
        self._stopping.clear()
        self._thread = threading.Thread(  # noqa: TID251 - the one that libvirt needs
            target=self._run, name="libvirt-events", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Call after the last connection is closed; takes milliseconds."""
        if self._thread is None:
            return
        self._stopping.set()
        self._binding.virEventUpdateTimeout(self._timer, 0)
        self._thread.join(_STOP_S)
        self._thread = None
        self._buried.clear()

    def time(self) -> float:
        """Seconds of the event loop's clock; safe in any thread."""
        return self._loop.time()

    def deliver(self, receive: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """Call `receive` on the event loop; safe in any thread, dropped at the end."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(receive, *args)

    def bury(self, connection: Any) -> None:
        """Let go of a connection that nobody will use again; safe in any thread.

        libvirt (9.0 at least) calls back for a connection that dies without keeping
        what it calls: to free one meanwhile, in another thread, breaks its memory.
        One that somebody still holds, as the caller does now and a call that hangs may
        for long, is kept until nobody does.
        """
        self._buried.append(connection)
        del connection
        if self._thread is None:
            self._buried.clear()
        else:
            self._binding.virEventUpdateTimeout(self._timer, 0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._binding.virEventRunDefaultImpl()
            self._free()
        self._binding.virEventRemoveTimeout(self._timer)

    def _free(self) -> None:
        for _ in range(len(self._buried)):
            connection = self._buried.popleft()
            if sys.getrefcount(connection) > _OURS:
                self._buried.append(connection)
            del connection

    def _wake(self, timer: int, _opaque: Any) -> None:
        self._binding.virEventUpdateTimeout(timer, _WAKE_MS)
