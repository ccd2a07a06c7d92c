"""What an incarnation holds: what ends with it, and what must end before it is over.

Both in the order in which they came, so that equal histories go on equally.
"""

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING

from trustfabric.supervision.box import Box
from trustfabric.supervision.roles import Beside, Cancellable
from trustfabric.supervision.states import UP

if TYPE_CHECKING:
    from trustfabric.supervision.cell import Cell


class Holder(Box):
    __slots__ = ("_ended", "_holds", "_resources")

    _ended: asyncio.Future[None] | None

    _holds: "dict[Beside | Cell, None] | None"
    """Tasks and children."""
    _resources: dict[Cancellable, None] | None

    def is_up(self, epoch: int) -> bool:
        """Whether that incarnation is the present one, and has not fallen."""
        return self.epoch == epoch and self.state in UP

    def ended(self) -> asyncio.Future[None]:
        """Return what is done once the present incarnation is over."""
        if self._ended is None:
            self._ended = self.scheduler.loop.create_future()
        return self._ended

    def _tell_over(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None and not ended.done():
            ended.set_result(None)

    def own(self, resource: Cancellable) -> None:
        """Cancel it when the present incarnation ends."""
        if self._resources is None:
            self._resources = {}
        self._resources[resource] = None

    def disown(self, resource: Cancellable) -> None:
        if self._resources is not None:
            self._resources.pop(resource, None)

    def hold(self, thing: "Beside | Cell") -> None:
        """Keep the incarnation from being over until `thing` is released."""
        if self._holds is None:
            self._holds = {}
        self._holds[thing] = None

    def release(self, thing: "Beside | Cell") -> None:
        if self._holds is None or thing not in self._holds:
            return
        del self._holds[thing]
        if not self._holds:
            self._holds = None
            self._all_released()

    @abstractmethod
    def _all_released(self) -> None:
        """Be over, if only that was left to wait for."""

    def _cancel_resources(self) -> None:
        resources, self._resources = self._resources, None
        for resource in resources or ():
            resource.cancel()

    def _held_tasks(self) -> list[Beside]:
        return [held for held in self._holds or () if not isinstance(held, Holder)]
