"""One actor's place in the tree: its mail, its states, one incarnation at a time.

A cell outlives its incarnations. Whatever an incarnation leaves behind (a timer,
a task, a coroutine) checks that it still is the cell's present one, or is dropped.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from datetime import datetime
from types import CoroutineType
from typing import Any

import pykka

from trustfabric.supervision import exits, undelivered
from trustfabric.supervision.clock import Handle
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.holds import Holds
from trustfabric.supervision.mailbox import DEFAULT_MAILBOX, Envelope, Mailbox, Reply
from trustfabric.supervision.roles import Behaviour, Cancellable, Parent
from trustfabric.supervision.scheduler import Scheduler
from trustfabric.supervision.states import ALIVE, NOBODY, State
from trustfabric.supervision.trace import Event
from trustfabric.supervision.watchers import Watchers
from trustfabric.supervision.work import Settle, Work

BIRTH: ContextVar["Cell | None"] = ContextVar("birth", default=None)
"""The cell an actor constructed right now belongs to."""
CALLER: ContextVar["Cell | None"] = ContextVar("caller", default=None)
"""The cell whose mailbox stands still while this code waits."""


RUNNING = State.RUNNING  # looked up for every message


class Cell:
    """Belongs to the loop's thread; other threads only `Scheduler.post` to it."""

    __slots__ = (
        "_brutal_timer", "_holds", "_work", "actor", "address", "asking", "busy",
        "current", "doom", "epoch", "grace_s", "in_ready", "mailbox", "over", "parent",
        "path", "resources", "restart_count", "restarts", "scheduler", "since", "state",
        "stop_asked", "suspended", "watchers",
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
        self.asking: dict[Reply, Cell] | None = None
        self.restart_count = 0
        self.restarts: list[tuple[datetime, str]] | None = None
        self.watchers = Watchers()
        self.resources: set[Cancellable] | None = None
        self.over: asyncio.Future[None] | None = None
        self._holds = Holds()
        self.doom: Exit | None = None
        self._work: Work | None = None
        self._brutal_timer: Handle | None = None

    def ended(self) -> asyncio.Future[None]:
        """Return what is done once the present incarnation is over."""
        if self.over is None:
            self.over = self.scheduler.loop.create_future()
        return self.over

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
        self.watchers.tell(exit_)

    # --- mail -----------------------------------------------------------------

    def put(self, envelope: Envelope) -> bool:
        """Take user mail in; False if it bounced. Never raises."""
        if self.state is not RUNNING and self.state in NOBODY:
            self.refuse(envelope, "not running")
            return False
        if undelivered.is_stop(envelope):
            self.mailbox.put_beyond_limit(envelope)
            self.wake()
            return True
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
    def may_speak(self) -> bool:
        """Whether the present incarnation still takes mail of its own."""
        return self.state in (State.STARTING, State.RUNNING)

    def put_system(self, envelope: Envelope) -> None:
        self.mailbox.put_system(envelope)
        self.wake()

    def wake(self) -> None:
        if not self.in_ready and not self.busy and self.state is RUNNING:
            self.in_ready = True
            self.scheduler.enqueue(self)

    # --- running --------------------------------------------------------------

    def start(self, construct: Callable[[], Any]) -> None:
        """Begin a new incarnation; the parent hears `child_up` or `child_down`."""
        assert self.state is State.WAITING
        self.epoch += 1
        self.state = State.STARTING
        self.doom = self.stop_asked = None
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
        self.scheduler.emit(self, Event.STARTED, type(self.actor).__name__)
        self.parent.child_up(self)
        self._look()

    def step(self, budget: int) -> bool:
        return self.scheduler.context.copy().run(self._handle_some, budget)

    def _handle_some(self, budget: int) -> bool:
        CALLER.set(self)
        while self.state is RUNNING and not self.busy:
            if self.stop_asked is not None:
                self._begin_stop(self.stop_asked)
                continue
            if budget == 0:
                return True
            budget -= 1
            envelope = self.mailbox.take(system_only=self.suspended)
            if envelope is None:
                break
            self._deliver(envelope)
        self.in_ready = False
        return False

    def _deliver(self, envelope: Envelope) -> None:
        scheduler = self.scheduler
        plain = envelope.reply is None and envelope.epoch is None
        if not plain and envelope.is_late(scheduler.clock.monotonic, self.epoch):
            scheduler.skipped += 1
            scheduler.emit(self, Event.SKIPPED, type(envelope.message).__name__)
            return
        self.current = envelope
        if undelivered.is_stop(envelope):
            self._begin_stop(exits.normal())
            return
        if scheduler.observers:
            scheduler.emit(self, Event.HANDLING, type(envelope.message).__name__)
        self.busy = True
        try:
            result = self.actor.receive(envelope.message)  # type: ignore[union-attr]
        except BaseException as error:  # noqa: BLE001  # a bug of one actor ends that one
            self._settled(self._handled, None, error)
            return
        if result.__class__ is CoroutineType:
            self._begin_work(result, self._handled)
        else:
            self._settled(self._handled, result, None)

    def _handled(self, result: Any, error: BaseException | None) -> None:
        envelope, self.current = self.current, None
        assert envelope is not None
        if self.scheduler.observers:
            fault = "" if error is None else f" {type(error).__name__}"
            name = type(envelope.message).__name__
            self.scheduler.emit(self, Event.HANDLED, name + fault)
        if error is None:
            if envelope.reply is not None:
                envelope.reply.resolve(result)
        elif isinstance(error, self.scheduler.answers):
            undelivered.answer_error(envelope, self.path, error)
        else:
            self.doom = exits.crashed(error, type(envelope.message).__name__)
            undelivered.cut_short(envelope, self.path, self.doom)
            self.end(self.doom)
            return
        if not self.in_ready:
            self._look()

    def _look(self) -> None:
        """Go on with what has piled up, unless a `step` above does so anyway."""
        if self.stop_asked is not None or self.mailbox.has_mail(
            system_only=self.suspended
        ):
            self.wake()

    # --- one piece of the actor's code, sync or async -------------------------

    def _perform(self, call: Callable[[], Any], settle: Settle) -> None:
        """Run a hook; `_deliver` does the same with messages, within its batch."""
        context = self.scheduler.context.copy()
        context.run(CALLER.set, self)
        self.busy = True
        try:
            result = context.run(call)
        except BaseException as error:  # noqa: BLE001  # a bug of one actor ends that one
            self._settled(settle, None, error)
            return
        if result.__class__ is CoroutineType:
            context.run(self._begin_work, result, settle)
        else:
            self._settled(settle, result, None)

    def _begin_work(self, coroutine: Coroutine[Any, Any, Any], settle: Settle) -> None:
        if self.doom is not None:  # it killed itself on the way here
            coroutine.close()
            self._settled(settle, None, None)
            return
        self.since = self.scheduler.clock.monotonic()
        self._work = Work(
            coroutine, lambda r, e: self._settled(settle, r, e), self.path
        )

    def _settled(
        self, settle: Settle, result: Any, error: BaseException | None
    ) -> None:
        self.busy = False
        self._work = None
        if self.doom is None:
            settle(result, error)
        else:
            self.end(self.doom)

    # --- stopping -------------------------------------------------------------

    def request_stop(self, exit_: Exit) -> None:
        """Stop after the message in hand; mail that waits stays for a successor."""
        if self.state is State.WAITING:
            return
        if self.stop_asked is None:
            self.stop_asked = exit_
            if self.state is State.STARTING and self.actor is not None:
                self.actor.interrupt_start(exit_)
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
        self.doom = exit_
        self.hold(self)
        self._let_go(grace_s)
        if self._work is not None:
            self._work.cancel()
            self._brutal_after(grace_s)
        elif not self.busy:
            self.end(exit_)
        return True

    def _let_go(self, grace_s: float) -> None:
        """Tell the asker at once; cancel all that was begun beside the handler."""
        undelivered.cut_short(self.current, self.path, self.doom)
        resources, self.resources = self.resources, None
        for resource in resources or ():
            resource.cancel()
        for task in self._holds.tasks():
            task.cancel()
            self._brutal_after(grace_s)

    def _brutal_after(self, grace_s: float) -> None:
        if self._brutal_timer is None and grace_s < math.inf:
            clock = self.scheduler.clock
            when = clock.monotonic() + grace_s
            self._brutal_timer = clock.call_at(when, self._brutal)

    def _brutal(self) -> None:
        """Take the incarnation's coroutine and tasks away from it."""
        if self.state is not State.DYING or self.doom is None:
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
            self.end(self.doom)
        for task in self._holds.tasks():
            self.scheduler.zombies += not task.done()
            self.release(task)

    # --- ending ---------------------------------------------------------------

    def end(self, exit_: Exit) -> None:
        """Let go of all it holds, its code being off the stack; then tell."""
        self.state = State.DYING
        self.doom = exit_
        self.hold(self)
        self._let_go(self.grace_s)
        if self.actor is not None:
            self.actor.on_death(exit_)
        self.release(self)

    def hold(self, thing: object) -> None:
        """Keep the incarnation from being over until `thing` is released."""
        self._holds.add(thing)

    def release(self, thing: object) -> None:
        last = self._holds.remove(thing)
        if last and self.state is State.DYING and self.doom is not None:
            self._over(self.doom)

    def _over(self, exit_: Exit) -> None:
        if self._brutal_timer is not None:
            self._brutal_timer.cancel()
            self._brutal_timer = None
        self.actor = self.asking = self.doom = self.stop_asked = None
        self.busy = False
        self.state = State.WAITING
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
