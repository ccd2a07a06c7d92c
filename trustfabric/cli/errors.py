"""How a command fails: what the host refused, or that it could not be asked."""

from collections.abc import Mapping
from typing import Any, ClassVar

from trustfabric.errors import FabricError, UnavailableError


class RefusedError(FabricError):
    """The host answered, and the answer is no."""

    def __init__(
        self, status: int, problem: Mapping[str, Any], *, without_token: bool = False
    ) -> None:
        detail = problem.get("detail") or problem.get("error") or problem.get("title")
        super().__init__(str(detail or f"HTTP {status}"), **problem)
        self.status = status
        self.without_token = without_token
        """The caller isn't known because it never said who it is."""
        self.slug = str(problem.get("type") or "about:blank").rsplit("/", 1)[-1]
        """The problem type's last word: `version-conflict`."""


class UnreachableError(UnavailableError):
    """No answer came: nothing listens there, or it fell silent."""

    code: ClassVar[str] = "unreachable"


class BrokenAnswerError(FabricError):
    """The host answered with something that is not this contract."""

    code: ClassVar[str] = "broken-answer"
