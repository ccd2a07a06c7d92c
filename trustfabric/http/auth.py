"""Who asks: bearer tokens and the dashboard's session cookie, as a Principal.

A bad credential is never skipped for another one, and no credential is ever read
from a URL (security-cases S1 to S5, S35).
"""

import hmac
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from aiohttp import web

from trustfabric.errors import ForbiddenError, UnauthenticatedError
from trustfabric.http.proven import Proven
from trustfabric.http.tokens import Principal, Role, Tokens, as_bytes

SESSION_COOKIE = "tf_session"
CSRF_COOKIE = "tf_csrf"
CSRF_HEADER = "X-CSRF-Token"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


_RANK = list(Role)

PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Welcome = Callable[[web.Request, Principal], Awaitable[None]]


def authenticate(
    tokens: Tokens,
    now: Callable[[], datetime],
    public: Callable[[web.Request], bool],
    welcome: Welcome,
) -> Any:
    """Build the middleware that lets nobody through without a good credential.

    `welcome` sees each proven principal before its handler does and may refuse it.
    """
    proven = Proven(tokens, now)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if public(request):
            return await handler(request)
        principal = proven.check(_credential(request, tokens))
        await welcome(request, principal)
        request[PRINCIPAL] = principal
        return await handler(request)

    return middleware


def _credential(request: web.Request, tokens: Tokens) -> str:
    headers = request.headers.getall("Authorization", [])
    if headers:
        scheme, _, token = headers[0].partition(" ")
        if len(headers) > 1 or scheme.casefold() != "bearer" or not token:
            raise UnauthenticatedError("the Authorization header is not a bearer token")
        return token.strip()
    session = request.cookies.get(SESSION_COOKIE)
    if not session:
        raise UnauthenticatedError("a bearer token is required")
    if request.method not in _SAFE:
        shown = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(as_bytes(shown), tokens.csrf(session).encode()):
            raise ForbiddenError(f"{CSRF_HEADER}: missing or wrong")
    return session


def require(request: web.Request, role: Role) -> Principal:
    """Return who asks, if it has at least this role. ForbiddenError."""
    principal = request[PRINCIPAL]
    if _RANK.index(principal.role) < _RANK.index(role):
        raise ForbiddenError(f"this needs role {role}")
    return principal
