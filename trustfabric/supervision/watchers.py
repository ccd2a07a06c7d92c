"""Who is told, once, that an actor is gone for good."""

from collections.abc import Callable
from typing import TypeAlias

from trustfabric.supervision.exits import Exit

Notify: TypeAlias = Callable[[Exit], None]


class Watchers:
    """A table that exists only while there is somebody in it."""

    __slots__ = ("_notify",)

    def __init__(self) -> None:
        self._notify: dict[object, Notify] | None = None

    def add(self, key: object, notify: Notify) -> None:
        if self._notify is None:
            self._notify = {}
        self._notify[key] = notify

    def remove(self, key: object) -> None:
        if self._notify is not None:
            self._notify.pop(key, None)

    def tell(self, exit_: Exit) -> None:
        told, self._notify = self._notify, None
        for notify in (told or {}).values():
            notify(exit_)
