"""Every error this package raises on purpose.

    FabricError
    ├── NotFoundError                 the thing named does not exist for this owner
    ├── ForbiddenError                this person may not do this at all
    │   └── SelfApprovalError
    ├── UnauthenticatedError          no credential, or one that is not good
    ├── PrunedError                   it was there, and is kept no longer
    ├── ConflictError                 the world moved on; read again, then retry
    │   ├── VersionConflictError
    │   │   └── VersionRequiredError
    │   ├── IllegalTransitionError
    │   ├── RunActiveError
    │   ├── HeldError
    │   ├── ApprovalStaleError
    │   ├── DuplicateKeyError
    │   ├── PlacementBlockedError
    │   ├── AlreadyRunningError
    │   └── AnswerRefusedError        evidence that answers no open challenge
    │       └── LateAnswerError
    ├── InvalidError                  the request or the configuration is wrong
    │   ├── MalformedError            it could not even be read
    │   ├── UnknownPlaybookError
    │   └── ConfigError
    └── UnavailableError              a dependency is down; the same call may work later
        ├── UnsupportedError          this installation lacks a part; says which
        └── BusyError                 too much of this caller's is at work already

An actor that raises a FabricError stays alive and its caller gets the error.
Any other exception is a bug: the actor dies and its supervisor restarts it.
`code` is stable and becomes the problem type on the wire.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class FabricError(Exception):
    """Base of every deliberate error; `facts` are extra members of the answer."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts: Mapping[str, object] = facts


class NotFoundError(FabricError):
    """The thing named does not exist, or this caller may not know that it does."""

    code = "not-found"


class UnauthenticatedError(FabricError):
    """No credential was given, or it does not hold."""

    code = "unauthenticated"


class ForbiddenError(FabricError):
    """The caller is known and may not do this."""

    code = "forbidden"


class SelfApprovalError(ForbiddenError):
    """Whoever requested a run may not approve it."""

    code = "self-approval"


class PrunedError(FabricError):
    """What was asked for is older than what is kept."""

    code = "pruned"


class ConflictError(FabricError):
    """The state does not allow this now; read again and decide afresh."""

    code = "conflict"


class NotWantedError(ConflictError):
    """Somebody has ordered otherwise meanwhile: there is nothing to do any more."""


class VersionConflictError(ConflictError):
    """A write was based on a version that is no longer the newest."""

    code = "version-conflict"

    def __init__(
        self, message: str, *, expected: int | None, current: int, **facts: object
    ) -> None:
        super().__init__(
            message, expected_version=expected, current_version=current, **facts
        )


class VersionRequiredError(VersionConflictError):
    """A write named no version to be based on."""

    code = "version-required"


class IllegalTransitionError(ConflictError):
    """The lifecycle has no such move."""

    code = "illegal-transition"


class RunActiveError(ConflictError):
    """The instance already has a run that is pending or running."""

    code = "run-active"


class HeldError(ConflictError):
    """Somebody, or the breaker, holds the instance from this."""

    code = "held"


class ApprovalStaleError(ConflictError):
    """What was approved is not what would run."""

    code = "approval-stale"


class DuplicateKeyError(ConflictError):
    """The name is taken."""

    code = "duplicate-key"


class PlacementBlockedError(ConflictError):
    """The gate refused a launch; `notes` says why, in the contract's order."""

    code = "placement-blocked"

    def __init__(self, message: str, *, notes: Sequence[str]) -> None:
        super().__init__(message, notes=list(notes))


class AlreadyRunningError(ConflictError):
    """The server's VM runs already."""

    code = "already-running"


class AnswerRefusedError(ConflictError):
    """Evidence was pushed that answers no challenge which waits for it."""

    code = "answer-refused"


class LateAnswerError(AnswerRefusedError):
    """The challenge was ours, and is over: a new one is there to be fetched."""

    code = "answer-late"


class InvalidError(FabricError):
    """What was sent, or configured, has the wrong shape or value."""

    code = "invalid"


class MalformedError(InvalidError):
    """What was sent can't be read at all, or asks in unknown words."""

    code = "malformed"


class UnknownPlaybookError(InvalidError):
    """A run names a playbook that its owner doesn't have."""

    code = "unknown-playbook"


class ConfigError(InvalidError):
    """The environment holds values that can't be used; lists every fault."""

    code = "config"

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults), faults=list(faults))


class UnavailableError(FabricError):
    """Something this depends on is down; the same call may work later."""

    code = "unavailable"


class UnsupportedError(UnavailableError):
    """This installation lacks a part that was asked for; the text says which."""

    code = "unsupported"


class BusyError(UnavailableError):
    """Too much of what this caller asks for is at work already."""

    code = "busy"
