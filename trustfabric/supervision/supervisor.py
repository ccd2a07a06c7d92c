"""A supervisor of named children, kept as its spec says by one of three strategies.

Whatever happens only marks children; `_advance` then looks at the marks and does
the next thing they call for: stop the last that must leave, or start the next that
is down. So every mixture of falls, stops and late timers ends in the same order.
"""

import asyncio
from typing import Any

from trustfabric.supervision import exits
from trustfabric.supervision.actor import Actor
from trustfabric.supervision.address import Address, DynamicAddress
from trustfabric.supervision.asking import waits_for_stop_of
from trustfabric.supervision.cell import Cell
from trustfabric.supervision.child import Child, log_down
from trustfabric.supervision.dynamic import DynamicSupervisor
from trustfabric.supervision.errors import ActorDeadError, GaveUpError
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.intensity import Intensity
from trustfabric.supervision.scheduler import Scheduler
from trustfabric.supervision.spec import (
    AnySpec,
    AutoShutdown,
    ChildSpec,
    DynamicSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)
from trustfabric.supervision.states import State


class Supervisor(Actor):
    def __init__(self, spec: SupervisorSpec) -> None:
        super().__init__()
        self._spec = spec
        self._intensity = Intensity(spec.max_restarts, spec.within_s)
        self._children = [make_child(child) for child in spec.children]
        self._by_cell = {child.cell: child for child in self._children}
        loop = self._cell.scheduler.loop
        self._booted: asyncio.Future[None] = loop.create_future()
        self._emptied: asyncio.Future[None] = loop.create_future()
        self._closing: Exit | None = None
        self._fallen = False
        self._advancing = False
        self._again = False
        for child, child_spec in zip(self._children, spec.children, strict=True):
            prefix = f"{self._cell.path}/"
            announce(child_spec, self._cell.scheduler, prefix)
            child.cell.attach(self._cell.scheduler, self, prefix)
            self._cell.scheduler.directory.add(child.cell)

    async def on_start(self) -> None:
        self._advance()
        await self._booted

    async def on_stop(self) -> None:
        self._close(exits.shutdown())
        await self._emptied

    def interrupt_start(self, exit_: Exit) -> None:
        self._close(exit_)

    def on_death(self, exit_: Exit) -> None:
        super().on_death(exit_)
        self._fallen = True
        for child in self._children:
            if child.alive:
                self._cell.hold(child.cell)
                child.cell.kill(exits.taken_along())
            else:
                child.give_up(exit_)

    @property
    def _falls(self) -> bool:
        """Whether it was killed, even if its own code has yet to let go."""
        return self._fallen or self._cell.state is State.DYING

    # --- what children report -------------------------------------------------

    def child_up(self, cell: Cell) -> None:
        self._by_cell[cell].came_up()
        self._advance()

    def child_down(self, cell: Cell, exit_: Exit) -> None:
        child = self._by_cell[cell]
        child.went_down()
        if self._falls:
            log_down(child, exit_, "stays down", None)
            child.give_up(exit_)
            self._cell.release(cell)  # with the last, this incarnation is over
            return
        if self._closing is not None:
            log_down(child, exit_, "stays down", None)
            child.give_up(exit_)
        elif child.leaving:
            log_down(child, exit_, "restarts with its siblings", None)
            if child.terms.restart is Restart.TEMPORARY:
                child.give_up(exit_)
        elif child.terms.restart.after(exit_):
            self._restart(child, exit_)
        else:
            log_down(child, exit_, "stays down", None)
            child.give_up(exit_)
            self._consider_auto_shutdown(child)
        self._advance()

    def _restart(self, child: Child, exit_: Exit) -> None:
        if not self._intensity.allows(self.monotonic()):
            log_down(child, exit_, "its supervisor gives up", None)
            child.give_up(exit_)
            self._close(exits.crashed(self._gave_up(child, exit_)))
            return
        delay_s = child.start_later(exit_, self._advance)
        log_down(child, exit_, "restarts", delay_s)
        for other in self._fall_with(child):
            other.leaving = other.alive

    def _gave_up(self, child: Child, exit_: Exit) -> GaveUpError:
        error = GaveUpError(
            f"{self._cell.path}: more than {self._spec.max_restarts} restarts "
            f"in {self._spec.within_s:g} s, the last of {child.cell.path}"
        )
        error.__cause__ = exit_.error
        return error

    def _fall_with(self, child: Child) -> list[Child]:
        others = [other for other in self._children if other is not child]
        match self._spec.strategy:
            case Strategy.ONE_FOR_ONE:
                return []
            case Strategy.ONE_FOR_ALL:
                return others
            case Strategy.REST_FOR_ONE:
                return self._children[self._children.index(child) + 1 :]

    def _consider_auto_shutdown(self, child: Child) -> None:
        significant = [other for other in self._children if other.terms.significant]
        enough = {
            AutoShutdown.NEVER: False,
            AutoShutdown.ANY: child.terms.significant,
            AutoShutdown.ALL: child.terms.significant
            and all(other.gone for other in significant),
        }
        if enough[self._spec.auto_shutdown]:
            self._close(exits.normal())

    # --- keeping order --------------------------------------------------------

    def _close(self, exit_: Exit) -> None:
        """Stop all children, then end so; unless that has begun."""
        if self._closing is None:
            self._closing = exit_
            self._advance()

    def _advance(self) -> None:
        if self._advancing:
            self._again = True
            return
        self._advancing = True
        try:
            self._again = True
            while self._again and not self._falls:
                self._again = False
                if self._closing is not None:
                    self._stop_next(self._closing)
                elif not self._stop_leavers():
                    self._start_next()
        finally:
            self._advancing = False

    def _stop_next(self, closing: Exit) -> None:
        for child in reversed(self._children):
            if child.alive:
                child.stop()
                return
            if not child.gone:
                child.give_up(closing)
        if not self._emptied.done():
            self._emptied.set_result(None)
            if self._cell.may_speak:  # nobody asked for this end but itself
                self._cell.kill(closing)

    def _stop_leavers(self) -> bool:
        """Stop the last of those that must leave; False if all have left."""
        for child in reversed(self._children):
            if child.leaving and child.alive:
                child.stop()
                _free(child.cell)
                return True
        for child in self._children:
            child.leaving = False
        return False

    def _start_next(self) -> None:
        in_order = self._spec.strategy is not Strategy.ONE_FOR_ONE
        for child in self._children:
            if child.gone:
                continue
            if not child.alive and not child.waiting:
                child.start()
            if not child.up and (in_order or not child.booted):
                return
        if not self._booted.done():
            self._booted.set_result(None)


def _free(cell: Cell) -> None:
    """Refuse what a leaver asks of a sibling that waits for it to have left."""
    for reply, target in list((cell.asking or {}).items()):
        if waits_for_stop_of(target, cell):
            reply.reject(
                ActorDeadError(f"{target.path}: waits for {cell.path} to stop")
            )


def make_child(spec: AnySpec) -> Child:
    address: Address[Actor]
    match spec:
        case ChildSpec():
            address = spec.address or Address(spec.name)
            return Child(address.cell, spec.start, spec.terms)
        case SupervisorSpec():
            address = Address(spec.name)
            return Child(address.cell, lambda: Supervisor(spec), spec.terms)
        case DynamicSpec():
            book = spec.address or DynamicAddress(spec.name)
            cell = book.address.cell
            return Child(cell, lambda: DynamicSupervisor(spec, book), spec.terms)


def announce(spec: AnySpec, scheduler: Scheduler, prefix: str) -> None:
    """Let every address of a spec keep mail from now on, before its turn comes."""
    match spec:
        case ChildSpec():
            if spec.address is not None:
                _announce(spec.address, scheduler, prefix)
        case DynamicSpec():
            if spec.address is not None:
                _announce(spec.address.address, scheduler, prefix)
        case SupervisorSpec():
            for child in spec.children:
                announce(child, scheduler, f"{prefix}{spec.name}/")


def _announce(address: Address[Any], scheduler: Scheduler, prefix: str) -> None:
    address.cell.announce(scheduler, prefix)
    scheduler.directory.add(address.cell)
