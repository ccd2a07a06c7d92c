"""One actor's place in the tree: its mail, its states, one incarnation at a time.

A cell outlives its incarnations. Whatever an incarnation leaves behind (a timer,
a task, a coroutine) checks that it still is the cell's present one, or is dropped.
"""

import asyncio
import inspect
import math
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import pykka

from trustfabric.supervision import exits, undelivered
from trustfabric.supervision.clock import Handle
from trustfabric.supervision.errors import ActorCrashedError, ActorKilledError, AskError
from trustfabric.supervision.exits import Exit, ExitKind
from trustfabric.supervision.mailbox import DEFAULT_MAILBOX, Envelope, Mailbox
from trustfabric.supervision.roles import Behaviour, Cancellable, Parent
from trustfabric.supervision.scheduler import Scheduler
from trustfabric.supervision.states import ALIVE, NOBODY, State
from trustfabric.supervision.trace import Event
from trustfabric.supervision.work import Settle, Work

BIRTH: ContextVar["Cell | None"] = ContextVar("birth", default=None)
"""The cell an actor constructed right now belongs to."""
CALLER: ContextVar["Cell | None"] = ContextVar("caller", default=None)
"""The cell whose mailbox stands still while this code waits."""


class Cell:
    """Belongs to the loop's thread; other threads only `Scheduler.post` to it."""

    __slots__ = (
        "_brutal_timer", "_doom", "_holds", "_work", "actor", "address", "asking",
        "busy", "current", "epoch", "grace_s", "in_ready", "mailbox", "over", "parent",
        "path", "resources", "restart_count", "restarts", "scheduler", "since", "state",
        "stop_asked", "suspended", "watches",
    )  # fmt: skip

    def __init__(self, name: str, address: pykka.ActorRef[Any]) -> None:
        self.path = name
        self.address = address
        self.scheduler: Scheduler = None  # type: ignore[assignment]  # until attached
        self.parent: Parent[Any] = None  # type: ignore[assignment]  # until attached
        self.mailbox = Mailbox(DEFAULT_MAILBOX)
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
        self._work: Work | None = None
        self._brutal_timer: Handle | None = None

    # --- being placed ---------------------------------------------------------

    def announce(self, scheduler: Scheduler, path: str) -> None:
        """Join a tree; from here on mail is kept for the first incarnation."""
        if self.state in ALIVE:
            raise RuntimeError(f"{self.path} runs already")
        self.scheduler, self.path = scheduler, path
        scheduler.cells[path] = self
        self.state = State.WAITING

    def attach(self, scheduler: Scheduler, parent: Parent[Any], path: str) -> None:
        self.announce(scheduler, path)
        self.parent = parent

    def bury(self, exit_: Exit) -> None:
        """Never mind a restart: answer the mail, tell the watchers."""
        self.state = State.DEAD
        for envelope in self.mailbox.drain():
            reason = f"ended: {exit_.kind}"
            undelivered.strand(envelope, self.path, reason, self.scheduler.dead_letters)
        watches, self.watches = self.watches, None
        for notify in (watches or {}).values():
            notify(exit_)

    def watch(self, key: object, notify: Callable[[Exit], None]) -> None:
        """Notify once, when this is gone for good; at once if it is."""
        if self.state in NOBODY:
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
        """Take user mail in; False if it bounced. Never raises."""
        if self.state in NOBODY:
            self.refuse(envelope, "not running")
            return False
        try:
            bounced = self.mailbox.put(envelope)
        except Exception as error:  # noqa: BLE001  # in the receiver's conflate: its bug
            self.kill(exits.crashed(error, "conflate"))
            bounced = envelope
        if bounced is not None:
            limit = self.mailbox.spec.limit
            undelivered.bounce(bounced, self.path, limit, self.scheduler.dead_letters)
        self.wake()
        return bounced is not envelope

    def refuse(self, envelope: Envelope, reason: str) -> None:
        undelivered.refuse(envelope, self.path, reason, self.scheduler.dead_letters)

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
        if undelivered.is_stop(envelope):
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
            fault = "" if error is None else f" {type(error).__name__}"
            self.scheduler.emit(self, Event.HANDLED, name + fault)
        if error is None:
            if envelope.reply is not None:
                envelope.reply.resolve(result)
        elif isinstance(error, self.scheduler.answers):
            undelivered.answer_error(envelope, self.path, error)
        else:
            self._doom = exits.crashed(error, name)
            if envelope.reply is not None:
                envelope.reply.reject(self.last_words())
            self.end(self._doom)
            return
        self._look()

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
        if not inspect.iscoroutine(result):
            self._settled(settle, result, None)
        elif self._doom is not None:
            result.close()
            self._settled(settle, None, None)
        else:
            self._work = Work(
                result, lambda r, e: self._settled(settle, r, e), self.path, context
            )

    def _settled(
        self, settle: Settle, result: Any, error: BaseException | None
    ) -> None:
        self.busy = False
        self._work = None
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
        self._let_go()
        if self._work is not None:
            self._work.cancel()
            self._brutal_after(grace_s)
        elif not self.busy:
            self.end(exit_)
        return True

    def _let_go(self) -> None:
        """Tell the asker at once; cancel all that was begun beside the handler."""
        undelivered.cut_short(self.current, self.last_words())
        resources, self.resources = self.resources, None
        for resource in resources or ():
            resource.cancel()
        for held in list(self._holds or ()):
            if isinstance(held, asyncio.Task):
                held.cancel()
                self._brutal_after(self.grace_s)

    def last_words(self) -> AskError:
        """Return what the askers of messages in hand are told."""
        doom = self._doom
        if doom is None or doom.kind is not ExitKind.CRASHED:
            return ActorKilledError(f"{self.path} was ended; the outcome is unknown")
        crash = ActorCrashedError(f"{self.path} crashed: {doom.reason}")
        crash.__cause__ = doom.error
        return crash

    def _brutal_after(self, grace_s: float) -> None:
        if self._brutal_timer is None and grace_s < math.inf:
            clock = self.scheduler.clock
            when = clock.monotonic() + grace_s
            self._brutal_timer = clock.call_at(when, self._brutal)

    def _brutal(self) -> None:
        """Take the incarnation's coroutine and tasks away from it."""
        if self.state is not State.DYING or self._doom is None:
            return
        work = self._work
        if work is not None:
            if work.on_stack:  # it has killed itself: once it is off the stack
                self._brutal_timer = None
                self._brutal_after(0.0)
                return
            self._work = None
            self.busy = False
            self.scheduler.zombies += not work.close()
            self.end(self._doom)
        for held in list(self._holds or ()):
            if isinstance(held, asyncio.Task):
                self.scheduler.zombies += 1
                self.release(held)

    # --- ending ---------------------------------------------------------------

    def end(self, exit_: Exit) -> None:
        """Let go of all it holds, its code being off the stack; then tell."""
        self.state = State.DYING
        self._doom = exit_
        self.hold(self)
        self._let_go()
        if self.actor is not None:
            self.actor.on_death(exit_)
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
        if envelope is not None and undelivered.is_stop(envelope):
            undelivered.strand(
                envelope, self.path, "stopped", self.scheduler.dead_letters
            )
