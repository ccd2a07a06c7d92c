"""The base of every actor: pykka's Actor, on the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from datetime import datetime
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast

import pykka

from trustfabric.supervision import exits
from trustfabric.supervision.address import Address
from trustfabric.supervision.cell import Cell
from trustfabric.supervision.context import BIRTH, CALLER
from trustfabric.supervision.exits import Exit, ExitKind
from trustfabric.supervision.future import ThreadFuture
from trustfabric.supervision.log import Log
from trustfabric.supervision.mailbox import DEFAULT_MAILBOX, Envelope, MailboxSpec
from trustfabric.supervision.messages import Notice
from trustfabric.supervision.taken import Taken, take
from trustfabric.supervision.timers import OnDown, Timer, Watch
from trustfabric.supervision.undelivered import cleanup_failed
from trustfabric.supervision.work import close, contain, on_stack, outcome

M = TypeVar("M")
T = TypeVar("T")

log = Log(__name__)

Spawn = Callable[[Callable[[], Any], str], "Address[Any]"]
SPAWN: ContextVar[Spawn | None] = ContextVar("spawn", default=None)
"""Starts an unsupervised actor in the runtime of this context."""
"""What goes to `handle`; all else goes pykka's way."""

if TYPE_CHECKING:

    class _PykkaActor:
        """pykka.Actor, but for the hooks whose types leave no room for async ones."""

        _actor_ref: Any

        def stop(self) -> None: ...

        def on_failure(self, kind: Any, error: Any, traceback: Any) -> None: ...

        def _handle_receive(self, message: Any) -> Any: ...

else:
    _PykkaActor = pykka.Actor


class Actor(_PykkaActor):
    """One message at a time, each handled by `handle`, which may be async.

    Exceptions of the runtime's `answers` go to the asker. Any other one ends this
    incarnation; what its supervisor does then is in its spec.
    """

    mailbox: ClassVar[MailboxSpec] = DEFAULT_MAILBOX

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        cell = BIRTH.get()
        if cell is None or cell.actor is not None:
            raise RuntimeError("actors are constructed by their spec's start")
        cell.actor = self
        self._cell: Cell = cell
        self._incarnation = cell.epoch
        self._actor_ref = cell.address

    # --- for subclasses to fill in --------------------------------------------

    def on_start(self) -> Awaitable[None] | None:
        """Run before the first message; may be async. A failure is a crash."""
        return None

    def on_stop(self) -> Awaitable[None] | None:
        """Run at an orderly end, after the last message; may be async."""
        return None

    def handle(self, message: Any) -> Any:
        """Handle one message and return the answer; may be async."""
        log.warning("actor.unexpected", path=str(self.address), message=repr(message))

    def on_receive(self, message: Any) -> Any:
        """Handle what is neither a Request nor a Notice, as in pykka."""
        return self.handle(message)

    # --- services for subclasses ----------------------------------------------

    @property
    def address(self) -> Address[Self]:
        return cast("Address[Self]", self._cell.address)

    @property
    def random(self) -> Random:
        return self._cell.scheduler.random

    def now(self) -> datetime:
        return self._cell.scheduler.clock.now()

    def monotonic(self) -> float:
        return self._cell.scheduler.clock.monotonic()

    def after(self, delay_s: float, notice: Notice[Any]) -> Timer:
        """Send a notice to this incarnation of the actor, later."""
        return Timer(self._cell, self._incarnation, delay_s, notice)

    def take(self, kind: type[M], limit: int) -> list[Taken[M]]:
        """Take along what waits of the same kind, to handle it in one go.

        Only from inside a handler. Each one taken is in hand: answer or refuse it.
        """
        return take(self._cell, self._incarnation, kind, limit)

    def watch(self, address: Address[Any], done: OnDown) -> Watch:
        """Be told once when an actor is gone for good, also if it is already."""
        return Watch(self._cell, self._incarnation, address.cell, done)

    def run(
        self, coro: Coroutine[Any, Any, T], done: Callable[[T | BaseException], Any]
    ) -> asyncio.Task[T]:
        """Work beside the mailbox; the notice `done` makes of its end comes by mail.

        Exactly one notice comes while this incarnation lives, also if the task is
        cancelled. The task is cancelled when the incarnation ends, which waits for it.
        """
        return Owned(self._cell, self._incarnation, coro, done).task

    async def sleep(self, delay_s: float) -> None:
        """Wait by the runtime's clock; the mailbox stands still meanwhile."""
        scheduler = self._cell.scheduler
        wake: asyncio.Future[None] = scheduler.loop.create_future()
        handle = scheduler.clock.call_at(
            scheduler.clock.monotonic() + delay_s,
            lambda: None if wake.done() else wake.set_result(None),
        )
        try:
            await wake
        finally:
            handle.cancel()

    # --- pykka's side ---------------------------------------------------------

    def stop(self) -> None:
        """Stop after the mail before, unless this incarnation has ended."""
        if self._cell.is_up(self._incarnation):
            super().stop()

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> pykka.ActorRef[Any]:
        """Start without a supervisor, in the runtime of this context."""
        spawn = SPAWN.get()
        if spawn is None:
            raise RuntimeError("no runtime was started in this context")
        return spawn(lambda: cls(*args, **kwargs), cls.__name__)

    def receive(self, message: Any) -> Any:
        return self._handle_receive(message)

    def _stop(self) -> None:
        self._cell.request_stop(exits.normal())

    def interrupt_start(self, exit_: Exit) -> None:
        """End before it has begun; a supervisor first stops who is up."""
        self._cell.kill(exit_)

    def on_death(self, exit_: Exit) -> None:
        """Call pykka's `on_failure`; a supervisor also lets go of its children."""
        if exit_.kind is not ExitKind.CRASHED or exit_.error is None:
            return
        error = exit_.error
        try:
            self.on_failure(type(error), error, error.__traceback__)
        except BaseException:  # a bug while reporting a bug
            log.exception("actor.on_failure", path=self._cell.path)

    @property
    def actor_urn(self) -> str:
        return self.address.actor_urn

    @property
    def actor_inbox(self) -> Any:
        return self._actor_ref

    @property
    def actor_stopped(self) -> Any:
        return self._actor_ref

    @staticmethod
    def _create_actor_inbox() -> Any:
        raise NotImplementedError("the address is the inbox")

    @staticmethod
    def _create_future() -> ThreadFuture[Any]:
        return ThreadFuture()

    def _start_actor_loop(self) -> None:
        raise NotImplementedError("there is one loop, the event loop")


class Owned(Generic[T]):
    """A task of one incarnation."""

    def __init__(
        self,
        cell: Cell,
        epoch: int,
        coro: Coroutine[Any, Any, T],
        done: Callable[[T | BaseException], Any],
    ) -> None:
        scheduler = cell.scheduler
        context = scheduler.context.copy()
        context.run(CALLER.set, None)
        self._cell = cell
        self._epoch = epoch
        self._coro = coro
        self._done = done
        self._closed = False
        """Taken away by force: what its task ends with says nothing."""
        self.task: asyncio.Task[T] = scheduler.loop.create_task(
            contain(coro), name=cell.path, context=context
        )
        self.task.add_done_callback(self._ended, context=scheduler.context)
        if cell.is_up(epoch):
            cell.hold(self)
        else:
            self.task.cancel()

    @property
    def on_stack(self) -> bool:
        return on_stack(self._coro)

    def cancel(self) -> None:
        self.task.cancel()

    def close(self) -> bool:
        self._closed = True
        closed = close(self._coro)
        self.task.cancel()
        return closed

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._coro.close()  # a no-op, unless cancelled before its first step
        result, error = outcome(task)
        cell = self._cell
        if cell.epoch == self._epoch and cell.may_speak:
            self._report(result if error is None else error)
        elif not self._closed:
            cleanup_failed(cell.path, error)
        cell.release(self)

    def _report(self, result: T | BaseException) -> None:
        try:
            notice = self._done(result)
        except BaseException as error:  # noqa: BLE001  # a bug of the actor
            self._cell.kill(exits.crashed(error, "run"))
        else:
            self._cell.put_system(Envelope(notice, epoch=self._epoch))
