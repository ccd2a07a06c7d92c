"""An actor's mail: a system lane that goes first and a bounded user lane.

A notice lies in the user lane as it is; what somebody waits for, and what is for one
incarnation only, lies in an Envelope.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from pykka.messages import _ActorStop


class Reply(Protocol):
    """The asker's end of an ask; the first word counts, later ones are dropped."""

    def done(self) -> bool: ...

    def resolve(self, value: Any) -> None: ...

    def reject(self, error: BaseException) -> None: ...


class Envelope:
    """A message on its way."""

    __slots__ = ("deadline", "epoch", "key", "message", "repeated", "reply")

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
        self.key: Hashable | None = None
        """What a newer notice with the same one replaces it by."""
        self.repeated = False

    @property
    def may_repeat(self) -> bool:
        """Whether the next incarnation gets it once more, if this one falls over it."""
        return not self.repeated and getattr(self.message, "idempotent", False)

    def is_late(self, monotonic: Callable[[], float], epoch: int) -> bool:
        """Whether nobody waits for the answer, or who it was for is gone."""
        if self.reply is None:
            return self.epoch is not None and self.epoch != epoch
        if self.reply.done():
            return True
        return self.deadline is not None and monotonic() >= self.deadline


Mail: TypeAlias = Any
"""An Envelope, or a notice without one."""


def sealed(mail: Mail) -> Envelope:
    """Return mail in its envelope."""
    return mail if mail.__class__ is Envelope else Envelope(mail)


def is_stop(envelope: Envelope) -> bool:
    """Whether this is pykka's request to stop; answered with whether it had to."""
    return isinstance(envelope.message, _ActorStop)


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


Conflate: TypeAlias = Callable[[Any], Hashable | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxSpec:
    """How much mail an actor keeps; a class attribute of the actor."""

    limit: int = 1_000
    overflow: Overflow = Overflow.REJECT
    conflate: Conflate | None = None
    """The key of a notice that a newer one with the same key replaces, in place."""


DEFAULT_MAILBOX = MailboxSpec()


class Mailbox:
    """Lanes exist only while they hold mail, so that an idle actor is small.

    The user lane is two lists: mail comes in at the end of one, and goes out from the
    end of the other, which is the first one turned round when it was empty.
    """

    __slots__ = ("_in", "_keys", "_out", "_waiters", "policy", "system")

    def __init__(self, policy: MailboxSpec) -> None:
        self.policy = policy
        self.system: deque[Envelope] | None = None
        self._in: list[Mail] | None = None
        self._out: list[Mail] | None = None
        self._keys: dict[Hashable, Envelope] | None = None
        self._waiters: deque[asyncio.Future[None]] | None = None

    @property
    def depth(self) -> int:
        return self.user_depth + (len(self.system) if self.system else 0)

    @property
    def user_depth(self) -> int:
        return len(self._in or ()) + len(self._out or ())

    @property
    def full(self) -> bool:
        return self.user_depth >= self.policy.limit

    def has_mail(self, *, system_only: bool) -> bool:
        if self.system is not None:
            return True
        return not system_only and (self._out is not None or self._in is not None)

    def keep_system(self, envelope: Envelope) -> None:
        if self.system is None:
            self.system = deque()
        self.system.append(envelope)

    def keep(self, mail: Mail) -> bool:
        """Keep it; False if there is no room."""
        policy, inward = self.policy, self._in
        if policy.conflate is not None:
            return self._keep_conflating(mail, policy.conflate)
        if inward is None:
            if self._out is not None and len(self._out) >= policy.limit:
                return False
            self._in = [mail]
            return True
        if len(inward) + (0 if self._out is None else len(self._out)) >= policy.limit:
            return False
        inward.append(mail)
        return True

    def _keep_conflating(self, mail: Mail, conflate: Conflate) -> bool:
        envelope, key = sealed(mail), None
        if envelope.reply is None and not is_stop(envelope):
            key = envelope.key = conflate(envelope.message)
        if self._keys is None:
            self._keys = {}
        waiting = None if key is None else self._keys.get(key)
        if waiting is not None:
            waiting.message = envelope.message
            return True
        if self.full:
            return False
        self.keep_beyond_limit(envelope)
        if key is not None:
            self._keys[key] = envelope
        return True

    def keep_beyond_limit(self, mail: Mail) -> None:
        """Keep it behind the rest of the user lane, whatever the bound."""
        if self._in is None:
            self._in = []
        self._in.append(mail)

    def keep_again(self, envelope: Envelope) -> None:
        """Keep what was in hand before all else of the user lane, once more."""
        envelope.repeated = True
        if self._out is None:
            self._out = []
        self._out.append(envelope)

    def take_system(self) -> Envelope | None:
        if self.system is None:
            return None
        envelope = self.system.popleft()
        if not self.system:
            self.system = None
        return envelope

    def take(self) -> Mail | None:
        """Take the first of the user lane, and let one in who waits for room."""
        out = self._out
        if out is None:
            out = self._in
            if out is None:
                return None
            out.reverse()
            self._out, self._in = out, None
        mail = out.pop()
        if not out:
            self._out = None
        if self._keys:
            self._forget_key(mail, self._keys)
        if self._waiters is not None:
            self.let_one_in()
        return mail

    def make_room(self) -> Envelope | None:
        """Take the oldest out if the policy says so; it is a dead letter."""
        if self.policy.overflow is not Overflow.DROP_OLDEST:
            return None
        return sealed(self.take())

    def _forget_key(self, mail: Mail, keys: dict[Hashable, Envelope]) -> None:
        if mail.__class__ is Envelope and keys.get(mail.key) is mail:
            del keys[mail.key]

    def peek(self) -> Mail | None:
        """Return the oldest of the user lane, and leave it there."""
        if self._out is not None:
            return self._out[-1]
        return None if self._in is None else self._in[0]

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

    def drain(self) -> list[Mail]:
        """Take everything, in order of age within each lane."""
        if self._waiters is None and not self.has_mail(system_only=False):
            return []
        mail = [*(self.system or ()), *reversed(self._out or ()), *(self._in or ())]
        self.system = self._in = self._out = self._keys = None
        while self._waiters:
            self.let_one_in()
        return mail
