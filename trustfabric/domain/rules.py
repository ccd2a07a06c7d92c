"""What a playbook's metadata tells us, beside what it tells its executor."""

from collections.abc import Mapping
from typing import Any

from trustfabric.domain.parameters import check_parameters
from trustfabric.errors import InvalidError

APPROVALS_MAX = 10


def check_rules(metadata: Mapping[str, Any], *, approval_required: bool) -> None:
    """Raise InvalidError, naming the field, where the rules make no sense."""
    check_parameters(metadata.get("parameters"))
    is_observe_only(metadata)
    if "approvals_required" in metadata and not approval_required:
        raise InvalidError(
            "metadata.approvals_required: needs approval_required to be true"
        )
    approvals_required(metadata)


def approvals_required(metadata: Mapping[str, Any]) -> int:
    """Return how many people have to approve, where approval is required at all."""
    count = metadata.get("approvals_required", 1)
    if not isinstance(count, int) or isinstance(count, bool):
        raise InvalidError("metadata.approvals_required: not a whole number")
    if not 1 <= count <= APPROVALS_MAX:
        raise InvalidError(
            f"metadata.approvals_required: not within 1 … {APPROVALS_MAX}"
        )
    return count


def is_observe_only(metadata: Mapping[str, Any]) -> bool:
    """Whether a run only tells what it would have done."""
    told = metadata.get("observe_only", False)
    if not isinstance(told, bool):
        raise InvalidError("metadata.observe_only: neither true nor false")
    return told
