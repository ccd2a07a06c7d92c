"""An actor's mail: a system lane that goes first and a bounded user lane."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class Reply(Protocol):
    """The asker's end of an ask; the first word counts, later ones are dropped."""

    def done(self) -> bool: ...

    def resolve(self, value: Any) -> None: ...

    def reject(self, error: BaseException) -> None: ...


class Envelope:
    """A message on its way."""

    __slots__ = ("deadline", "epoch", "message", "reply")

    def __init__(
        self,
        message: Any,
        reply: Reply | None = None,
        deadline: float | None = None,
        epoch: int | None = None,
    ) -> None:
        self.message = message
        self.reply = reply
        self.deadline = deadline
        self.epoch = epoch
        """The one incarnation it is for, if it is of that one's timer or task."""

    def is_late(self, monotonic: Callable[[], float], epoch: int) -> bool:
        """Whether nobody waits for the answer, or who it was for is gone."""
        if self.reply is None:
            return self.epoch is not None and self.epoch != epoch
        if self.reply.done():
            return True
        return self.deadline is not None and monotonic() >= self.deadline


class Overflow(StrEnum):
    """What happens to mail for a full mailbox.

    A notice that finds no room is a dead letter; these say who makes room.
    """

    REJECT = "reject"
    """The asker gets MailboxFullError."""
    WAIT = "wait"
    """An asker on the loop waits for room, first come first served."""
    DROP_OLDEST = "drop_oldest"
    """The oldest mail makes room: a dead letter, its asker is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxSpec:
    """How much mail an actor keeps; a class attribute of the actor."""

    limit: int = 1_000
    overflow: Overflow = Overflow.REJECT
    conflate: Callable[[Any], Hashable | None] | None = None
    """The key of a notice that a newer one with the same key replaces, in place."""


DEFAULT_MAILBOX = MailboxSpec()


class Mailbox:
    """Lanes exist only while they hold mail, so that an idle actor is small."""

    __slots__ = ("_keys", "_system", "_user", "_waiters", "spec")

    def __init__(self, spec: MailboxSpec) -> None:
        self.spec = spec
        self._system: deque[Envelope] | None = None
        self._user: deque[Envelope] | None = None
        self._keys: dict[Hashable, Envelope] | None = None
        self._waiters: deque[asyncio.Future[None]] | None = None

    def __len__(self) -> int:
        return self.user_depth + (len(self._system) if self._system else 0)

    @property
    def user_depth(self) -> int:
        return len(self._user) if self._user else 0

    @property
    def full(self) -> bool:
        return self._user is not None and len(self._user) >= self.spec.limit

    def has_mail(self, *, system_only: bool) -> bool:
        return bool(self._system) or (not system_only and bool(self._user))

    def put_system(self, envelope: Envelope) -> None:
        if self._system is None:
            self._system = deque()
        self._system.append(envelope)

    def put(self, envelope: Envelope) -> Envelope | None:
        """Keep it; return what found no room: this one, or an older one instead."""
        if self.spec.conflate is None:
            return self._append(envelope)
        key = self._key(envelope)
        if key is None:
            return self._append(envelope)
        if self._keys is None:
            self._keys = {}
        waiting = self._keys.get(key)
        if waiting is not None:
            waiting.message = envelope.message
            return None
        bounced = self._append(envelope)
        if bounced is not envelope:
            self._keys[key] = envelope
        return bounced

    def put_beyond_limit(self, envelope: Envelope) -> None:
        """Keep it behind the rest of the user lane, whatever the bound."""
        if self._user is None:
            self._user = deque()
        self._user.append(envelope)

    def _key(self, envelope: Envelope) -> Hashable | None:
        conflate = self.spec.conflate
        if conflate is None or envelope.reply is not None:
            return None
        return conflate(envelope.message)

    def _append(self, envelope: Envelope) -> Envelope | None:
        user = self._user
        if user is None:
            user = self._user = deque()
        bounced = None
        if len(user) >= self.spec.limit:
            if self.spec.overflow is not Overflow.DROP_OLDEST:
                return envelope
            bounced = user.popleft()
            self._forget_key(bounced)
        user.append(envelope)
        return bounced

    def take(self, *, system_only: bool) -> Envelope | None:
        if self._system is not None:
            envelope = self._system.popleft()
            if not self._system:
                self._system = None
            return envelope
        return None if system_only else self.take_oldest()

    def take_oldest(self) -> Envelope | None:
        """Take the first of the user lane, and let one in who waits for room."""
        user = self._user
        if user is None:
            return None
        envelope = user.popleft()
        if not user:
            self._user = None
        self._forget_key(envelope)
        if self._waiters is not None:
            self.let_one_in()
        return envelope

    def _forget_key(self, envelope: Envelope) -> None:
        if self._keys:
            key = self._key(envelope)
            if key is not None and self._keys.get(key) is envelope:
                del self._keys[key]

    def peek(self) -> Envelope | None:
        """Return the oldest of the user lane, and leave it there."""
        return self._user[0] if self._user else None

    @property
    def must_wait(self) -> bool:
        """Whether an asker has to queue for room, behind those who do already."""
        return self.full or bool(self._waiters)

    def wait_for_room(self, future: asyncio.Future[None]) -> None:
        if self._waiters is None:
            self._waiters = deque()
        self._waiters.append(future)

    def let_one_in(self) -> None:
        """Wake the first who waits, if there is room; it looks again for itself."""
        while self._waiters and not self.full:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if not self._waiters:
            self._waiters = None

    def drain(self) -> list[Envelope]:
        """Take everything, in order of age within each lane."""
        mail = [*(self._system or ()), *(self._user or ())]
        self._system = self._user = self._keys = None
        while self._waiters:
            self.let_one_in()
        return mail
