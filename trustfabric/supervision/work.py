"""One piece of an actor's code that went async: watched to its end, or closed by force.

The scheduling of it is asyncio's: a plain Task. What is added is that nothing raised
inside ends the loop, and that a coroutine which will not end can be taken away.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from trustfabric.supervision.eager import begin

Settle = Callable[[Any, BaseException | None], None]
"""Takes the result, or the error, of a piece of an actor's code."""


class Work:
    __slots__ = ("_coroutine", "_settle", "_task")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        """Begin, in a copy of the present context."""
        self._coroutine = coroutine
        self._settle: Settle | None = None
        self._task = begin(contain(coroutine), asyncio.get_running_loop(), name)

    def then(self, settle: Settle) -> None:
        """Settle when it has ended: at once if it never had to wait."""
        self._settle = settle
        if self._task.done():
            self._ended(self._task)
        else:
            self._task.add_done_callback(self._ended)

    def finish(self) -> None:
        """Settle, if it has ended and the loop has yet to tell."""
        if self._task.done():
            self._task.remove_done_callback(self._ended)
            self._ended(self._task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._coroutine.close()  # a no-op, unless cancelled before its first step
        result, error = outcome(task)
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(result, error)

    @property
    def on_stack(self) -> bool:
        return on_stack(self._coroutine)

    def cancel(self) -> None:
        self._task.cancel()

    def close(self) -> bool:
        """Take the coroutine away; nobody hears of its end. False if it lives on."""
        self._settle = None
        closed = close(self._coroutine)
        self._task.cancel()
        return closed


class _Escaped(Exception):  # noqa: N818
    """Carries what would otherwise take the whole loop down."""


async def contain(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise _Escaped from error


def outcome(task: asyncio.Task[Any]) -> tuple[Any, BaseException | None]:
    """Return the result or the error of a task whose coroutine was contained."""
    if task.cancelled():
        return None, asyncio.CancelledError()
    error = task.exception()
    if error is None:
        return task.result(), None
    return None, error.__cause__ if isinstance(error, _Escaped) else error


def on_stack(coroutine: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_RUNNING


def close(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Close, again if it awaits in its `finally`; False if it outlasts that."""
    for _ in range(8):
        try:
            coroutine.close()
        except RuntimeError:  # it ignored GeneratorExit
            continue
        except BaseException:  # noqa: BLE001  # its last words interest nobody
            return True
        return True
    return False
