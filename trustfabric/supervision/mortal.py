"""How an incarnation ends: cancelled, after a grace by force, and who is told of it."""

import math
from typing import TYPE_CHECKING, Any

from trustfabric.supervision import undelivered
from trustfabric.supervision.clock import Handle
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.holder import Holder
from trustfabric.supervision.mailbox import Mail, Reply, is_stop, sealed
from trustfabric.supervision.roles import Behaviour
from trustfabric.supervision.states import ALIVE, WAITING, State
from trustfabric.supervision.trace import Event
from trustfabric.supervision.work import Work

if TYPE_CHECKING:
    from trustfabric.supervision.cell import Cell


class Mortal(Holder):
    __slots__ = (
        "_brutal_timer", "_free", "_work", "actor", "asking", "current", "doom",
        "grace_s", "stop_asked",
    )  # fmt: skip

    def __init__(self, address: Any) -> None:
        Holder.__init__(self, address)  # super() takes its time, and there are many
        self.actor: Behaviour | None = None
        self.grace_s = 5.0
        self.current: Mail | None = None
        """What is in hand: lost with the incarnation, unless it may be repeated."""
        self.stop_asked: Exit | None = None
        self.asking: dict[Reply, Cell] | None = None
        """Who shall answer it, by the replies it waits for."""
        self.doom: Exit | None = None
        """Why it ends, from the moment on that this is certain."""
        self._resources = self._holds = self._ended = None
        self._free = False
        """It has ended and let go of everything but what holds it."""
        self._work: Work | None = None
        self._brutal_timer: Handle | None = None

    def waits_for(self, target: "Cell", reply: Reply) -> None:
        if self.asking is None:
            self.asking = {}
        self.asking[reply] = target

    def waits_no_more(self, reply: Reply) -> None:
        if self.asking is not None:  # else the incarnation that waited is over
            self.asking.pop(reply, None)

    def kill(self, exit_: Exit, grace_s: float | None = None) -> bool:
        """End now: cancel, and after the grace close by force.

        A sync handler is let finish. False if there was nothing to kill.
        """
        epoch = self.epoch
        if self._work is not None:
            self._work.finish()  # what was done before counts
        if self.state not in ALIVE or self.epoch != epoch:
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
