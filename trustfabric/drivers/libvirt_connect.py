"""Opening one connection to libvirt: which URIs, as whom, and how."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from trustfabric.drivers.credentials import Secret
from trustfabric.errors import InvalidError

_DRIVERS: Final = frozenset({"test", "qemu"})
_TRANSPORTS: Final = frozenset(
    {"", "unix", "ssh", "libssh", "libssh2", "tls", "tcp", "ext"}
)
_CRED_NAMES: Final = frozenset({1, 2})
_CRED_SECRETS: Final = frozenset({5, 7})
_CRED_TYPES: Final = [1, 2, 5, 7]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What libvirt may ask for; the secret is read anew for each opening."""

    username: str | None = None
    password: Callable[[], Secret | None] | None = None


@dataclass(frozen=True, slots=True)
class Uri:
    """A connection URI that is known to be one of ours."""

    text: str
    simulated: bool
    local: bool
    """The driver runs in our own process: its state is ours to keep open."""
    volatile: bool
    """That state is only in memory."""
    here: bool
    """The hypervisor's files and sockets are those of this machine."""

    @property
    def shown(self) -> str:
        """The URI without user information, and with no parameter but its socket.

        Two sockets of one host are two hypervisors.
        """
        base, _, query = self.text.partition("?")
        sockets = [part for part in query.split("&") if part.startswith("socket=")]
        plain = re.sub(r"//[^/]*@", "//", base, count=1)
        return "?".join((plain, *sockets[:1]))


def parse_uri(text: str) -> Uri:
    """Refuse what libvirt would quietly send to the local daemon instead."""
    parts = _split(text)
    driver, _, transport = parts.scheme.partition("+")
    if driver not in _DRIVERS or transport not in _TRANSPORTS:
        raise InvalidError(f"not a libvirt URI of the drivers test or qemu: {text!r}")
    if parts.password is not None:
        raise InvalidError("a libvirt URI may not hold a password")
    remote = bool(transport) or bool(parts.netloc)
    simulated = driver == "test"
    local = not remote and (simulated or parts.path == "/embed")
    here = not parts.netloc and transport in ("", "unix")
    return Uri(text, simulated, local, volatile=local and simulated, here=here)


def _split(text: str) -> SplitResult:
    plain = re.fullmatch(r"[a-z0-9+]+://[\x21-\x7e]*", text) is not None
    parts = urlsplit(text) if plain else None
    if parts is None or not parts.path:
        raise InvalidError(f"not a libvirt URI: {text!r}")
    return parts


def snapshot_of(credentials: Credentials) -> Mapping[str, object]:
    """Return what may be shown of credentials."""
    return {
        "username": credentials.username,
        "method": "password" if credentials.password is not None else "none",
        "secret_provided": credentials.password is not None,
    }


def connect(binding: Any, uri: Uri, credentials: Credentials) -> Any:
    """Open a connection; blocks, and raises libvirt's error."""
    auth = [_CRED_TYPES, _OneShot(credentials), None]
    return binding.openAuth(uri.text, auth, 0)


class _OneShot:
    """Answers each kind of question once: a second one means it was wrong.

    Some transports ask for ever otherwise.
    """

    def __init__(self, credentials: Credentials) -> None:
        """Read the secret here: an exception inside the callback would be lost."""
        secret = None if credentials.password is None else credentials.password()
        self._left = {
            **dict.fromkeys(_CRED_NAMES, credentials.username),
            **dict.fromkeys(_CRED_SECRETS, secret),
        }

    def __call__(self, questions: list[list[Any]], _opaque: Any) -> int:
        for question in questions:
            answer = self._left.pop(question[0], None)
            if answer is None:
                return -1
            plain = answer if isinstance(answer, str) else answer.get_secret_value()
            question[4] = plain
        return 0
