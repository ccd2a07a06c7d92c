"""One actor's place in the tree: its mail, its states, one incarnation at a time.

A cell outlives its incarnations. Whatever an incarnation leaves behind (a timer,
a task, a coroutine) checks that it still is the cell's present one, or is dropped.
"""

from collections.abc import Callable, Coroutine
from datetime import datetime
from types import CoroutineType
from typing import Any, Final

from trustfabric.supervision import exits, undelivered
from trustfabric.supervision.context import BIRTH, CALLER
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.future import LoopReply
from trustfabric.supervision.mailbox import (
    Envelope,
    Mail,
    is_stop,
    sealed,
)
from trustfabric.supervision.messages import TYPED
from trustfabric.supervision.mortal import Mortal
from trustfabric.supervision.roles import Behaviour
from trustfabric.supervision.scheduler import DEPTH, LOOKS
from trustfabric.supervision.states import RUNNING, STARTING, WAITING, State
from trustfabric.supervision.trace import Event
from trustfabric.supervision.work import Settle, Work

NOT_FREE: Final = object()
"""In place of an answer: the request goes by the mailbox."""


class Cell(Mortal):
    """Belongs to the loop's thread; other threads only `Scheduler.post` to it."""

    __slots__ = ("gathers", "restart_count", "restarts", "since")

    def __init__(self, address: Any) -> None:
        Mortal.__init__(self, address)  # super() takes its time, and there are many
        self.gathers = False
        """It takes requests along, so that they shall not come one by one."""
        self.since = 0.0
        self.restart_count = 0
        self.restarts: list[tuple[datetime, str]] | None = None

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

    def hand_over(self, request: Any, asker: "Cell | None") -> Any:
        """Handle a request on its asker's stack; NOT_FREE if it has other things to do.

        Return the answer, or the LoopReply that has it or will. Most answers are there
        at once: an envelope and a reply for each would cost more than all the rest.
        """
        scheduler = self.scheduler
        if (  # unless it `is_free`, the short way, and the scheduler agrees
            self.in_ready
            or self.busy
            or self.state is not RUNNING
            or self._in
            or self._out
            or self.system
            or self.stop_asked
            or self.suspended
            or self.gathers
            or scheduler.depth >= DEPTH
            or (scheduler.hand_overs <= 0 and not scheduler.has_turned())
            or (scheduler.shuffles and not scheduler.tosses())
        ):
            return NOT_FREE
        before, scheduler.running = scheduler.running, self
        self.in_ready = True
        scheduler.depth += 1
        scheduler.hand_overs -= 1
        try:
            return scheduler.context.copy().run(self._answer, request, asker)
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

    def _answer(self, request: Any, asker: "Cell | None") -> Any:
        """As `_deliver`, with its asker below on the stack."""
        self.current = request
        observers = self.scheduler.observers
        if observers:
            self.scheduler.emit(self, Event.HANDLING, type(request).__name__)
        self.busy = True
        try:
            actor: Behaviour = self.actor  # type: ignore[assignment]
            if isinstance(request, TYPED):
                result = actor.handle(request)
            else:
                result = actor.receive(request)
        except BaseException as error:  # noqa: BLE001  # a bug of one actor ends that one
            reply = self._late_reply(request, asker)
            self._settled(self._handled, None, error)
            return reply
        if result.__class__ is CoroutineType:
            reply = self._late_reply(request, asker)
            self._begin_work(result, self._handled)
            return reply
        if observers or self.doom is not None:
            reply = self._late_reply(request, asker)
            self._settled(self._handled, result, None)
            return reply
        self.busy = False
        self.current = None
        return result

    def _late_reply(self, request: Any, asker: "Cell | None") -> LoopReply:
        """Put the request in hand into an envelope; its answer doesn't come at once."""
        reply = LoopReply(self.scheduler.loop)
        self.current = envelope = Envelope(request, reply)
        if asker is not None:
            asker.waits_for(self, reply)
        if self.doom is not None and not envelope.may_repeat:  # it killed itself
            undelivered.cut_short(envelope, self.path, self.doom)
        return reply

    def _handle_some(self, budget: int) -> bool:
        while self.state is RUNNING and not self.busy:
            if self.stop_asked is not None:
                self._begin_stop(self.stop_asked)
                continue
            if budget % LOOKS == 0 and (budget == 0 or self.scheduler.is_over()):
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
