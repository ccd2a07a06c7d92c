"""Why runs fail, and which of the failures are worth another try (contract §3)."""

from collections.abc import Mapping
from enum import StrEnum

from trustfabric.domain.trust import Tag


class FailureReason(StrEnum):
    """What ended an execution, or kept it from starting."""

    EXECUTION_FAILURE = "execution-failure"
    """The program ran and said no."""
    POLICY_DENIED = "policy-denied"
    PLAYBOOK_BUG = "playbook-bug"
    """What the playbook asks for can't be run at all."""
    TRANSIENT_INFRASTRUCTURE = "transient-infrastructure"
    """We lost it: the runtime or the run's actor died meanwhile."""
    EXECUTOR_UNAVAILABLE = "executor-unavailable"
    DEPENDENCY_UNAVAILABLE = "dependency-unavailable"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    APPROVAL_EXPIRED = "approval-expired"
    QUEUE_EXPIRED = "queue-expired"


class FailureClass(StrEnum):
    """What to do about a failure: wait for a person, try again, or nothing."""

    STRUCTURAL = "structural"
    TRANSIENT = "transient"
    CANCELLED = "cancelled"


_R = FailureReason

_CLASSES: Mapping[FailureReason, FailureClass] = {
    _R.EXECUTION_FAILURE: FailureClass.STRUCTURAL,
    _R.POLICY_DENIED: FailureClass.STRUCTURAL,
    _R.PLAYBOOK_BUG: FailureClass.STRUCTURAL,
    _R.TRANSIENT_INFRASTRUCTURE: FailureClass.TRANSIENT,
    _R.EXECUTOR_UNAVAILABLE: FailureClass.TRANSIENT,
    _R.DEPENDENCY_UNAVAILABLE: FailureClass.TRANSIENT,
    _R.TIMEOUT: FailureClass.TRANSIENT,
    _R.CANCELLED: FailureClass.CANCELLED,
    _R.APPROVAL_EXPIRED: FailureClass.CANCELLED,
    _R.QUEUE_EXPIRED: FailureClass.CANCELLED,
}

CALLED_OFF = sorted(
    each for each, kind in _CLASSES.items() if kind is FailureClass.CANCELLED
)
"""Of these, an earlier failure is as true as before."""

_TAGS: Mapping[FailureReason, Tag] = {
    _R.EXECUTION_FAILURE: Tag.AUTOMATION_FAILED,
    _R.POLICY_DENIED: Tag.POLICY_DENIED,
    _R.PLAYBOOK_BUG: Tag.PLAYBOOK_BUG,
    _R.TRANSIENT_INFRASTRUCTURE: Tag.TRANSIENT_FAILURE,
    _R.EXECUTOR_UNAVAILABLE: Tag.EXECUTOR_UNAVAILABLE,
    _R.DEPENDENCY_UNAVAILABLE: Tag.TRANSIENT_FAILURE,
    _R.TIMEOUT: Tag.TRANSIENT_FAILURE,
    _R.CANCELLED: Tag.AUTOMATION_CANCELLED,
    _R.APPROVAL_EXPIRED: Tag.AUTOMATION_CANCELLED,
    _R.QUEUE_EXPIRED: Tag.AUTOMATION_CANCELLED,
}


def classification_of(reason: str) -> FailureClass:
    """Return the class of a failure; a word that nobody knows is structural."""
    try:
        return _CLASSES[FailureReason(reason)]
    except ValueError:
        return FailureClass.STRUCTURAL


def tag_of(reason: FailureReason) -> Tag:
    """Return the tag that a run which failed so leaves on its instance."""
    return _TAGS[reason]
