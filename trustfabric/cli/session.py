"""What one command runs with: whom it talks to, and its HTTP client."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:  # the client's library takes longer to import than --help may
    from trustfabric.cli.client import Client


@dataclass(frozen=True, slots=True)
class Connection:
    host: str
    """Base URL; a path in it (behind a proxy) is kept."""
    timeout_s: float
    token: str | None = field(default=None, repr=False)
    """Travels in a header only: never in a URL, never printed."""


class Session:
    """The object that click hands to every command."""

    def __init__(
        self, shared: "Client | None" = None, *, in_shell: bool = False
    ) -> None:
        self.connection: Connection | None = None
        """Set by the root command, from its options."""
        self.in_shell = in_shell
        self.endless = False
        """The command runs until it is interrupted: Ctrl-C is its proper end."""
        self._shared = shared
        self._own: Client | None = None

    @property
    def client(self) -> "Client":
        """The shell's client where it goes to the same place, else one of its own."""
        assert self.connection is not None
        if self._shared is not None and self._shared.connection == self.connection:
            return self._shared
        if self._own is None:
            from trustfabric.cli.client import Client  # noqa: PLC0415 (see above)

            self._own = Client(self.connection)
        return self._own

    async def close(self) -> None:
        if self._own is not None:
            await self._own.close()


def fault_in_host(host: str) -> str | None:
    """Say why this can't be the base URL of a runtime; None when it can."""
    try:
        parts = urlsplit(host)
        _ = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "expected http://HOST[:PORT] or https://HOST[:PORT]"
    if parts.username or parts.password:
        return "a credential never travels in a URL: use --token-file"
    if parts.query or parts.fragment:
        return "a base URL has no query and no fragment"
    return None
