"""What a cloud_api playbook's metadata says: requests, and what they must answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from trustfabric.domain.pointers import Condition, read_conditions
from trustfabric.domain.run_templates import check_template, uses_references
from trustfabric.domain.spec_fields import (
    SECRET_PREFIX,
    Metadata,
    number_of,
    object_of,
    seconds_of,
    text_of,
    whole_of,
)
from trustfabric.errors import InvalidError

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
MAX_STEPS = 32
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_REQUEST_TIMEOUT_S = 30.0
DEFAULT_INTERVAL_S = 5.0
DEFAULT_RETRIES = 3
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}", re.ASCII)
_SECRET_VALUE = re.compile(r"(?:[A-Za-z-]+ )?secret:[A-Za-z0-9_.-]{1,128}", re.ASCII)
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}
)
_STEP = (
    "name", "method", "url", "headers", "body", "expect", "poll", "retry",
    "idempotent", "request_timeout_seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What an answer has to be like."""

    statuses: frozenset[int] | None = None
    """None: any 2xx."""
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; texts in it are templates over the run's data."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Values may be references: `secret:NAME`, `Bearer secret:NAME`."""
    body: Any = None
    idempotent: bool = False
    """Whether it may be sent again when nobody knows what became of it."""
    retries: int = DEFAULT_RETRIES
    timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """Ask again and again until an answer says that it is done."""

    request: Request
    until: Expectation
    failed: tuple[Condition, ...] = ()
    """An answer of which any is true ends the wait as a failure."""
    interval_s: float = DEFAULT_INTERVAL_S
    backoff: float = 1.0
    max_interval_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A request, what it must answer, and what is waited for then."""

    name: str
    request: Request
    expect: Expectation
    poll: Poll | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSpec:
    """The steps in order, and how long all of them may take."""

    steps: tuple[Step, ...]
    timeout_s: float = DEFAULT_TIMEOUT_S


def read_cloud(metadata: Metadata) -> CloudSpec:
    """Read a cloud_api playbook's metadata; InvalidError names the field at fault."""
    timeout_s = seconds_of(
        metadata.get("timeout_seconds", DEFAULT_TIMEOUT_S), "timeout_seconds"
    )
    steps = metadata.get("steps")
    if steps is None:
        return CloudSpec(steps=(_step(metadata, "", "request"),), timeout_s=timeout_s)
    if "url" in metadata:
        raise InvalidError("metadata: a cloud_api playbook has either url or steps")
    if not isinstance(steps, list) or not 1 <= len(steps) <= MAX_STEPS:
        raise InvalidError(f"metadata.steps: not a list of 1 … {MAX_STEPS} requests")
    read = [
        _step(
            object_of(step, f"steps[{number}]", *_STEP),
            f"steps[{number}].",
            f"step {number + 1}",
        )
        for number, step in enumerate(steps)
    ]
    return CloudSpec(steps=tuple(read), timeout_s=timeout_s)


def _step(fields: Metadata, at: str, name: str) -> Step:
    request = _request(fields, at, method=fields.get("method"))
    poll = fields.get("poll")
    return Step(
        name=text_of(fields.get("name", name), f"{at}name", empty=False),
        request=request,
        expect=_expectation(fields.get("expect", {}), f"{at}expect"),
        poll=None if poll is None else _poll(poll, f"{at}poll", request),
    )


def _request(fields: Metadata, at: str, *, method: object) -> Request:
    word = text_of(method, f"{at}method", empty=False).upper()
    if word not in METHODS:
        raise InvalidError(f"metadata.{at}method: none of {', '.join(METHODS)}")
    idempotent = fields.get("idempotent", word in IDEMPOTENT)
    if not isinstance(idempotent, bool):
        raise InvalidError(f"metadata.{at}idempotent: not true or false")
    body = fields.get("body")
    check_template(body, f"{at}body")
    retry = object_of(fields.get("retry", {}), f"{at}retry", "limit")
    return Request(
        method=word,
        url=_url(fields.get("url"), f"{at}url"),
        headers=_headers(fields.get("headers", {}), f"{at}headers"),
        body=body,
        idempotent=idempotent,
        retries=whole_of(
            retry.get("limit", DEFAULT_RETRIES), f"{at}retry.limit", 0, 20
        ),
        timeout_s=seconds_of(
            fields.get("request_timeout_seconds", DEFAULT_REQUEST_TIMEOUT_S),
            f"{at}request_timeout_seconds",
        ),
    )


def _poll(value: object, at: str, request: Request) -> Poll:
    fields = object_of(
        value, at, "url", "headers", "until", "failed", "interval_seconds",
        "max_interval_seconds", "backoff", "request_timeout_seconds",
    )  # fmt: skip
    if "until" not in fields:
        raise InvalidError(f"metadata.{at}.until: is missing")
    interval = seconds_of(
        fields.get("interval_seconds", DEFAULT_INTERVAL_S), f"{at}.interval_seconds"
    )
    backoff = number_of(fields.get("backoff", 1), f"{at}.backoff")
    if not 1 <= backoff <= 10:  # noqa: PLR2004  said in the fault
        raise InvalidError(f"metadata.{at}.backoff: not within 1 … 10")
    asked = {"url": request.url, "headers": request.headers, **fields}
    return Poll(
        request=_request(asked, f"{at}.", method="GET"),
        until=_expectation(fields["until"], f"{at}.until"),
        failed=read_conditions(fields.get("failed", {}), f"{at}.failed"),
        interval_s=interval,
        backoff=backoff,
        max_interval_s=seconds_of(
            fields.get("max_interval_seconds", max(interval, 60.0)),
            f"{at}.max_interval_seconds",
        ),
    )


def _expectation(value: object, at: str) -> Expectation:
    fields = object_of(value, at, "status", "json")
    statuses = fields.get("status")
    if isinstance(statuses, int):
        statuses = [statuses]
    if statuses is not None and (not isinstance(statuses, list) or not statuses):
        raise InvalidError(f"metadata.{at}.status: not a status or a list of them")
    return Expectation(
        statuses=None
        if statuses is None
        else frozenset(whole_of(one, f"{at}.status", 100, 599) for one in statuses),
        conditions=read_conditions(fields.get("json", {}), f"{at}.json"),
    )


def _url(value: object, at: str) -> str:
    url = text_of(value, at, empty=False)
    if not url.isascii() or any(c.isspace() or c in '\\"<>^`' for c in url):
        raise InvalidError(f"metadata.{at}: not a URL: it has to be escaped")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidError(f"metadata.{at}: not a URL") from None
    if parts.scheme not in {"https", "http"} or not host:
        raise InvalidError(f"metadata.{at}: neither https nor http, with a host")
    if "@" in parts.netloc:
        raise InvalidError(f"metadata.{at}: credentials go into headers")
    if uses_references(parts.netloc):
        raise InvalidError(f"metadata.{at}: a host is not a matter of run data")
    if SECRET_PREFIX in url:
        raise InvalidError(f"metadata.{at}: a secret goes into headers, not a URL")
    if parts.fragment:
        raise InvalidError(f"metadata.{at}: a fragment is not sent")
    check_template(url, at)
    return url


def _headers(value: object, at: str) -> Mapping[str, str]:
    for name, text in object_of(value, at).items():
        if not _TOKEN.fullmatch(name):
            raise InvalidError(f"metadata.{at}: {name!r:.70} is no header's name")
        if name.casefold() in _OURS:
            raise InvalidError(f"metadata.{at}.{name}: is not for playbooks to set")
        told = text_of(text, f"{at}.{name}")
        if any(ord(c) < 0x20 or ord(c) == 0x7F for c in told):  # noqa: PLR2004
            raise InvalidError(f"metadata.{at}.{name}: has control characters")
        if SECRET_PREFIX in told and not _SECRET_VALUE.fullmatch(told):
            raise InvalidError(
                f"metadata.{at}.{name}: a secret is the whole value, or follows one "
                "word: Bearer secret:NAME"
            )
        check_template(told, f"{at}.{name}")
    assert isinstance(value, Mapping)
    return dict(value)
