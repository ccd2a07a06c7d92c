"""One actor's place in the tree: its mail, its states, one incarnation at a time.

    NEW ─▶ WAITING ─▶ STARTING ─▶ RUNNING ─▶ STOPPING ─┐
              ▲           └───── DYING ◀───────┴───────┤
              └─ restart ──────────┴───────────────────┴─▶ DEAD

A cell outlives its incarnations. Whatever an incarnation leaves behind (a timer,
a task, a coroutine) checks that it still is the cell's present one, or is dropped.
"""

import asyncio
import inspect
import math
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

import pykka
import structlog
from pykka.messages import _ActorStop

from trustfabric.supervision import exits
from trustfabric.supervision.clock import Handle
from trustfabric.supervision.errors import (
    ActorCrashedError,
    ActorDeadError,
    ActorKilledError,
    MailboxFullError,
)
from trustfabric.supervision.exits import Exit, ExitKind
from trustfabric.supervision.mailbox import (
    Envelope,
    Mailbox,
    MailboxSpec,
    Overflow,
    Put,
)
from trustfabric.supervision.scheduler import Scheduler
from trustfabric.supervision.trace import Event

log = structlog.get_logger(__name__)


class State(StrEnum):
    NEW = "new"
    """Not part of a running tree yet."""
    WAITING = "waiting"
    """For its turn to be started, or started again."""
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DYING = "dying"
    """Ended, but its coroutine, tasks or children have not all let go."""
    DEAD = "dead"


ALIVE = frozenset({State.STARTING, State.RUNNING, State.STOPPING, State.DYING})
_NOBODY = frozenset({State.NEW, State.DEAD})


class Behaviour(Protocol):
    """What a cell asks of its actor."""

    mailbox: MailboxSpec

    def receive(self, message: Any) -> Any: ...

    def on_start(self) -> Any: ...

    def on_stop(self) -> Any: ...

    def on_death(self, exit_: Exit) -> None:
        """The incarnation ends, whichever way; never raises."""
        ...


class Parent(Protocol):
    """Who is told of a cell's ups and downs, at once and on the spot."""

    def child_up(self, cell: "Cell") -> None: ...

    def child_down(self, cell: "Cell", exit_: Exit) -> None: ...


class Cancellable(Protocol):
    def cancel(self) -> object: ...


BIRTH: ContextVar["Cell | None"] = ContextVar("birth", default=None)
"""The cell an actor constructed right now belongs to."""
CALLER: ContextVar["Cell | None"] = ContextVar("caller", default=None)
"""The cell whose mailbox stands still while this code waits."""

Settle = Callable[[Any, BaseException | None], None]


class Cell:
    """Belongs to the loop's thread; other threads only `Scheduler.post` to it."""

    __slots__ = (
        "_brutal_timer", "_coroutine", "_doom", "_holds", "_settle", "_task",
        "actor", "address", "asking", "busy", "current", "epoch", "grace_s", "in_ready",
        "mailbox", "over", "parent", "path", "resources", "restart_count", "restarts",
        "scheduler", "since", "state", "stop_asked", "suspended", "watches",
    )  # fmt: skip

    def __init__(self, name: str, address: pykka.ActorRef[Any]) -> None:
        self.path = name
        self.address = address
        self.scheduler: Scheduler = None  # type: ignore[assignment]  # until attached
        self.parent: Parent = None  # type: ignore[assignment]  # until attached
        self.mailbox = Mailbox(MailboxSpec())
        self.state = State.NEW
        self.epoch = 0
        self.actor: Behaviour | None = None
        self.grace_s = 5.0
        self.suspended = False
        self.busy = False
        self.in_ready = False
        self.current: Envelope | None = None
        self.since = 0.0
        self.stop_asked: Exit | None = None
        self.asking: dict[int, Cell] | None = None
        self.restart_count = 0
        self.restarts: list[tuple[datetime, str]] | None = None
        self.watches: dict[object, Callable[[Exit], None]] | None = None
        self.resources: set[Cancellable] | None = None
        self.over: asyncio.Future[None] | None = None
        self._holds: set[object] | None = None
        self._doom: Exit | None = None
        self._task: asyncio.Task[Any] | None = None
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._settle: Settle | None = None
        self._brutal_timer: Handle | None = None

    # --- being placed ---------------------------------------------------------

    def announce(self, scheduler: Scheduler, path: str) -> None:
        """Join a tree; from here on mail is kept for the first incarnation."""
        if self.state in ALIVE:
            raise RuntimeError(f"{self.path} runs already")
        self.scheduler, self.path = scheduler, path
        scheduler.cells[path] = self
        self.state = State.WAITING

    def attach(self, scheduler: Scheduler, parent: Parent, path: str) -> None:
        self.announce(scheduler, path)
        self.parent = parent

    def bury(self, exit_: Exit) -> None:
        """Never mind a restart: answer the mail, tell the watchers."""
        self.state = State.DEAD
        for envelope in self.mailbox.drain():
            if isinstance(envelope.message, _ActorStop) and envelope.reply is not None:
                envelope.reply.resolve(True)
            else:
                self.refuse(envelope, f"ended: {exit_.kind}")
        watches, self.watches = self.watches, None
        for notify in (watches or {}).values():
            notify(exit_)

    def watch(self, key: object, notify: Callable[[Exit], None]) -> None:
        """Notify once, when this is gone for good; at once if it is."""
        if self.state in _NOBODY:
            notify(Exit(ExitKind.NORMAL, "not running"))
            return
        if self.watches is None:
            self.watches = {}
        self.watches[key] = notify

    def unwatch(self, key: object) -> None:
        if self.watches is not None:
            self.watches.pop(key, None)

    # --- mail -----------------------------------------------------------------

    def put(self, envelope: Envelope) -> bool:
        if self.state in _NOBODY:
            self.refuse(envelope, "not running")
            return False
        outcome = self.mailbox.put(envelope)
        if outcome is Put.FULL:
            if self.mailbox.spec.overflow is not Overflow.DROP_OLDEST:
                self.overflow(envelope)
                return False
            oldest = self.mailbox.take_oldest()
            assert oldest is not None
            self.overflow(oldest)
            self.mailbox.put(envelope)
        self.wake()
        return True

    @property
    def up(self) -> bool:
        """Whether it has started and was not asked to end."""
        return self.state is State.RUNNING

    @property
    def may_speak(self) -> bool:
        """Whether the present incarnation still takes mail of its own."""
        return self.state in (State.STARTING, State.RUNNING)

    def put_system(self, envelope: Envelope) -> None:
        self.mailbox.put_system(envelope)
        self.wake()

    def refuse(self, envelope: Envelope, reason: str) -> None:
        if envelope.reply is None:
            self._dead_letter(envelope.message, reason)
        elif isinstance(envelope.message, _ActorStop):
            envelope.reply.resolve(False)
        else:
            envelope.reply.reject(ActorDeadError(f"{self.path}: {reason}"))

    def overflow(self, envelope: Envelope) -> None:
        if envelope.reply is None:
            self._dead_letter(envelope.message, "mailbox full")
        else:
            limit = self.mailbox.spec.limit
            envelope.reply.reject(MailboxFullError(f"{self.path}: {limit} waiting"))

    def _dead_letter(self, message: object, reason: str) -> None:
        if self.state is not State.NEW:
            self.scheduler.dead_letters.add(self.path, message, reason)

    def wake(self) -> None:
        if self.state is State.RUNNING and not self.busy and not self.in_ready:
            self.in_ready = True
            self.scheduler.enqueue(self)

    # --- running --------------------------------------------------------------

    def start(self, construct: Callable[[], Any]) -> None:
        """Begin a new incarnation; the parent hears `child_up` or `child_down`."""
        assert self.state is State.WAITING
        self.epoch += 1
        self.state = State.STARTING
        self._doom = self.stop_asked = None
        self.suspended = False
        self.since = self.scheduler.clock.monotonic()
        self._perform(lambda: self._construct(construct), self._started)

    def _construct(self, construct: Callable[[], Any]) -> Any:
        token = BIRTH.set(self)
        try:
            actor: Behaviour = construct()
        finally:
            BIRTH.reset(token)
        self.actor = actor
        self.mailbox.spec = actor.mailbox
        return actor.on_start()

    def _started(self, _: Any, error: BaseException | None) -> None:
        if error is not None:
            self.end(exits.crashed(error, "on_start"))
            return
        self.state = State.RUNNING
        if self.scheduler.observers:
            self.scheduler.emit(self, Event.STARTED, type(self.actor).__name__)
        self.parent.child_up(self)
        self._look()

    def step(self, budget: int) -> bool:
        while self.state is State.RUNNING and not self.busy:
            if self.stop_asked is not None:
                self._begin_stop(self.stop_asked)
                continue
            if not self.mailbox.has_mail(system_only=self.suspended):
                break
            if budget == 0:
                return True
            budget -= 1
            envelope = self.mailbox.take(system_only=self.suspended)
            assert envelope is not None
            self._deliver(envelope)
        self.in_ready = False
        return False

    def _deliver(self, envelope: Envelope) -> None:
        scheduler = self.scheduler
        if envelope.is_late(scheduler.clock.monotonic, self.epoch):
            scheduler.skipped += 1
            if scheduler.observers:
                scheduler.emit(self, Event.SKIPPED, type(envelope.message).__name__)
            return
        self.current = envelope
        if isinstance(envelope.message, _ActorStop):
            self._begin_stop(exits.normal())
            return
        self.since = scheduler.clock.monotonic()
        if scheduler.observers:
            scheduler.emit(self, Event.HANDLING, type(envelope.message).__name__)
        assert self.actor is not None
        receive, message = self.actor.receive, envelope.message
        self._perform(lambda: receive(message), self._handled)

    def _handled(self, result: Any, error: BaseException | None) -> None:
        envelope, self.current = self.current, None
        assert envelope is not None
        name = type(envelope.message).__name__
        if self.scheduler.observers:
            self.scheduler.emit(self, Event.HANDLED, f"{name} {type(error).__name__}")
        if error is None:
            if envelope.reply is not None:
                envelope.reply.resolve(result)
        elif isinstance(error, self.scheduler.answers):
            self._answer_error(envelope, error)
        else:
            if envelope.reply is not None:
                crash = ActorCrashedError(f"{self.path} crashed in {name}: {error!r}")
                crash.__cause__ = error
                envelope.reply.reject(crash)
            self.end(exits.crashed(error, name))
            return
        self._look()

    def _answer_error(self, envelope: Envelope, error: BaseException) -> None:
        if envelope.reply is not None:
            envelope.reply.reject(error)
        else:
            log.warning(
                "actor.notice_refused",
                path=self.path,
                message=type(envelope.message).__name__,
                error=repr(error),
            )

    def _look(self) -> None:
        """Go on with what has piled up, unless a `step` above does so anyway."""
        if self.stop_asked is not None or self.mailbox.has_mail(
            system_only=self.suspended
        ):
            self.wake()

    # --- one piece of the actor's code, sync or async -------------------------

    def _perform(self, call: Callable[[], Any], settle: Settle) -> None:
        context = self.scheduler.context.copy()
        context.run(CALLER.set, self)
        self.busy = True
        try:
            result = context.run(call)
        except BaseException as error:  # noqa: BLE001  # a bug of one actor ends that one
            self._settled(settle, None, error)
            return
        if inspect.iscoroutine(result):
            if self._doom is None:
                self._suspend(result, settle, context)
                return
            result.close()
        self._settled(settle, result, None)

    def _suspend(
        self, coroutine: Coroutine[Any, Any, Any], settle: Settle, context: Context
    ) -> None:
        self._coroutine, self._settle = coroutine, settle
        self._task = self.scheduler.loop.create_task(
            contain(coroutine), name=self.path, context=context
        )
        self._task.add_done_callback(self._resumed, context=self.scheduler.context)

    def _resumed(self, task: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._task is not task:  # an incarnation that was closed by force
            return
        coroutine, settle = self._coroutine, self._settle
        assert coroutine is not None
        assert settle is not None
        coroutine.close()  # a no-op, unless cancelled before its first step
        self._task = self._coroutine = self._settle = None
        result = None if error is not None else task.result()
        self._settled(settle, result, unwrapped(error))

    def _settled(
        self, settle: Settle, result: Any, error: BaseException | None
    ) -> None:
        self.busy = False
        if self._doom is None:
            settle(result, error)
        else:
            self.end(self._doom)

    # --- stopping -------------------------------------------------------------

    def request_stop(self, exit_: Exit) -> None:
        """Stop after the message in hand; mail that waits stays for a successor."""
        if self.state is State.WAITING:
            return
        if self.stop_asked is None:
            self.stop_asked = exit_
        self._look()

    def _begin_stop(self, exit_: Exit) -> None:
        self.state = State.STOPPING
        assert self.actor is not None
        self._perform(self.actor.on_stop, lambda _, e: self._stopped(exit_, e))

    def _stopped(self, exit_: Exit, error: BaseException | None) -> None:
        self.end(exit_ if error is None else exits.crashed(error, "on_stop"))

    def kill(self, exit_: Exit, grace_s: float | None = None) -> bool:
        """End now: cancel, and after the grace close by force.

        A sync handler is let finish. False if there was nothing to kill.
        """
        if self.state not in ALIVE:
            return False
        grace_s = self.grace_s if grace_s is None else grace_s
        if self.state is State.DYING:
            if grace_s <= 0:
                self._brutal()
            return False
        self.state = State.DYING
        self._doom = exit_
        self.hold(self)
        self._answer_in_hand()
        if self._task is None:
            if not self.busy:
                self.end(exit_)
            return True
        self._task.cancel()
        self._brutal_after(grace_s)
        return True

    def _answer_in_hand(self) -> None:
        if self.current is not None and self.current.reply is not None:
            if isinstance(self.current.message, _ActorStop):
                self.current.reply.resolve(True)
            else:
                self.current.reply.reject(
                    ActorKilledError(f"{self.path} was killed; the outcome is unknown")
                )

    def _brutal_after(self, grace_s: float) -> None:
        if self._brutal_timer is None and grace_s < math.inf:
            clock = self.scheduler.clock
            when = clock.monotonic() + grace_s
            self._brutal_timer = clock.call_at(when, self._brutal)

    def _brutal(self) -> None:
        """Take the incarnation's coroutine and tasks away from it."""
        if self.state is not State.DYING:
            return
        task, coroutine = self._task, self._coroutine
        if task is not None and coroutine is not None:
            if coroutine.cr_running:  # killed from its own stack: once it is off it
                self.scheduler.loop.call_soon(self._brutal)
                return
            self._task = self._coroutine = self._settle = None
            self.busy = False
            self.scheduler.zombies += not closed_by_force(coroutine)
            task.cancel()
            assert self._doom is not None
            self.end(self._doom)
        for held in list(self._holds or ()):
            if isinstance(held, asyncio.Task):
                self.scheduler.zombies += 1
                self.release(held)

    # --- ending ---------------------------------------------------------------

    def end(self, exit_: Exit) -> None:
        """The actor's code is off the stack: let go of all it holds, then tell."""
        self.state = State.DYING
        self._doom = exit_
        resources, self.resources = self.resources, None
        for resource in resources or ():
            resource.cancel()
        self.hold(self)
        if self.actor is not None:
            self.actor.on_death(exit_)
        for held in list(self._holds or ()):
            if isinstance(held, asyncio.Task):
                held.cancel()
                self._brutal_after(self.grace_s)
        self.release(self)

    def hold(self, thing: object) -> None:
        """Keep the incarnation from being over until `thing` is released."""
        if self._holds is None:
            self._holds = set()
        self._holds.add(thing)

    def release(self, thing: object) -> None:
        if self._holds is None or thing not in self._holds:
            return
        self._holds.discard(thing)
        if not self._holds:
            self._holds = None
            if self.state is State.DYING and self._doom is not None:
                self._over(self._doom)

    def _over(self, exit_: Exit) -> None:
        if self._brutal_timer is not None:
            self._brutal_timer.cancel()
            self._brutal_timer = None
        self.actor = None
        self.asking = None
        self.stop_asked = None
        self.busy = False
        self.state = State.WAITING
        if self.scheduler.observers:
            self.scheduler.emit(self, Event.DOWN, exit_.reason)
        over, self.over = self.over, None
        if over is not None and not over.done():
            over.set_result(None)
        envelope, self.current = self.current, None
        self.parent.child_down(self, exit_)
        if envelope is not None and envelope.reply is not None:
            envelope.reply.resolve(True)  # only pykka's stop can be in hand here


class _Escaped(Exception):  # noqa: N818
    """Carries what would otherwise take the whole loop down."""


async def contain(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise _Escaped from error


def unwrapped(error: BaseException | None) -> BaseException | None:
    return error.__cause__ if isinstance(error, _Escaped) else error


def closed_by_force(coroutine: Coroutine[Any, Any, Any]) -> bool:
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
