"""What a supervisor starts, and when it starts it again: all of it data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any, Generic, TypeAlias, TypeVar

from trustfabric.supervision.address import Address, DynamicAddress
from trustfabric.supervision.exits import Exit

A = TypeVar("A")


class Restart(StrEnum):
    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """After a crash or a kill, not after a normal end."""
    TEMPORARY = "temporary"
    """Never."""

    def after(self, exit_: Exit) -> bool:
        return self is Restart.PERMANENT or (
            self is Restart.TRANSIENT and exit_.abnormal
        )


class Strategy(StrEnum):
    """Who is restarted when one child falls."""

    ONE_FOR_ONE = "one_for_one"
    """That one."""
    ONE_FOR_ALL = "one_for_all"
    """All: they are stopped in reverse order, then started in order."""
    REST_FOR_ONE = "rest_for_one"
    """That one and those started after it."""


class AutoShutdown(StrEnum):
    """Whether a supervisor ends when its significant children have."""

    NEVER = "never"
    ANY = "any"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits between restarts; the first after a quiet time is at once."""

    min_s: float = 0.1
    max_s: float = 30.0
    factor: float = 2.0
    jitter: float = 0.2
    """The share of the wait that chance may add."""
    reset_after_s: float = 60.0
    """Up for so long: the next fall counts as the first again."""

    def __post_init__(self) -> None:
        _check_not_negative(min_s=self.min_s, max_s=self.max_s, jitter=self.jitter)
        if self.factor < 1.0:
            raise ValueError(f"a wait that shrinks by {self.factor} is no backoff")

    def delay_s(self, attempt: int, random: Random) -> float:
        """Return the wait before restart number `attempt`, the first being 0."""
        if attempt == 0:
            return 0.0
        try:
            wait = min(self.max_s, self.min_s * self.factor ** (attempt - 1))
        except OverflowError:  # of a power beyond all bounds
            wait = self.max_s if self.min_s else 0.0
        return wait * (1.0 + self.jitter * random.random())


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a supervisor has agreed on with a child, whatever is started."""

    restart: Restart
    shutdown_s: float
    backoff: Backoff
    significant: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec(Generic[A]):
    """One worker; named, or at an address that others hold."""

    start: Callable[[], A]
    """Constructs the actor, anew for each incarnation."""
    name: str = ""
    address: Address[A] | None = None
    restart: Restart = Restart.PERMANENT
    shutdown_s: float = 5.0
    """For the message in hand and `on_stop`; then, or with 0 at once, by force."""
    backoff: Backoff = field(default_factory=Backoff)
    significant: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name, self.address)
        _check_not_negative(shutdown_s=self.shutdown_s)
        if self.significant and self.restart is Restart.PERMANENT:
            raise ValueError(f"{self.label}: a permanent child cannot be significant")

    @property
    def label(self) -> str:
        return self.address.name if self.address is not None else self.name

    @property
    def terms(self) -> Terms:
        return Terms(
            restart=self.restart,
            shutdown_s=self.shutdown_s,
            backoff=self.backoff,
            significant=self.significant,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicSpec(Generic[A]):
    """A supervisor of keyed children that come and go, all alike."""

    name: str = ""
    address: DynamicAddress[A] | None = None
    restart: Restart = Restart.TRANSIENT
    backoff: Backoff = field(default_factory=Backoff)
    shutdown_s: float = 5.0
    max_restarts: int = 10
    """Of one child within `within_s`; one too many and that child is given up."""
    max_restarts_total: int = 100_000
    """Of all children together; one too many and this supervisor gives up."""
    within_s: float = 60.0

    def __post_init__(self) -> None:
        _check_name(self.name, self.address)
        _check_not_negative(
            shutdown_s=self.shutdown_s,
            max_restarts=self.max_restarts,
            within_s=self.within_s,
        )

    @property
    def label(self) -> str:
        return self.address.name if self.address is not None else self.name

    @property
    def terms(self) -> Terms:
        """Of the supervisor itself; it waits a little longer than it is patient."""
        return Terms(
            restart=Restart.PERMANENT,
            shutdown_s=self.shutdown_s + 1.0,
            backoff=self.backoff,
        )

    @property
    def child_terms(self) -> Terms:
        return Terms(
            restart=self.restart, shutdown_s=self.shutdown_s, backoff=self.backoff
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSpec:
    """Children started in order, stopped in reverse."""

    name: str
    children: tuple["AnySpec", ...] = ()
    strategy: Strategy = Strategy.ONE_FOR_ONE
    max_restarts: int = 10
    """Within `within_s`; one too many and this supervisor gives up, to its parent."""
    within_s: float = 60.0
    restart: Restart = Restart.PERMANENT
    backoff: Backoff = field(default_factory=Backoff)
    shutdown_s: float = math.inf
    """Its children have their own bounds."""
    significant: bool = False
    auto_shutdown: AutoShutdown = AutoShutdown.NEVER

    def __post_init__(self) -> None:
        _check_name(self.name, None)
        _check_not_negative(max_restarts=self.max_restarts, within_s=self.within_s)
        labels = [child.label for child in self.children]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self.name}: two children with one name: {labels}")

    @property
    def label(self) -> str:
        return self.name

    @property
    def terms(self) -> Terms:
        return Terms(
            restart=self.restart,
            shutdown_s=self.shutdown_s,
            backoff=self.backoff,
            significant=self.significant,
        )


AnySpec: TypeAlias = ChildSpec[Any] | SupervisorSpec | DynamicSpec[Any]


def _check_name(name: str, address: Any) -> None:
    if bool(name) == (address is not None):
        raise ValueError("a spec has either a name or an address")
    if "/" in name:
        raise ValueError(f"{name}: a name has no slash")


def _check_not_negative(**figures: float) -> None:
    for figure, value in figures.items():
        if value < 0:
            raise ValueError(f"{figure} is negative: {value}")
