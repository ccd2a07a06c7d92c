"""A running tree: started, looked into, disturbed, waited for and stopped."""

import asyncio
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any, cast

from trustfabric.supervision import exits
from trustfabric.supervision.actor import SPAWN
from trustfabric.supervision.address import Address
from trustfabric.supervision.cell import Cell
from trustfabric.supervision.child import Child, log_down
from trustfabric.supervision.clock import Clock, SystemClock
from trustfabric.supervision.deadletters import DeadLetters
from trustfabric.supervision.directory import Directory
from trustfabric.supervision.errors import ActorCrashedError
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.report import ActorReport, describe
from trustfabric.supervision.scheduler import Scheduler
from trustfabric.supervision.spec import Backoff, Restart, SupervisorSpec, Terms
from trustfabric.supervision.states import ALIVE, State
from trustfabric.supervision.supervisor import announce, make_child
from trustfabric.supervision.tally import Counts, Lag
from trustfabric.supervision.trace import Observer, Trace
from trustfabric.supervision.watchdog import Held, Watchdog

LONER = Terms(restart=Restart.TEMPORARY, shutdown_s=5.0, backoff=Backoff())
QUIET_TURNS = 10
"""A chain of tasks and callbacks between two messages is no longer than this."""


class Runtime:
    """One tree on the running event loop."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        answers: tuple[type[Exception], ...] = (),
        shuffle: bool = False,
        watchdog_s: float = 0.1,
    ) -> None:
        """`answers` are exceptions that go to the asker and leave the actor alive.

        Under the system's clock, whoever holds the loop for `watchdog_s` is named in
        the log; 0 turns that off. With `shuffle`, whose turn it is comes from
        `random`: order within one sender and receiver stays, all else is varied.
        """
        self._clock = clock or SystemClock()
        self._random = random or Random()  # noqa: S311  # spreads load, keeps no secret
        self._answers = answers
        self._shuffle = shuffle
        self._watchdog_s = watchdog_s if isinstance(self._clock, SystemClock) else 0.0
        self._watchdog: Watchdog | None = None
        self._scheduler: Scheduler | None = None
        self._guardian: Guardian | None = None

    async def start(self, root: SupervisorSpec) -> None:
        """Return once the whole tree is up; ActorCrashedError if its root gave up.

        RuntimeError the second time: a runtime runs one tree, once.
        """
        if self._guardian is not None:
            raise RuntimeError("the runtime was started already: make another one")
        scheduler = Scheduler(
            self._clock, self._random, self._answers, shuffle=self._shuffle
        )
        scheduler.directory = Directory()
        self._scheduler = scheduler
        self._guardian = Guardian(scheduler, root)
        SPAWN.set(self.spawn)
        scheduler.context.run(SPAWN.set, self.spawn)
        if self._watchdog_s > 0.0:
            self._watchdog = Watchdog(scheduler, self._watchdog_s)
            self._watchdog.start()
            self._guardian.finished.add_done_callback(self._unwatch)
        await self._guardian.start()

    async def stop(self, within_s: float = 10.0) -> None:
        """Stop in reverse order of starting; kill what is left after `within_s`."""
        if self._guardian is not None:
            await self._guardian.stop(within_s)

    async def wait(self) -> str:
        """Return why the root ended, once it has."""
        return await asyncio.shield(self._tree.finished)

    def spawn(self, construct: Callable[[], Any], name: str = "actor") -> Address[Any]:
        """Start an actor without a supervisor: whichever way it ends, it stays so."""
        return self._tree.spawn(construct, name)

    # --- looking in -----------------------------------------------------------

    @property
    def dead_letters(self) -> DeadLetters:
        return self._live.dead_letters

    def counts(self) -> Counts:
        """Return what was counted so far, without a walk through the tree."""
        live, watchdog, tally = self._live, self._watchdog, self._live.tally
        return Counts(
            up={kind.__name__: count for kind, count in tally.up.items() if count},
            started=tally.started,
            restarts=dict(tally.restarts),
            dead_letters=live.dead_letters.by_reason(),
            skipped=tally.skipped,
            zombies=tally.zombies,
            held=0 if watchdog is None else watchdog.total,
            lag=(Lag() if watchdog is None else watchdog.lag).histogram(),
        )

    @property
    def holds(self) -> list[Held]:
        """The newest times the loop was held, oldest first."""
        return [] if self._watchdog is None else list(self._watchdog.held)

    def report(self) -> list[ActorReport]:
        """Return a line for each actor, in the order of the tree."""
        reports = [describe(cell) for cell in self._live.directory.all()]
        return sorted(reports, key=lambda report: report.path.split("/"))

    def find(self, path: str) -> Address[Any]:
        """Return the address at a path; KeyError if there is none."""
        return cast("Address[Any]", self._at(path).address)

    def trace(self, path: str, *, keep: int = 200) -> Trace:
        """Keep the newest events at and below a path, until its `stop`."""
        trace = Trace(path, keep=keep, stop=self.unobserve)
        self.observe(trace.observe)
        return trace

    def observe(self, observer: Observer) -> None:
        """Call with every event of every actor, from now on."""
        self._live.observers = (*self._live.observers, observer)

    def unobserve(self, observer: Observer) -> None:
        self._live.observers = tuple(o for o in self._live.observers if o != observer)

    async def quiet(self) -> None:
        """Return once nobody has anything to do but to wait (for tests)."""
        turns = 0
        while turns < QUIET_TURNS:
            await asyncio.sleep(0)
            turns = turns + 1 if self._live.idle else 0

    # --- disturbing -----------------------------------------------------------

    async def kill(self, path: str, reason: str = "chaos") -> None:
        """End the incarnation at a path, and wait until it is over; or KeyError."""
        cell = self._at(path)
        if cell.state in ALIVE:
            over = cell.ended()
            cell.kill(exits.killed(reason))
            await asyncio.shield(over)

    def suspend(self, path: str) -> None:
        """Handle only system mail until `resume`; user mail is kept to the bound."""
        self._at(path).suspended = True

    def resume(self, path: str) -> None:
        cell = self._at(path)
        cell.suspended = False
        cell.wake()

    # --------------------------------------------------------------------------

    def _unwatch(self, _: object) -> None:
        assert self._watchdog is not None
        self._watchdog.stop()

    def _at(self, path: str) -> Cell:
        cell: Cell = self._live.directory.find(path)
        return cell

    @property
    def _live(self) -> Scheduler:
        if self._scheduler is None:
            raise RuntimeError("the runtime was not started")
        return self._scheduler

    @property
    def _tree(self) -> "Guardian":
        if self._guardian is None:
            raise RuntimeError("the runtime was not started")
        return self._guardian


class Guardian:
    """The parent of the root, and of actors without a supervisor."""

    def __init__(self, scheduler: Scheduler, root: SupervisorSpec) -> None:
        self._scheduler = scheduler
        self._root = make_child(root)
        self._loners: dict[Cell, Child] = {}
        self._numbers = count(1)
        self.started: asyncio.Future[None] = scheduler.loop.create_future()
        self.finished: asyncio.Future[str] = scheduler.loop.create_future()
        announce(root, scheduler, "")
        self._root.cell.attach(scheduler, self, "")
        scheduler.directory.add(self._root.cell)

    async def start(self) -> None:
        self._root.start()
        await asyncio.wait(
            (self.started, self.finished), return_when=asyncio.FIRST_COMPLETED
        )
        if self.finished.done():
            raise ActorCrashedError(f"the tree did not start: {self.finished.result()}")

    async def stop(self, within_s: float) -> None:
        clock = self._scheduler.clock
        timer = clock.call_at(clock.monotonic() + within_s, self._overrun)
        # a copy in one go: threads may spawn meanwhile
        loners = [loner for loner in list(self._loners.values()) if loner.alive]
        ends = [loner.cell.ended() for loner in loners]
        for loner in loners:
            loner.stop()
        if ends:
            await asyncio.wait(ends)
        self._root.stop()
        if not self._root.alive:
            self._finish("stopped")
        await asyncio.shield(self.finished)
        timer.cancel()

    def _overrun(self) -> None:
        """End all by force, supervisors first: else they would restart who falls."""
        for cell in sorted(self._scheduler.directory.all(), key=_depth):
            cell.kill(exits.killed("the runtime did not stop in time"), 0.0)

    def spawn(self, construct: Callable[[], Any], name: str) -> Address[Any]:
        address: Address[Any] = Address(f"{name}-{next(self._numbers)}")
        child = Child(address.cell, construct, LONER)
        self._loners[address.cell] = child
        address.cell.attach(self._scheduler, self, "")
        self._scheduler.directory.add(address.cell)
        if self._scheduler.here:
            self._start(child)
        else:
            self._scheduler.call_from_thread(lambda: self._start(child))
        return address

    def _start(self, child: Child) -> None:
        """Start an actor without a supervisor, unless the runtime has ended."""
        if self.finished.done():
            self.child_down(child.cell, exits.shutdown("the runtime stopped"))
        else:
            child.start()

    def child_up(self, cell: Cell) -> None:
        if cell is self._root.cell and not self.started.done():
            self.started.set_result(None)

    def child_down(self, cell: Cell, exit_: Exit) -> None:
        loner = self._loners.pop(cell, None)
        if loner is not None:
            loner.went_down()
            log_down(loner, exit_, "stays down", None)
            loner.give_up(exit_)
            self._scheduler.directory.drop(cell)
            return
        self._root.went_down()
        log_down(self._root, exit_, "the runtime ends", None)
        self._finish(exit_.reason)

    def _finish(self, reason: str) -> None:
        """Nothing posted or waiting stays unanswered."""
        if self.finished.done():
            return
        for cell in list(self._scheduler.directory.all()):
            if cell.state is State.WAITING:
                cell.bury(exits.shutdown())
            elif cell.state in ALIVE:
                cell.kill(exits.killed("the runtime ends"), 0.0)
        self._scheduler.close()
        self.finished.set_result(reason)


def _depth(cell: Cell) -> int:
    """How many stand above it."""
    return cell.path.count("/")
