"""One actor's place in the tree: its mail, its states, one incarnation at a time.

A cell outlives its incarnations. Whatever an incarnation leaves behind (a timer,
a task, a coroutine) checks that it still is the cell's present one, or is dropped.
"""

import math
from collections.abc import Callable, Coroutine
from datetime import datetime
from types import CoroutineType
from typing import Any

from trustfabric.supervision import exits, undelivered
from trustfabric.supervision.clock import Handle
from trustfabric.supervision.context import BIRTH, CALLER
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.holder import Holder
from trustfabric.supervision.mailbox import (
    Envelope,
    Mail,
    Reply,
    is_stop,
    sealed,
)
from trustfabric.supervision.messages import TYPED
from trustfabric.supervision.roles import Behaviour
from trustfabric.supervision.scheduler import DEPTH
from trustfabric.supervision.states import ALIVE, RUNNING, STARTING, WAITING, State
from trustfabric.supervision.trace import Event
from trustfabric.supervision.work import Settle, Work


class Cell(Holder):
    """Belongs to the loop's thread; other threads only `Scheduler.post` to it."""

    __slots__ = (
        "_brutal_timer", "_free", "_work", "actor", "asking", "current", "doom",
        "gathers", "grace_s", "restart_count", "restarts", "since",
        "stop_asked",
    )  # fmt: skip

    def __init__(self, address: Any) -> None:
        Holder.__init__(self, address)  # super() takes its time, and there are many
        self.actor: Behaviour | None = None
        self.gathers = False
        """It takes requests along, so that they shall not come one by one."""
        self.grace_s = 5.0
        self.current: Mail | None = None
        self.since = 0.0
        self.stop_asked: Exit | None = None
        self.asking: dict[Reply, Cell] | None = None
        self.restart_count = 0
        self.restarts: list[tuple[datetime, str]] | None = None
        self._resources = self._holds = self._ended = None
        self._free = False
        """It has ended and let go of everything but what holds it."""
        self.doom: Exit | None = None
        self._work: Work | None = None
        self._brutal_timer: Handle | None = None

    # --- running --------------------------------------------------------------

    def start(self, construct: Callable[[], Any]) -> None:
        """Begin a new incarnation; the parent hears `child_up` or `child_down`."""
        assert self.state is WAITING
        self.epoch += 1
        self.state = STARTING
        self.doom = self.stop_asked = None
        self.suspended = False
        self.since = self.scheduler.clock.monotonic()
        self._perform(self._started, self._construct, construct)

    def _construct(self, construct: Callable[[], Any]) -> Any:
        BIRTH.set(self)
        try:
            self.actor = actor = construct()
        except BaseException:
            self.actor = None
            raise
        self.scheduler.tally.came(actor.__class__)
        if self.empty:
            self.policy = actor.mailbox
        else:
            self.adopt(actor.mailbox)
        return actor.on_start()

    def _started(self, _: Any, error: BaseException | None) -> None:
        if error is not None:
            self.end(exits.crashed(error, "on_start"))
            return
        self.state = RUNNING
        if self.scheduler.observers:
            self.scheduler.emit(self, Event.STARTED, type(self.actor).__name__)
        self.parent.child_up(self)
        if not self.empty or self.stop_asked is not None:
            self.wake()

    def step(self, budget: int) -> bool:
        return self.scheduler.context.copy().run(self._handle_some, budget)

    @property
    def is_free(self) -> bool:
        """Whether it has nothing to do."""
        return (
            self.state is RUNNING
            and not self.busy
            and not self.in_ready
            and not self.suspended
            and self.stop_asked is None
            and self.empty
        )

    def may_be_handed(self) -> bool:
        """Whether an ask may be handled on its asker's stack."""
        scheduler = self.scheduler
        return (  # whether it `is_free`, the short way, and the scheduler agrees
            self.state is RUNNING
            and not self.busy
            and not self.in_ready
            and self._in is None
            and self._out is None
            and self.system is None
            and self.stop_asked is None
            and not self.suspended
            and not self.gathers
            and scheduler.depth < DEPTH
            and (scheduler.hand_overs > 0 or scheduler.has_turned())
            and (not scheduler.shuffles or scheduler.tosses())
        )

    def handle_now(self, envelope: Envelope) -> None:
        """Handle a request on its asker's stack; only while free."""
        scheduler = self.scheduler
        before, scheduler.running = scheduler.running, self
        self.in_ready = True
        scheduler.depth += 1
        scheduler.hand_overs -= 1
        try:
            scheduler.context.copy().run(self._deliver, envelope, envelope.message)
        finally:
            scheduler.depth -= 1
            self.in_ready = False
            scheduler.running = before
            if (  # as `_look`, the short way
                self._in is not None
                or self._out is not None
                or self.system is not None
                or self.stop_asked is not None
            ):
                self.wake()

    def _handle_some(self, budget: int) -> bool:
        while self.state is RUNNING and not self.busy:
            if self.stop_asked is not None:
                self._begin_stop(self.stop_asked)
                continue
            if budget == 0:
                return True
            budget -= 1
            if self.system is not None:
                mail = self.take_system()
            else:
                mail = None if self.suspended else self.take()
            if mail is None:
                break
            if mail.__class__ is Envelope:
                self._deliver_sealed(mail)
            else:
                self._deliver(mail, mail)
        self.in_ready = False
        return False

    def _deliver_sealed(self, envelope: Envelope) -> None:
        scheduler, message = self.scheduler, envelope.message
        if envelope.is_late(scheduler.clock.monotonic, self.epoch):
            scheduler.tally.skipped += 1
            undelivered.out_of_time(envelope, self.path)
            scheduler.emit(self, Event.SKIPPED, type(message).__name__)
        elif is_stop(envelope):
            self.current = envelope
            self._begin_stop(exits.normal())
        else:
            self._deliver(envelope, message)

    def _deliver(self, mail: Mail, message: Any) -> None:
        self.current = mail
        observers = self.scheduler.observers
        if observers:
            self.scheduler.emit(self, Event.HANDLING, type(message).__name__)
        self.busy = True
        try:
            actor: Behaviour = self.actor  # type: ignore[assignment]
            if isinstance(message, TYPED):
                result = actor.handle(message)
            else:
                result = actor.receive(message)
        except BaseException as error:  # noqa: BLE001  # a bug of one actor ends that one
            self._settled(self._handled, None, error)
            return
        if result.__class__ is CoroutineType:
            self._begin_work(result, self._handled)
        elif observers or self.doom is not None:
            self._settled(self._handled, result, None)
        else:  # as that would, the short way
            self.busy = False
            self.current = None
            if mail is not message and mail.reply is not None:
                mail.reply.resolve(result)

    def _handled(self, result: Any, error: BaseException | None) -> None:
        mail, self.current = sealed(self.current), None
        if self.scheduler.observers:
            fault = "" if error is None else f" {type(error).__name__}"
            name = type(mail.message).__name__
            self.scheduler.emit(self, Event.HANDLED, name + fault)
        if error is None:
            if mail.reply is not None:
                mail.reply.resolve(result)
        elif isinstance(error, self.scheduler.answers):
            undelivered.answer_error(mail, self.path, error)
        else:
            self.current = mail  # still in hand
            self.end(exits.crashed(error, type(mail.message).__name__))
            return
        if not self.in_ready:
            self._look()

    def _look(self) -> None:
        """Go on with what has piled up, unless a `step` above does so anyway."""
        if self.stop_asked is not None or not self.empty:
            self.wake()

    # --- one piece of the actor's code, sync or async -------------------------

    def _perform(self, settle: Settle, call: Callable[..., Any], *args: Any) -> None:
        """Run a hook; `_deliver` does the same with messages, within its batch."""
        context = self.scheduler.context.copy()
        self.busy = True
        try:
            result = context.run(call, *args)
        except BaseException as error:  # noqa: BLE001  # a bug of one actor ends that one
            self._settled(settle, None, error)
            return
        if result.__class__ is CoroutineType:
            context.run(self._begin_work, result, settle)
        elif self.doom is None:  # as `_settled` would, the short way
            self.busy = False
            settle(result, None)
        else:
            self._settled(settle, result, None)

    def _begin_work(self, coroutine: Coroutine[Any, Any, Any], settle: Settle) -> None:
        if self.doom is not None:  # it killed itself on the way here
            coroutine.close()
            self._settled(settle, None, None)
            return
        self.since = self.scheduler.clock.monotonic()
        caller = CALLER.set(self)
        work = Work(coroutine, self.path)
        CALLER.reset(caller)  # what else is handled in this context is not in its midst
        self._work = work
        if self.state is State.DYING:  # it killed itself before it first had to wait
            work.cancel()
        work.then(lambda result, error: self._settled(settle, result, error))

    def _settled(
        self, settle: Settle, result: Any, error: BaseException | None
    ) -> None:
        self.busy = False
        self._work = None
        if self.doom is None:
            settle(result, error)
        else:
            undelivered.cleanup_failed(self.path, error)
            self.end(self.doom)

    # --- stopping -------------------------------------------------------------

    def request_stop(self, exit_: Exit) -> None:
        """Stop after the message in hand; mail that waits stays for a successor."""
        if self.state is State.WAITING:
            return
        if self.is_free:
            self._begin_stop(exit_)
            return
        if self.stop_asked is None:
            self.stop_asked = exit_
            if self.state is State.STARTING and self.actor is not None:
                self.actor.interrupt_start(exit_)
        self._look()

    def _begin_stop(self, exit_: Exit) -> None:
        self.state = State.STOPPING
        assert self.actor is not None
        self._perform(lambda _, e: self._stopped(exit_, e), self.actor.on_stop)

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
        if not self.busy:
            self.end(exit_, grace_s)
            return True
        self.state = State.DYING
        self.doom = exit_
        self._let_go(grace_s)
        if self._work is not None:
            self._work.cancel()
        self._brutal_after(grace_s)
        return True

    def _let_go(self, grace_s: float) -> None:
        """Tell the asker at once; cancel all that was begun beside the handler."""
        in_hand = None if self.current is None else sealed(self.current)
        if in_hand is not None and not in_hand.may_repeat:
            undelivered.cut_short(in_hand, self.path, self.doom)
        self._cancel_resources()
        for task in self._held_tasks():
            task.cancel()
            self._brutal_after(grace_s)

    def _brutal_after(self, grace_s: float) -> None:
        if self._brutal_timer is None and grace_s < math.inf:
            clock = self.scheduler.clock
            when = clock.monotonic() + grace_s
            self._brutal_timer = clock.call_at(when, self._brutal)

    def _cancel_brutal_timer(self) -> None:
        if self._brutal_timer is not None:
            self._brutal_timer.cancel()
            self._brutal_timer = None

    def _brutal(self) -> None:
        """Take the incarnation's coroutine and tasks away from it."""
        if self.state is not State.DYING or self.doom is None:
            return
        work, tasks = self._work, self._held_tasks()
        on_stack = work.on_stack if work is not None else self.busy
        if on_stack or any(task.on_stack for task in tasks):  # once they are off it
            self._cancel_brutal_timer()
            self._brutal_after(0.0)
            return
        if work is not None:
            self._work = None
            self.busy = False
            self.scheduler.tally.zombies += not work.close()
            self.end(self.doom)
        for task in tasks:
            self.scheduler.tally.zombies += not task.close()
            self.release(task)

    # --- ending ---------------------------------------------------------------

    def end(self, exit_: Exit, grace_s: float | None = None) -> None:
        """Let go of all it holds, its code being off the stack; then tell."""
        fallen, self.state = self.state is State.DYING, State.DYING
        self.doom = exit_
        if not fallen:  # else it has let go; a second cancel would cut cleanups off
            self._let_go(self.grace_s if grace_s is None else grace_s)
        if self.actor is not None:
            self.actor.on_death(exit_)
        self._free = True
        if self._holds is None:
            self._over(exit_)

    def _all_released(self) -> None:
        if self._free and self.doom is not None:
            self._over(self.doom)

    def _over(self, exit_: Exit) -> None:
        self._cancel_brutal_timer()
        if self.actor is not None:
            self.scheduler.tally.went(self.actor.__class__)
        self.actor = self.asking = self.doom = self.stop_asked = None
        self.busy = self._free = False
        self.state = WAITING
        if self.scheduler.observers:
            self.scheduler.emit(self, Event.DOWN, exit_.reason)
        self._tell_over()
        mail, self.current = self.current, None
        if mail is not None and sealed(mail).may_repeat:
            self.keep_again(sealed(mail))
        self.parent.child_down(self, exit_)
        if mail is not None and is_stop(sealed(mail)):
            undelivered.strand(
                sealed(mail), self.path, "stopped", self.scheduler.dead_letters
            )
