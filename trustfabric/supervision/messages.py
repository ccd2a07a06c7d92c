"""Messages: who may get one, and what comes back."""

from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

A_contra = TypeVar("A_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Request(Generic[A_contra, R_co]):
    """Base of messages that an actor of type A answers with an R."""

    idempotent: ClassVar[bool] = False
    """Whether the next incarnation gets it once more, if this one falls over it."""


@dataclass(frozen=True, slots=True)
class Notice(Generic[A_contra]):
    """Base of messages to an actor of type A that nobody answers."""

    idempotent: ClassVar[bool] = False
    """Whether the next incarnation gets it once more, if this one falls over it."""


TYPED = (Notice, Request)
