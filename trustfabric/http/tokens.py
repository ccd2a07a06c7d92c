"""Bearer tokens: what one proves, and the one way to sign and to check it."""

import hmac
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import jwt

from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId
from trustfabric.errors import UnauthenticatedError

ALGORITHM = "HS256"
MAX_TOKEN = 8192
_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
"""Decoders skip what is not base64; one token has one spelling here."""


class Role(StrEnum):
    """What a token lets its bearer do; each includes the ones before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class RunScope:
    """The token of a remediation run: its own instance and server, nothing else."""

    run_id: RunId
    instance_id: InstanceId
    server_id: ServerId
    lease_epoch: int


@dataclass(frozen=True, slots=True)
class AgentScope:
    """The token of a guest's agent: the challenges of its own instance, no more."""

    instance_id: InstanceId
    secret: str = field(repr=False)
    """What tells it from a forgery: the database keeps its digest, and revokes it."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, proven by a token."""

    user_id: OwnerId
    role: Role
    expires_at: datetime
    run: RunScope | None = None
    agent: AgentScope | None = None
    metrics: bool = False
    """It is for reading metrics, and for nothing else."""

    @property
    def owner(self) -> OwnerId | None:
        """Whose things it may see; None: everybody's."""
        return None if self.role is Role.ADMIN else self.user_id

    @property
    def actor(self) -> str:
        """How the history names it."""
        return f"run:{self.run.run_id}" if self.run else f"user:{self.user_id}"


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
        signed = b"csrf:" + as_bytes(session)
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
    if role == "metrics":
        return Principal(OwnerId(user_id), Role.VIEWER, expires_at, metrics=True)
    if role == "agent":
        agent = AgentScope(InstanceId(int(claims["instance"])), str(claims["jti"]))
        return Principal(OwnerId(user_id), Role.VIEWER, expires_at, agent=agent)
    known = Role.OPERATOR if role == "user" else Role(role)
    return Principal(OwnerId(user_id), known, expires_at)


def as_bytes(header: str) -> bytes:
    """Return what came: headers may hold bytes that are no text."""
    return header.encode("utf-8", "surrogateescape")
