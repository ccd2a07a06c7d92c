"""Fetches this guest's challenges from the runtime and pushes the answers there.

For guests that their host can't ask: only the guest opens connections, and what it
may do there its token says. An answer is sent once: whether it arrived, the next
challenge tells.
"""

import base64
import http.client
import json
import random
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from trustfabric.agent.answers import Sources, answer
from trustfabric.agent.transport import UnansweredError, UnreachableError
from trustfabric.domain.evidence.documents import (
    as_object,
    hex_bytes,
    read_json,
    text,
)
from trustfabric.domain.evidence.model import EvidenceKind, Reject

PATH: Final = "/api/attestation/challenges"
WAIT_S = 25
"""How long the runtime may keep us waiting for a challenge."""

_SLACK_S = 15.0
_MAX_TOKEN = 8192
_MAX_ANSWER = 64 * 1024
_PAUSE_S = (1.0, 60.0)
_ACCEPTED, _BUSY = 202, 429
_ATTEMPTS = 5


class RefusedError(Exception):
    """The runtime answered, and not with what was asked for."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"{status}: {why}")
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Where the runtime is, and what it knows us by."""

    url: str
    token_file: Path
    """Read anew for each request, so that it can be replaced."""
    ca_file: Path | None = None
    """Authorities to believe instead of the system's."""
    plain: bool = False
    """Send the token unencrypted to another machine all the same."""

    def check(self) -> None:
        """Raise ValueError for an address that a token must not be sent to."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address like https://runtime.example")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("an address without user, query or fragment")
        if parts.scheme == "http" and not (self.plain or _is_near(parts.hostname)):
            raise ValueError("https, or --plain: others could read the token")


def push_for_ever(runtime: Runtime, sources: Sources) -> None:
    """Answer each challenge as it comes; after a failure ever more slowly."""
    failures = 0
    while True:
        try:
            push_once(runtime, sources)
            failures = 0
        except (UnreachableError, UnansweredError, RefusedError) as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            time.sleep(_pause(failures))
            failures += 1


def push_once(runtime: Runtime, sources: Sources) -> int:
    """Wait for challenges and answer them; return how many were answered.

    UnansweredError where none could be: what keeps one from it keeps no other.
    """
    answered, refused = 0, None
    for asked in _fetch(runtime):
        try:
            evidence = answer(asked.kind, asked.extra_data, sources, asked.accelerator)
        except UnansweredError as error:
            refused = error
            continue
        document = {
            "nonce": asked.nonce.hex(),
            "evidence": base64.b64encode(evidence).decode(),
        }
        _push(runtime, json.dumps(document).encode())
        answered += 1
    if refused is not None and not answered:
        raise refused
    return answered


def _push(runtime: Runtime, body: bytes) -> None:
    """Send an answer; again only where the runtime said that it didn't take it."""
    for attempt in range(_ATTEMPTS):
        try:
            _call(runtime, "POST", PATH, body, _ACCEPTED)
        except RefusedError as refused:
            if refused.status != _BUSY or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_pause(attempt))
        else:
            return


@dataclass(frozen=True, slots=True)
class _Asked:
    kind: EvidenceKind
    nonce: bytes
    extra_data: bytes
    accelerator: str | None


def _fetch(runtime: Runtime) -> list[_Asked]:
    raw = _call(runtime, "GET", f"{PATH}?wait={WAIT_S}", None, 200)
    try:
        document = read_json(raw, "challenges", _MAX_ANSWER)
        if not isinstance(document, list):
            raise RefusedError(200, "no list of challenges")
        return [_asked(as_object(each, "challenge")) for each in document]
    except (Reject, ValueError) as error:
        raise RefusedError(200, str(error)) from error


def _asked(members: Mapping[str, object]) -> _Asked:
    return _Asked(
        EvidenceKind(text(members, "kind", "challenge")),
        hex_bytes(members.get("nonce"), "nonce"),
        hex_bytes(members.get("extra_data"), "extra_data"),
        text(members, "accelerator_id", "challenge")
        if members.get("accelerator_id") is not None
        else None,
    )


def _call(
    runtime: Runtime, method: str, path: str, body: bytes | None, wanted: int
) -> bytes:
    """Send one request, to that address and nowhere else; no proxy, no redirect."""
    parts = urlsplit(runtime.url)
    headers = {"Authorization": f"Bearer {_token(runtime.token_file)}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection = _connect(runtime)
    try:
        connection.request(method, parts.path.rstrip("/") + path, body, headers)
        response = connection.getresponse()
        said = response.read(_MAX_ANSWER + 1)
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"runtime at {runtime.url}: {error}") from error
    finally:
        connection.close()
    if response.status != wanted:
        raise RefusedError(response.status, _detail(said))
    return said


def _connect(runtime: Runtime) -> http.client.HTTPConnection:
    parts = urlsplit(runtime.url)
    assert parts.hostname is not None  # Runtime.check
    within_s = WAIT_S + _SLACK_S
    if parts.scheme == "http":
        return http.client.HTTPConnection(
            parts.hostname, parts.port or 80, timeout=within_s
        )
    try:
        context = ssl.create_default_context(cafile=runtime.ca_file)
    except OSError as error:
        raise UnreachableError(f"{runtime.ca_file}: {error}") from error
    return http.client.HTTPSConnection(
        parts.hostname, parts.port or 443, timeout=within_s, context=context
    )


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            token = file.read(_MAX_TOKEN).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise UnreachableError(f"token in {path}: {error}") from error
    if not token or not token.isprintable() or " " in token:
        raise UnreachableError(f"token in {path}: none there")
    return token


def _detail(said: bytes) -> str:
    try:
        members = as_object(read_json(said, "answer", _MAX_ANSWER), "answer")
        return text(members, "detail", "answer")[:200]
    except Reject:
        return "no reason given"


def _pause(failures: int, draw: Callable[[], float] = random.random) -> float:
    """Return seconds: doubled each time up to a minute, and spread by a quarter."""
    low, high = _PAUSE_S
    return min(high, low * 2.0 ** min(failures, 16)) * (1 - draw() / 4)


def _is_near(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
