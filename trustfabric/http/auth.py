"""Who asks: bearer tokens and the dashboard's session cookie, as a Principal.

A bad credential is never skipped for another one, and no credential is ever read
from a URL (security-cases S1 to S5, S35).
"""

import hmac
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import jwt
from aiohttp import web

from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId
from trustfabric.errors import ForbiddenError, UnauthenticatedError

ALGORITHM = "HS256"
MAX_TOKEN = 8192
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
"""Decoders skip what is not base64; one token has one spelling here."""
SESSION_COOKIE = "tf_session"
CSRF_COOKIE = "tf_csrf"
CSRF_HEADER = "X-CSRF-Token"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Role(StrEnum):
    """What a token lets its bearer do; each includes the ones before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


_RANK = list(Role)


@dataclass(frozen=True, slots=True)
class RunScope:
    """The token of a remediation run: its own instance and server, nothing else."""

    run_id: RunId
    instance_id: InstanceId
    server_id: ServerId
    lease_epoch: int


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, proven by a token."""

    user_id: OwnerId
    role: Role
    expires_at: datetime
    run: RunScope | None = None

    @property
    def owner(self) -> OwnerId | None:
        """Whose things it may see; None: everybody's."""
        return None if self.role is Role.ADMIN else self.user_id

    @property
    def actor(self) -> str:
        """How the history names it."""
        return f"run:{self.run.run_id}" if self.run else f"user:{self.user_id}"


PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Signs and checks bearer tokens with one pinned algorithm."""

    secret: str
    issuer: str | None = None
    audience: str | None = None

    def issue(self, claims: dict[str, Any]) -> str:
        extra = {"iss": self.issuer, "aud": self.audience}
        known = {name: value for name, value in extra.items() if value is not None}
        return jwt.encode({**claims, **known}, self.secret, algorithm=ALGORITHM)

    def check(self, token: str) -> Principal:
        """Return who the token proves. UnauthenticatedError, without saying why."""
        if len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
            raise UnauthenticatedError("the token is not valid")
        try:
            claims = jwt.decode(
                token,
                self.secret,
                algorithms=[ALGORITHM],
                issuer=self.issuer,
                audience=self.audience,
                options={
                    "require": ["exp", "sub"],
                    "verify_aud": self.audience is not None,
                    "strict_aud": True,
                    "verify_sub": False,  # an integer sub is accepted, contract §5
                },
            )
            return _principal(claims)
        except _NOT_VALID:
            raise UnauthenticatedError("the token is not valid") from None

    def csrf(self, session: str) -> str:
        """Return the token that unsafe requests of this session must show."""
        signed = b"csrf:" + _as_bytes(session)
        return hmac.digest(self.secret.encode(), signed, "sha256").hex()


_NOT_VALID = (
    jwt.PyJWTError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    OSError,  # a time beyond the platform's
    RecursionError,
)


def _principal(claims: dict[str, Any]) -> Principal:
    sub, role = claims["sub"], claims["role"]
    if isinstance(sub, bool) or not isinstance(sub, int | str):
        raise TypeError("sub")
    if isinstance(sub, str) and not (sub.isascii() and sub.isdecimal()):
        raise ValueError("sub")
    user_id = int(sub)
    if not 0 < user_id < 2**63:
        raise ValueError("sub")
    expires_at = datetime.fromtimestamp(claims["exp"], UTC)
    if role == "run":
        scope = RunScope(
            RunId(int(claims["run"])),
            InstanceId(int(claims["instance"])),
            ServerId(int(claims["server"])),
            int(claims["epoch"]),
        )
        return Principal(OwnerId(user_id), Role.OPERATOR, expires_at, scope)
    known = Role.OPERATOR if role == "user" else Role(role)
    return Principal(OwnerId(user_id), known, expires_at)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Welcome = Callable[[web.Request, Principal], Awaitable[None]]


def authenticate(
    tokens: Tokens, public: Callable[[web.Request], bool], welcome: Welcome
) -> Any:
    """Build the middleware that lets nobody through without a good credential.

    `welcome` sees each proven principal before its handler does and may refuse it.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if public(request):
            return await handler(request)
        principal = tokens.check(_credential(request, tokens))
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
        if not hmac.compare_digest(_as_bytes(shown), tokens.csrf(session).encode()):
            raise ForbiddenError(f"{CSRF_HEADER}: missing or wrong")
    return session


def _as_bytes(header: str) -> bytes:
    """Return what came: headers may hold bytes that are no text."""
    return header.encode("utf-8", "surrogateescape")


def require(request: web.Request, role: Role) -> Principal:
    """Return who asks, if it has at least this role. ForbiddenError."""
    principal = request[PRINCIPAL]
    if _RANK.index(principal.role) < _RANK.index(role):
        raise ForbiddenError(f"this needs role {role}")
    return principal
