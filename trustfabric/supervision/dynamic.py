"""A supervisor of keyed children, each on its own, with a budget each and in all."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, cast

from trustfabric.supervision import exits
from trustfabric.supervision.actor import Actor
from trustfabric.supervision.address import Address, DynamicAddress
from trustfabric.supervision.cell import Cell
from trustfabric.supervision.child import Child, log_down
from trustfabric.supervision.errors import GaveUpError
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.intensity import Intensity
from trustfabric.supervision.scheduler import BATCH
from trustfabric.supervision.spec import DynamicSpec, Restart
from trustfabric.supervision.states import WAITING


class DynamicSupervisor(Actor):
    def __init__(self, spec: DynamicSpec[Any], book: DynamicAddress[Any]) -> None:
        super().__init__()
        self._spec = spec
        self._book = book
        self._total = Intensity(spec.max_restarts_total, spec.within_s)
        self._children = cast("dict[str, Child]", book.places)
        self._in_care = 0
        """Of the children, those this incarnation has started and not struck off."""
        self._terms = spec.child_terms
        self._prefix = f"{self._cell.path}/"
        self._cell.scheduler.directory.add_book(self._cell.path, book)
        self._removals: dict[str, asyncio.Future[None]] = {}
        self._emptied: asyncio.Future[None] | None = None
        self._closing: Exit | None = None

    async def on_start(self) -> None:
        """Start again what the incarnation before had in its care."""
        book = list(self._children.items())
        returning = [self._adopt(key, old.cell, old.construct) for key, old in book]
        for number, child in enumerate(returning, 1):
            if self._cell.stop_asked is not None:
                return
            if child.cell.state is WAITING and not child.waiting:
                child.start()
            if number % BATCH == 0:
                await asyncio.sleep(0)

    def interrupt_start(self, exit_: Exit) -> None:
        """Go on to stop, in order, who is up by now: `on_start` looks for it."""

    async def on_stop(self) -> None:
        self._closing = exits.shutdown()
        self._emptied = self._cell.scheduler.loop.create_future()
        clock, patience = self._cell.scheduler.clock, None
        if 0 < self._spec.shutdown_s < math.inf:
            when = clock.monotonic() + self._spec.shutdown_s
            patience = clock.call_at(when, self._overrun)
        try:
            await self._stop_all(self._closing)
            if self._in_care:
                await self._emptied
        finally:
            if patience is not None:
                patience.cancel()

    async def _stop_all(self, closing: Exit) -> None:
        for number, child in enumerate(list(self._children.values()), 1):
            if child.alive:
                child.ask_to_stop()
            elif not child.gone:
                self._forget(child, closing)
            if number % BATCH == 0:
                await asyncio.sleep(0)

    def _overrun(self) -> None:
        """End by force who has not stopped."""
        for child in list(self._children.values()):
            child.overrun()

    def on_death(self, exit_: Exit) -> None:
        super().on_death(exit_)
        self._closing = exit_
        fallen: list[Cell] = []
        for child in list(self._children.values()):
            if child.alive:
                self._cell.hold(child.cell)
                fallen.append(child.cell)
            elif not child.gone:
                self._forget(child, exit_)
        self._take_along(fallen, 0)

    def _take_along(self, fallen: list[Cell], begin: int) -> None:
        """Kill some; the others once the loop has turned: there may be very many."""
        end, scheduler = begin + BATCH, self._cell.scheduler
        for cell in fallen[begin:end]:
            cell.kill(exits.taken_along())
        if end < len(fallen):
            go_on, context = self._take_along, scheduler.context
            scheduler.loop.call_soon(go_on, fallen, end, context=context)

    # --- what its address asks ------------------------------------------------

    def place(self, key: str, start: Callable[[], Any]) -> Address[Any]:
        if not key or "/" in key:
            raise ValueError(f"{key!r}: a key is not empty and has no slash")
        address: Address[Any] = Address(key)
        self._adopt(key, address.cell, start).start()
        return address

    def remove(self, key: str) -> Awaitable[None]:
        loop = self._cell.scheduler.loop
        removal = self._removals.get(key)
        if removal is None:
            removal = self._removals[key] = loop.create_future()
            child = self._children[key]
            child.leaving = True
            if child.alive:
                child.stop()
            else:
                self._forget(child, exits.shutdown())
        return asyncio.shield(removal)

    def _adopt(self, key: str, cell: Cell, construct: Callable[[], Any]) -> Child:
        """Take a cell into care: from now on mail for it is kept."""
        child = Child(cell, construct, self._terms)
        cell.attach(self._cell.scheduler, self, self._prefix)
        self._children[key] = child
        self._in_care += 1
        return child

    # --- what children report -------------------------------------------------

    def child_up(self, cell: Cell) -> None:
        self._children[cell.address.name].came_up()

    def child_down(self, cell: Cell, exit_: Exit) -> None:
        child = self._children[cell.address.name]
        child.went_down()
        if self._closing is not None or child.leaving:
            log_down(child, exit_, "stays down", None)
            self._forget(child, exit_)
            self._cell.release(cell)
        elif not self._spec.restart.after(exit_):
            log_down(child, exit_, "stays down", None)
            self._forget(child, exit_)
        else:
            self._restart(child, exit_)

    def _restart(self, child: Child, exit_: Exit) -> None:
        now, spec = self.monotonic(), self._spec
        if child.budget is None:
            child.budget = Intensity(spec.max_restarts, spec.within_s)
        if not self._total.allows(now):
            log_down(child, exit_, "its supervisor gives up", None)
            self._forget(child, exit_)
            self._give_up(exit_)
        elif not child.budget.allows(now):
            log_down(child, exit_, "is given up", None)
            self._forget(child, exit_)
        else:
            delay_s = child.start_later(exit_, child.start)
            log_down(child, exit_, "restarts", delay_s)
            if not child.waiting:
                child.start()

    def _give_up(self, exit_: Exit) -> None:
        error = GaveUpError(
            f"{self._cell.path}: more than {self._spec.max_restarts_total} restarts "
            f"in {self._spec.within_s:g} s"
        )
        error.__cause__ = exit_.error
        self._cell.kill(exits.crashed(error))

    def _forget(self, child: Child, exit_: Exit) -> None:
        """Strike a child off; one that fell with this supervisor keeps its place."""
        key: str = child.cell.address.name
        self._in_care -= not child.gone  # else it is an earlier incarnation's
        child.give_up(exit_)
        removal = self._removals.pop(key, None)
        returns = self._closing is not None and removal is None
        if not returns or self._spec.restart is Restart.TEMPORARY:
            self._children.pop(key, None)
        if removal is not None:
            removal.set_result(None)
        emptied = self._emptied
        if emptied is not None and not emptied.done() and not self._in_care:
            emptied.set_result(None)
