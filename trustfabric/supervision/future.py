"""Both ends of an answer: on the loop, and from any thread."""

import asyncio
import concurrent.futures
import sys
from collections.abc import Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

import pykka

from trustfabric.supervision.errors import WouldDeadlockError

T = TypeVar("T")

_ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


class LoopReply:
    """An answer awaited on the runtime's own loop.

    Most come before anybody has to wait: only who does costs one of asyncio's futures.
    """

    __slots__ = ("_loop", "_wake", "error", "is_done", "value")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.is_done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._wake: asyncio.Future[None] | None = None

    def done(self) -> bool:
        return self.is_done

    def resolve(self, value: Any) -> None:
        if not self.is_done:
            self.is_done, self.value = True, value
            if self._wake is not None:
                self._wake_up(self._wake)

    def reject(self, error: BaseException) -> None:
        if not self.is_done and not self._loop.is_closed():
            self.is_done, self.error = True, _raisable(error)
            if self._wake is not None:
                self._wake_up(self._wake)

    def result(self) -> Any:
        """Return the answer, or raise it, once there is one."""
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            del self  # its traceback would keep it, and it its traceback

    def leave(self) -> None:
        """Want it no more; whatever would answer sees that it is done."""
        self.is_done = True

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.is_done:
            self._wake = self._loop.create_future()
            yield from self._wake
        return self.result()

    def _wake_up(self, wake: asyncio.Future[None]) -> None:
        if not wake.done():  # else its asker was cancelled
            wake.set_result(None)


class ThreadFuture(pykka.Future[T]):
    """pykka's future: `get` from threads, `await` on a loop without blocking it."""

    def __init__(self) -> None:
        super().__init__()
        self._inner: concurrent.futures.Future[T] = concurrent.futures.Future()

    def done(self) -> bool:
        return self._inner.done()

    def get(self, *, timeout: float | None = None) -> T:
        """Raise WouldDeadlockError where waiting would block an event loop."""
        if self._get_hook is not None:
            return super().get(timeout=timeout)
        if not self._inner.done() and _on_a_loop():
            raise WouldDeadlockError(
                "await the future instead: this is a loop's thread"
            )
        try:
            return self._inner.result(timeout)
        except concurrent.futures.TimeoutError as error:
            if self._inner.done():
                raise  # the answer itself is a TimeoutError
            raise pykka.Timeout(f"{timeout} seconds") from error

    def set(self, value: T | None = None) -> None:
        self._refuse_hooked()
        self._inner.set_result(value)  # type: ignore[arg-type]

    def set_exception(self, exc_info: _ExcInfo | None = None) -> None:
        self._refuse_hooked()
        error = (exc_info or sys.exc_info())[1]
        if error is None and exc_info is not None and exc_info[0] is not None:
            error = exc_info[0]()
        self._inner.set_exception(error)

    def set_get_hook(self, func: Any) -> None:
        if self._inner.done():
            raise concurrent.futures.InvalidStateError("the future has its value")
        super().set_get_hook(func)

    def resolve(self, value: Any) -> None:
        with suppress(concurrent.futures.InvalidStateError):  # its asker has gone
            self._inner.set_result(value)

    def reject(self, error: BaseException) -> None:
        with suppress(concurrent.futures.InvalidStateError):
            self._inner.set_exception(_raisable(error))

    def __await__(self) -> Generator[Any, None, T]:
        if self._get_hook is not None:  # the hook may block: not on this thread
            return asyncio.to_thread(self.get).__await__()
        return asyncio.wrap_future(self._inner).__await__()

    __iter__ = __await__

    def _refuse_hooked(self) -> None:
        if self._get_hook is not None:
            raise concurrent.futures.InvalidStateError("the future has a get hook")


def _raisable(error: BaseException) -> BaseException:
    """Return what stands for what no coroutine can raise, as asyncio has it."""
    if not isinstance(error, StopIteration):
        return error
    stand_in = RuntimeError(f"an answer cannot raise {error!r}")
    stand_in.__cause__ = error
    return stand_in


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
