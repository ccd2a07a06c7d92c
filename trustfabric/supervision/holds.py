"""What an incarnation waits for before it is over: its tasks, its children, itself."""

import asyncio


class Holds:
    """A set that exists only while there is something in it."""

    __slots__ = ("_things",)

    def __init__(self) -> None:
        self._things: set[object] | None = None

    def add(self, thing: object) -> None:
        if self._things is None:
            self._things = set()
        self._things.add(thing)

    def remove(self, thing: object) -> bool:
        """Return whether this was the last."""
        if self._things is None or thing not in self._things:
            return False
        self._things.discard(thing)
        if self._things:
            return False
        self._things = None
        return True

    def tasks(self) -> list[asyncio.Task[object]]:
        return [held for held in self._things or () if isinstance(held, asyncio.Task)]
