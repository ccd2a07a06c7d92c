"""Errors as problem documents (RFC 9457): which status each kind has, in one table."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import web

from trustfabric.errors import (
    BusyError,
    ConflictError,
    FabricError,
    ForbiddenError,
    InvalidError,
    MalformedError,
    NotFoundError,
    PrunedError,
    UnauthenticatedError,
    UnavailableError,
    UnknownPlaybookError,
)
from trustfabric.http.reply import dump
from trustfabric.supervision import (
    ActorCrashedError,
    ActorDeadError,
    ActorKilledError,
    AskTimeoutError,
    MailboxFullError,
)

log = structlog.get_logger(__name__)

STATUS: Mapping[type[Exception], tuple[int, str]] = {
    UnauthenticatedError: (401, "The caller is not known"),
    ForbiddenError: (403, "Not allowed"),
    NotFoundError: (404, "Not found"),
    PrunedError: (410, "No longer kept"),
    ConflictError: (409, "The state does not allow this"),
    MalformedError: (400, "The request can't be read"),
    UnknownPlaybookError: (400, "Unknown playbook"),
    InvalidError: (422, "The request has a wrong shape"),
    BusyError: (429, "Too much at once"),
    UnavailableError: (503, "Something needed is not available"),
    MailboxFullError: (503, "Too busy"),
    ActorKilledError: (503, "Interrupted: the outcome is unknown"),
    ActorCrashedError: (503, "Interrupted: the outcome is unknown"),
    ActorDeadError: (503, "Restarting"),
    AskTimeoutError: (504, "No answer in time: the outcome is unknown"),
}
"""By class, the nearest in its MRO counts: status and title."""

_CODES: Mapping[type[Exception], str] = {
    MailboxFullError: "overloaded",
    ActorKilledError: "interrupted",
    ActorCrashedError: "interrupted",
    ActorDeadError: "unavailable",
    AskTimeoutError: "timeout",
}

_HTTP_CODES = {
    404: "not-found",
    405: "method-not-allowed",
    413: "too-large",
    415: "unsupported-media-type",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """What a problem document says."""

    status: int
    code: str
    """Its `type`: stable, for programs."""
    title: str
    detail: str
    facts: Mapping[str, Any] = field(default_factory=dict)


_BUG = Problem(500, "internal", "A fault of ours", "see the log")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into its problem document."""
    try:
        return await handler(request)
    except tuple(STATUS) as error:
        return _known(request, error)
    except web.HTTPException as error:
        return _framework(request, error)
    except ConnectionError:
        raise
    except Exception:
        # The one place where a bug of ours meets the outside: it is logged whole
        # and told as nothing.
        log.exception("http.bug", method=request.method, path=request.path)
        return _answer(request, _BUG, {})


def _known(request: web.Request, error: Exception) -> web.Response:
    status, title = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    facts = dict(error.facts) if isinstance(error, FabricError) else {}
    code = getattr(error, "code", None) or next(
        _CODES[kind] for kind in type(error).__mro__ if kind in _CODES
    )
    headers = {}
    if status == 401:  # noqa: PLR2004
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503):
        headers["Retry-After"] = "1"
    found = Problem(status, code, title, str(error), facts)
    return _answer(request, found, headers)


def _framework(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    if error.status < 400:  # noqa: PLR2004
        raise error
    code = _HTTP_CODES.get(error.status, "refused")
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    found = Problem(error.status, code, error.reason, error.reason)
    return _answer(request, found, headers)


def _answer(
    request: web.Request, found: Problem, headers: Mapping[str, str]
) -> web.Response:
    """Build the document; `error` repeats the detail for older clients."""
    body = {
        **found.facts,
        "type": found.code,
        "title": found.title,
        "status": found.status,
        "detail": found.detail,
        "instance": _readable(request.path),
        "error": found.detail,
    }
    return web.Response(
        body=dump(body),
        status=found.status,
        content_type="application/problem+json",
        headers=headers,
    )


def _readable(path: str) -> str:
    """Return a path as JSON can hold it: callers may send bytes that are no text."""
    return path.encode("utf-8", "replace").decode()
