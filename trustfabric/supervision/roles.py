"""What a cell needs of the actor inside it, and of the supervisor above it."""

from typing import Any, ClassVar, Protocol, TypeVar

from trustfabric.supervision.exits import Exit
from trustfabric.supervision.mailbox import MailboxSpec

C_contra = TypeVar("C_contra", contravariant=True)


class Behaviour(Protocol):
    """An actor, as its cell runs it."""

    mailbox: ClassVar[MailboxSpec]

    def handle(self, message: Any) -> Any: ...

    def receive(self, message: Any) -> Any:
        """Handle what is neither a Request nor a Notice."""
        ...

    def on_start(self) -> Any: ...

    def on_stop(self) -> Any: ...

    def interrupt_start(self, exit_: Exit) -> None:
        """End, as asked to while `on_start` is under way."""
        ...

    def on_death(self, exit_: Exit) -> None:
        """Let go: the incarnation ends, whichever way. Never raises."""
        ...


class Parent(Protocol[C_contra]):
    """Who is told of a cell's ups and downs, at once and on the spot."""

    def child_up(self, cell: C_contra) -> None: ...

    def child_down(self, cell: C_contra, exit_: Exit) -> None: ...


class Cancellable(Protocol):
    """A timer, a watch or a request taken along: it ends with its incarnation."""

    def cancel(self) -> object: ...


class Beside(Cancellable, Protocol):
    """A task beside the mailbox: its incarnation waits for it to end."""

    @property
    def on_stack(self) -> bool: ...

    def close(self) -> bool:
        """Take its coroutine away; False if that lives on."""
        ...
