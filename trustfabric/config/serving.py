"""Settings of the HTTP front end and of who may use it."""

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, FilePath, SecretStr

from trustfabric.config.variable import Count, Seconds, Section, Variable

SECRET_BYTES = 32
"""HMAC keys shorter than the digest are refused, but on loopback (RFC 7518 §3.2)."""


def http_url(value: str) -> str:
    """Check an http or https address and return it without its last slash."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not an http:// or https:// address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds credentials; they have variables of their own")
    return value.rstrip("/")


def _host(value: str) -> str:
    if value == "localhost":
        return value
    try:
        return str(ipaddress.ip_address(value.strip("[]")))
    except ValueError:
        raise ValueError(f'"{value}" is not an IP address or "localhost"') from None


class HttpSettings(Section):
    """Where the front end listens and how much it holds for its clients."""

    bind_address: Annotated[
        str,
        AfterValidator(_host),
        Variable("BIND_ADDRESS", "Address to listen on"),
    ] = "127.0.0.1"
    bind_port: Annotated[
        int,
        Field(ge=0, le=65535),
        Variable("BIND_PORT", "Port to listen on; 0 takes a free one"),
    ] = 3000
    public_url: Annotated[
        str | None,
        AfterValidator(lambda value: value and http_url(value)),
        Variable(
            "TRUSTFABRIC_PUBLIC_URL",
            "What runs and printed commands are told to call",
            unset="address and port",
        ),
    ] = None
    history_limit_max: Annotated[
        Count,
        Variable("TRUST_HISTORY_LIMIT_MAX", "Largest `limit` of a history request"),
    ] = 200
    stream_buffer: Annotated[
        Count,
        Variable(
            "SSE_BUFFER_EVENTS", "Events held for a slow stream client before `lagged`"
        ),
    ] = 1000
    stream_room: Annotated[
        Count,
        Variable(
            "SSE_BUFFER_EVENTS_TOTAL",
            "Events held for all stream clients; past it the slowest are told `lagged`",
        ),
    ] = 100_000
    heartbeat_s: Annotated[
        Seconds,
        Variable("SSE_HEARTBEAT_SECONDS", "Pause between a stream's heartbeats"),
    ] = 15.0

    metrics_open: Annotated[
        bool,
        Variable(
            "METRICS_OPEN",
            "Whether `/metrics` asks for no token; on loopback only",
        ),
    ] = False

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the front end."""
        return (
            self.bind_address == "localhost"
            or ipaddress.ip_address(self.bind_address).is_loopback
        )


def _not_blank(value: SecretStr | None) -> SecretStr | None:
    if value is not None and not value.get_secret_value().strip():
        raise ValueError("is blank")
    return value


class AuthSettings(Section):
    """What a bearer token must be signed with and say."""

    secret: Annotated[
        SecretStr | None,
        AfterValidator(_not_blank),
        Variable(
            "JWT_SECRET",
            "Key of the HS256 signature, at least 32 bytes unless on loopback",
            unset="a random one, kept in the data directory (on loopback only)",
            secret=True,
        ),
    ] = None
    issuer: Annotated[
        str | None,
        Variable("JWT_ISSUER", "Required `iss` claim", unset="not checked"),
    ] = None
    audience: Annotated[
        str | None,
        Variable("JWT_AUDIENCE", "Required `aud` claim", unset="not checked"),
    ] = None
    jwks_file: Annotated[
        FilePath | None,
        Variable(
            "JWT_JWKS_FILE",
            "JSON Web Key Set of asymmetric keys that are accepted beside the secret",
            unset="none",
        ),
    ] = None

    @property
    def secret_is_short(self) -> bool:
        """Whether there is a secret and it is shorter than it should be."""
        return (
            self.secret is not None
            and len(self.secret.get_secret_value().encode()) < SECRET_BYTES
        )
