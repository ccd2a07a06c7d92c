"""Who is told, once, that an actor is gone for good."""

from collections.abc import Callable
from typing import TypeAlias

from trustfabric.supervision.exits import Exit

Notify: TypeAlias = Callable[[Exit], None]


class Watchers:
    """Who has to be told of one actor."""

    __slots__ = ("_notify",)

    def __init__(self) -> None:
        self._notify: dict[object, Notify] = {}

    def add(self, key: object, notify: Notify) -> None:
        self._notify[key] = notify

    def remove(self, key: object) -> None:
        self._notify.pop(key, None)

    def tell(self, exit_: Exit) -> None:
        told, self._notify = self._notify, {}
        for notify in told.values():
            notify(exit_)
