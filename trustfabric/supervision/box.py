"""What of an actor outlives its incarnations: its path, its mail, its watchers."""

from abc import ABC, abstractmethod
from typing import Any

from trustfabric.supervision import exits, undelivered
from trustfabric.supervision.exits import Exit
from trustfabric.supervision.mailbox import (
    UNKNOWN_MAILBOX,
    Envelope,
    Mail,
    Mailbox,
    MailboxSpec,
    Overflow,
    Reply,
    is_stop,
    sealed,
)
from trustfabric.supervision.roles import Parent
from trustfabric.supervision.scheduler import Scheduler
from trustfabric.supervision.states import (
    ALIVE,
    DEAD,
    NEW,
    NOBODY,
    RUNNING,
    STARTING,
    WAITING,
    State,
)
from trustfabric.supervision.watchers import Watchers


class Box(Mailbox, ABC):
    __slots__ = (
        "address", "busy", "epoch", "in_ready", "parent", "prefix",
        "scheduler", "state", "suspended", "watchers",
    )  # fmt: skip

    def __init__(self, address: Any) -> None:
        Mailbox.__init__(self, UNKNOWN_MAILBOX)
        self.address = address
        self.prefix = ""
        """The path of who is above, and a slash; shared among siblings."""
        self.scheduler: Scheduler = None  # type: ignore[assignment]  # until attached
        self.parent: Parent[Any] = None  # type: ignore[assignment]  # until attached
        self.state: State = NEW
        self.epoch = 0
        """How many incarnations there have been."""
        self.suspended = False
        self.busy = False
        """A piece of the actor's code is under way."""
        self.in_ready = False
        """Its turn is coming, or is now."""
        self.watchers: Watchers | None = None

    @abstractmethod
    def kill(self, exit_: Exit, grace_s: float | None = None) -> bool: ...

    @abstractmethod
    def step(self, budget: int) -> bool: ...

    @property
    def path(self) -> str:
        return f"{self.prefix}{self.address.name}"

    @property
    def may_speak(self) -> bool:
        """Whether the present incarnation still takes mail of its own."""
        return self.state is RUNNING or self.state is STARTING

    def announce(self, scheduler: Scheduler, prefix: str) -> None:
        """Join a tree; from here on mail is kept for the first incarnation."""
        if self.state is not NEW and self.state in ALIVE:
            raise RuntimeError(f"{self.path} runs already")
        self.scheduler, self.prefix = scheduler, prefix
        self.state = WAITING

    def attach(self, scheduler: Scheduler, parent: Parent[Any], prefix: str) -> None:
        if self.state is not NEW and self.state in ALIVE:
            raise RuntimeError(f"{self.path} runs already")
        self.scheduler, self.prefix = scheduler, prefix
        self.state = WAITING
        self.parent = parent

    def bury(self, exit_: Exit) -> None:
        """Never mind a restart: answer the mail, tell the watchers."""
        self.state = State.DEAD
        self.system = None  # of its own timers and tasks: nobody sent it
        for mail in self.drain():
            reason, letters = f"ended: {exit_.kind}", self.scheduler.dead_letters
            undelivered.strand(sealed(mail), self.path, reason, letters)
        watchers, self.watchers = self.watchers, None
        if watchers is not None:
            watchers.tell(exit_)

    # --- mail -----------------------------------------------------------------

    def adopt(self, policy: MailboxSpec) -> None:
        """Take on the actor's policy, also for mail that came before it was known."""
        if policy is self.policy:
            return
        self.policy = policy
        for mail in self.take_all():
            if mail.__class__ is Envelope and mail.reply is not None:
                self.put_in_line(mail, mail.reply)
            else:
                self.put(mail)

    def put_in_line(self, envelope: Envelope, reply: Reply) -> None:
        """As `put`, of a request; without room it waits where the policy says so."""
        if self.policy.overflow is not Overflow.WAIT or not self.full:
            self.put(envelope)
        else:
            self.line_up(envelope, reply)

    def put(self, mail: Mail) -> bool:
        """Take user mail in; False if it bounced. Never raises."""
        if self.state is not RUNNING and self.state in NOBODY:
            self.refuse(mail, "not running")
            return False
        try:
            kept = self.keep(mail) or self._put_into_full(sealed(mail))
        except BaseException as error:  # noqa: BLE001  # of the receiver's conflate
            self.kill(exits.crashed(error, "conflate"))
            self._bounce(sealed(mail))
            return False
        if not self.in_ready:
            self.wake()
            return kept and self.state is not DEAD  # by then, if the loop was closed
        return kept

    def _put_into_full(self, envelope: Envelope) -> bool:
        if is_stop(envelope):
            self.keep_beyond_limit(envelope)
            return True
        while (oldest := self.make_room()) is not None:
            self._bounce(oldest)
            if self.keep(envelope):
                return True
        self._bounce(envelope)
        return False

    def _bounce(self, envelope: Envelope) -> None:
        limit, letters = self.policy.limit, self.scheduler.dead_letters
        undelivered.bounce(envelope, self.path, limit, letters)

    def refuse(self, mail: Mail, reason: str) -> None:
        letters = self.scheduler.dead_letters
        undelivered.refuse(sealed(mail), self.path, reason, letters)

    def put_system(self, envelope: Envelope) -> None:
        self.keep_system(envelope)
        self.wake()

    def wake(self) -> None:
        if not self.in_ready and not self.busy and self.state is RUNNING:
            self.in_ready = True
            self.scheduler.enqueue(self)
