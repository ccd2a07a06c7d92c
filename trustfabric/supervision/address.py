"""An address: a name to send to, which outlives restarts."""

from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from threading import get_ident
from typing import Any, Generic, Literal, Protocol, TypeVar, cast, overload

import pykka
from pykka.messages import _ActorStop

from trustfabric.supervision import exits
from trustfabric.supervision.asking import Answer, begin_asking
from trustfabric.supervision.cell import NOT_FREE, Cell
from trustfabric.supervision.context import CALLER
from trustfabric.supervision.errors import (
    ActorDeadError,
    AskTimeoutError,
    WouldDeadlockError,
)
from trustfabric.supervision.future import LoopReply, ThreadFuture
from trustfabric.supervision.mailbox import Envelope, Mail
from trustfabric.supervision.messages import Notice, Request
from trustfabric.supervision.states import ALIVE, NOBODY, RUNNING, State

A = TypeVar("A")
R = TypeVar("R")


class Address(pykka.ActorRef[Any], Generic[A]):
    """pykka's ActorRef of an actor on the loop.

    Typed requests and notices go by the signatures here; other messages by those of
    `pykka.ActorRef`, which is what `Actor.start` returns.
    """

    __slots__ = ("cell", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.cell = Cell(self)

    @property
    def path(self) -> str:
        """The full path, once placed in a tree."""
        return self.cell.path

    @property
    def state(self) -> State:
        return self.cell.state

    # --- typed messages -------------------------------------------------------

    @overload  # type: ignore[override]
    def ask(
        self, request: Request[A, R], *, within_s: float
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def ask(
        self,
        request: Request[A, R],
        *,
        block: Literal[True],
        timeout: float | None = None,
    ) -> R: ...

    @overload
    def ask(
        self,
        request: Request[A, R],
        *,
        block: Literal[False],
        timeout: float | None = None,
    ) -> pykka.Future[R]: ...

    def ask(
        self,
        request: Any,
        *,
        within_s: float | None = None,
        block: bool = True,
        timeout: float | None = None,
    ) -> Any:
        """Ask on the loop with `within_s`, from other threads with `block`.

        The deadline travels with the request: once it has passed, the actor skips it.

        AskTimeoutError: no answer in time. ActorCrashedError, ActorKilledError: the
        actor fell with the request in hand. ActorDeadError: not running and not coming
        back. MailboxFullError: by its mailbox's policy. Anything else raised is the
        actor's answer.
        """
        if within_s is not None:
            return self._ask_here(request, within_s)
        if block and self._is_here():
            raise WouldDeadlockError(f"{self}: await the answer on the loop's thread")
        future = self._ask_anywhere(request, timeout)
        return future.get(timeout=timeout) if block else future

    def tell(self, notice: Notice[A]) -> bool:  # type: ignore[override]
        """Send and go on; False if it became a dead letter at once.

        Never raises for a Notice. Any other message follows pykka: ActorDeadError.
        """
        cell = self.cell
        if cell.state is not RUNNING and cell.state in NOBODY:
            if not isinstance(notice, Notice):
                raise ActorDeadError(f"{self} not found")
            if cell.state is State.NEW:
                return False
        scheduler = cell.scheduler
        mail: Mail = notice
        if mail is None:  # what an empty mailbox gives
            mail = Envelope(None)
        if get_ident() == scheduler.thread:
            return cell.put(mail)
        return scheduler.post(cell, mail)

    def kill(self, reason: str = "killed") -> bool:
        """End the present incarnation, from any thread; False if none is up.

        From another thread it ends as soon as the loop gets to it; True is that it
        was up.
        """
        cell, exit_ = self.cell, exits.killed(reason)
        if cell.state not in ALIVE:
            return False
        scheduler, epoch = cell.scheduler, cell.epoch
        if scheduler.here:
            return cell.kill(exit_)
        return scheduler.call_from_thread(
            lambda: cell.kill(exit_) if cell.epoch == epoch else None
        )

    async def _ask_here(self, request: Any, within_s: float) -> Any:
        cell, asker = self.cell, CALLER.get()
        if cell.state is not RUNNING and cell.state in NOBODY:
            raise ActorDeadError(f"{self}: not running")
        scheduler = cell.scheduler
        if get_ident() != scheduler.thread or not scheduler.loop.is_running():
            raise RuntimeError(f"{self}: ask with `block` from outside its loop")
        answer = cell.hand_over(request, asker) if within_s > 0 else NOT_FREE
        if answer is NOT_FREE:
            reply = LoopReply(scheduler.loop)
            if asker is not None:
                begin_asking(asker, cell, reply)
        elif answer.__class__ is LoopReply:
            reply = answer
        else:
            return answer
        try:
            if reply.is_done:
                return reply.result()
            return await self._answer(request, reply, within_s, sent=answer is reply)
        finally:
            if asker is not None:
                asker.waits_no_more(reply)

    async def _answer(
        self, request: Any, reply: LoopReply, within_s: float, *, sent: bool
    ) -> Any:
        cell, clock = self.cell, self.cell.scheduler.clock
        deadline = clock.monotonic() + within_s
        timer = clock.call_at(
            deadline,
            lambda: reply.reject(AskTimeoutError(f"{self}: {within_s} s")),
        )
        try:
            if not sent:
                cell.put_in_line(Envelope(request, reply, deadline), reply)
            return await reply
        finally:
            reply.leave()
            timer.cancel()
            cell.leave_line(reply)

    def _ask_anywhere(self, message: Any, timeout: float | None) -> ThreadFuture[Any]:
        cell = self.cell
        future = Answer(cell)
        if cell.state is State.NEW:
            future.reject(ActorDeadError(f"{self} not found"))
            return future
        scheduler = cell.scheduler
        deadline = None if timeout is None else scheduler.clock.monotonic() + timeout
        envelope = Envelope(message, future, deadline)
        if scheduler.here:
            cell.put(envelope)
        else:
            scheduler.post(cell, envelope)
        return future

    def _is_here(self) -> bool:
        scheduler = self.cell.scheduler
        return (
            self.state is not State.NEW
            and scheduler.here
            and not scheduler.loop.is_closed()
        )

    # --- the rest of pykka's ActorRef -----------------------------------------

    def is_alive(self) -> bool:
        return self.cell.state in ALIVE or self.cell.state is State.WAITING

    def stop(self, *, block: bool = True, timeout: float | None = None) -> Any:
        """Stop this incarnation after the mail before; False if already dead."""
        if block and self._is_here():
            raise WouldDeadlockError(f"{self}: await stop(block=False) on the loop")
        if not self.is_alive():
            future: ThreadFuture[bool] = ThreadFuture()
            future.resolve(False)
        else:
            future = self._ask_anywhere(_ActorStop(), None)
        return future.get(timeout=timeout) if block else future

    @property
    def actor_class(self) -> type[Any]:  # type: ignore[override]
        actor = self._actor_weakref()
        return pykka.Actor if actor is None else type(actor)

    @property
    def actor_urn(self) -> str:  # type: ignore[override]
        return f"urn:actor:{self.path}"

    @property
    def actor_inbox(self) -> "Address[A]":  # type: ignore[override]
        return self

    @property
    def actor_stopped(self) -> "Address[A]":  # type: ignore[override]
        return self

    def is_set(self) -> bool:
        """As pykka's stopped event."""
        return not self.is_alive()

    def _actor_weakref(self) -> A | None:  # type: ignore[override]
        return cast("A | None", self.cell.actor)

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<Address {self.path} {self.state}>"


class Place:
    """A keyed child: what its supervisor's next incarnation starts again."""

    __slots__ = ("cell", "construct", "leaving")

    cell: Cell
    construct: Callable[[], Any]
    leaving: bool
    """It has been asked to end for good, and hasn't yet."""


class Keeper(Protocol):
    """What a DynamicAddress needs of the supervisor behind it."""

    def place(self, key: str, start: Callable[[], Any]) -> Address[Any]: ...

    def remove(self, key: str) -> Awaitable[None]: ...


class DynamicAddress(Generic[A]):
    """The name of a supervisor of keyed children, and the book of them.

    The book outlives the supervisor's restarts, so its children come back with it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.address: Address[Any] = Address(name)
        self.places: dict[str, Place] = {}

    @property
    def path(self) -> str:
        return self.address.path

    async def start_child(self, key: str, start: Callable[[], A]) -> Address[A]:
        """Start a child, or return the one that has the key.

        Returns once the child has its place: mail sent from now on is kept until it
        is up. One that is being stopped ends first. Raise ActorDeadError while this
        supervisor itself is down.
        """
        place = self.places.get(key)
        while place is not None and place.cell.address.is_alive():
            if not place.leaving:
                return cast("Address[A]", place.cell.address)
            await self._removal(key, place.cell)
            place = self.places.get(key)
        return self._keeper().place(key, start)

    async def stop_child(self, key: str) -> None:
        """Stop a child and wait for its end; nothing happens if there is none.

        AskCycleError where the child would wait for its own end, or for who waits
        for it. Nobody is stopped then.
        """
        place = self.places.get(key)
        if place is not None:
            await self._removal(key, place.cell)

    async def _removal(self, key: str, leaving: Cell) -> None:
        keeper, asker = self._keeper(), CALLER.get()
        if asker is None:
            await keeper.remove(key)
            return
        waits = LoopReply(leaving.scheduler.loop)
        begin_asking(asker, leaving, waits)
        try:
            await keeper.remove(key)
        finally:
            asker.waits_no_more(waits)

    def child(self, key: str) -> Address[A] | None:
        place = self.places.get(key)
        return None if place is None else place.cell.address

    def children(self) -> Mapping[str, Address[A]]:
        return {key: place.cell.address for key, place in self.places.items()}

    def cell(self, key: str) -> Cell | None:
        place = self.places.get(key)
        return None if place is None else place.cell

    def cells(self) -> Iterator[Cell]:
        return (place.cell for place in list(self.places.values()))

    def _keeper(self) -> Keeper:
        cell = self.address.cell
        keeper: Any = cell.actor
        if keeper is None or (cell.state is not RUNNING and not cell.may_speak):
            raise ActorDeadError(f"{self.path}: not running")
        return keeper  # type: ignore[no-any-return]
