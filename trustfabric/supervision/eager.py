"""Tasks whose first step is taken at once; most handlers need no second one."""

import asyncio
import asyncio.tasks
import contextvars
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 12):
    _Task = asyncio.Task

    def begin(
        coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, name: str
    ) -> asyncio.Task[Any]:
        return _Task(coroutine, loop=loop, name=name, eager_start=True)  # type: ignore[call-arg,unused-ignore]

else:

    class _EagerTask(asyncio.tasks._PyTask):  # noqa: SLF001
        """asyncio's own Task written in Python, but for its start by call_soon."""

        def __init__(self, coroutine: Any, loop: Any, name: str) -> None:
            asyncio.futures._PyFuture.__init__(self, loop=loop)  # noqa: SLF001
            self._name = name
            self._num_cancels_requested = 0
            self._must_cancel = False
            self._fut_waiter = None
            self._coro = coroutine
            self._context = contextvars.copy_context()
            self._context.run(self._Task__step)
            if not self.done():
                asyncio.tasks._register_task(self)  # noqa: SLF001

    def begin(coroutine: Any, loop: Any, name: str) -> Any:
        current = asyncio.current_task(loop)
        if current is None:
            return _EagerTask(coroutine, loop, name)
        asyncio.tasks._leave_task(loop, current)  # noqa: SLF001
        try:
            return _EagerTask(coroutine, loop, name)
        finally:
            asyncio.tasks._enter_task(loop, current)  # noqa: SLF001
