"""An actor's mail: a system lane that goes first and a bounded user lane.

A notice lies in the user lane as it is; what somebody waits for, and what is for one
incarnation only, lies in an Envelope.
"""

from collections import OrderedDict, deque
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

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"a mailbox for {self.limit} messages keeps none")


DEFAULT_MAILBOX = MailboxSpec()
UNKNOWN_MAILBOX = MailboxSpec(limit=50_000)
"""Of an actor that has not been constructed yet; whose class may have any policy."""


class Mailbox:
    """Lanes exist only while they hold mail, so that an idle actor is small.

    The user lane is two lists: mail comes in at the end of one, and goes out from the
    end of the other, which is the first one turned round when it was empty.
    """

    __slots__ = ("_in", "_keys", "_line", "_out", "policy", "system")

    def __init__(self, policy: MailboxSpec) -> None:
        self.policy = policy
        self.system: deque[Envelope] | None = None
        self._in: list[Mail] | None = None
        self._out: list[Mail] | None = None
        self._keys: dict[Hashable, Envelope] | None = None
        self._line: OrderedDict[Reply, Envelope] | None = None
        """Requests that wait for room, only while there is none."""

    @property
    def depth(self) -> int:
        return self.user_depth + (len(self.system) if self.system else 0)

    @property
    def user_depth(self) -> int:
        return len(self._in or ()) + len(self._out or ())

    @property
    def full(self) -> bool:
        return self.user_depth >= self.policy.limit

    @property
    def empty(self) -> bool:
        return self._in is None and self._out is None and self.system is None

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
        self._put_back(envelope)

    def _put_back(self, envelope: Envelope) -> None:
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
        """Take the first of the user lane, and let the first in line in."""
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
        if self._line is not None:
            self._let_in(self._line)
        return mail

    def make_room(self) -> Envelope | None:
        """Take the oldest out, but for stops, if the policy says so: a dead letter."""
        if self.policy.overflow is not Overflow.DROP_OLDEST:
            return None
        stops: list[Envelope] = []
        while (mail := self.take()) is not None and is_stop(sealed(mail)):
            stops.append(sealed(mail))
        for stop in reversed(stops):
            self._put_back(stop)
        return None if mail is None else sealed(mail)

    def _forget_key(self, mail: Mail, keys: dict[Hashable, Envelope]) -> None:
        if mail.__class__ is Envelope and keys.get(mail.key) is mail:
            del keys[mail.key]

    def peek(self) -> Mail | None:
        """Return the oldest of the user lane, and leave it there."""
        if self._out is not None:
            return self._out[-1]
        return None if self._in is None else self._in[0]

    def line_up(self, envelope: Envelope, reply: Reply) -> None:
        """Have a request wait for room, behind those that do."""
        if self._line is None:
            self._line = OrderedDict()
        self._line[reply] = envelope

    def leave_line(self, reply: Reply) -> None:
        """Wait no longer, if it does."""
        if self._line is not None:
            self._line.pop(reply, None)
            self._line = self._line or None

    def _let_in(self, line: OrderedDict[Reply, Envelope]) -> None:
        while line and not self.full:
            self.keep_beyond_limit(line.popitem(last=False)[1])
        self._line = line or None

    def take_all(self) -> list[Mail]:
        """Take the user lane, and who waits for room in it, in order of age."""
        line = () if self._line is None else self._line.values()
        mail = [*reversed(self._out or ()), *(self._in or ()), *line]
        self._in = self._out = self._keys = self._line = None
        return mail

    def drain(self) -> list[Mail]:
        """Take everything, in order of age within each lane."""
        if self.empty:
            return []
        mail = [*(self.system or ()), *self.take_all()]
        self.system = None
        return mail
