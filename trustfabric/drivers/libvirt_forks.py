"""Connections that a fork would share with us.

A child that speaks over one hangs, and breaks it for its parent: both would read the
answers off one socket. Forks of others' code (a pseudo-terminal, a process pool) can't
be forbidden, so in the child every connection is taken out of its object's hands: its
calls fail at once, and its end closes nothing.
"""

import os
from typing import Any, Protocol
from weakref import WeakSet


class Heir(Protocol):
    """What holds connections, and lets them be in a child."""

    def disown(self) -> None: ...


_HEIRS: WeakSet[Any] = WeakSet()


def mind(heir: Heir) -> None:
    """Call its `disown` in every child that is forked while it lives."""
    _HEIRS.add(heir)


def cut(conn: Any) -> None:
    """Take libvirt's handle from a connection's object, without closing it."""
    conn._o = None  # noqa: SLF001 - libvirt-python closes it when its object goes


def _in_child() -> None:
    for heir in tuple(_HEIRS):
        heir.disown()


os.register_at_fork(after_in_child=_in_child)
