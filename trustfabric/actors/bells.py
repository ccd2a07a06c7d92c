"""Bells that agents wait at until their instance is challenged."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from trustfabric.domain.ids import InstanceId
from trustfabric.errors import BusyError

MOST = 4
"""Who may wait for one instance at once."""


class Bell:
    """Rings once: for a challenge, or because whoever listens has to go."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def close(self) -> None:
        """Ring it; fine when it has rung."""
        self._rung.set()

    async def wait(self, within_s: float) -> None:
        """Return when it rings, or the time is up."""
        try:
            async with asyncio.timeout(within_s):
                await self._rung.wait()
        except TimeoutError:
            return


class Bells:
    """One for each agent that waits; rung by the instance's name plate."""

    def __init__(self) -> None:
        self._hung: dict[InstanceId, set[Bell]] = {}

    @contextmanager
    def hung(self, instance_id: InstanceId) -> Iterator[Bell]:
        """Hang a bell while the block lasts. BusyError where too many hang already."""
        here = self._hung.setdefault(instance_id, set())
        if len(here) >= MOST:
            raise BusyError(f"{MOST} agents wait for this instance already")
        bell = Bell()
        here.add(bell)
        try:
            yield bell
        finally:
            here.discard(bell)
            if not here:
                self._hung.pop(instance_id, None)

    def ring(self, instance_id: InstanceId) -> None:
        for bell in self._hung.get(instance_id, ()):
            bell.close()
