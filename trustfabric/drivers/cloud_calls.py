"""The calls of one execution of a cloud_api playbook: sent, judged, sent again."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from yarl import URL

from trustfabric.domain.cloud_spec import (
    CloudSpec,
    Expectation,
    Poll,
    Request,
    Step,
)
from trustfabric.domain.documents import check_document
from trustfabric.domain.executors import (
    Emit,
    LogStream,
    ProducedFile,
    RemediationLogEvent,
)
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.pointers import MISSING
from trustfabric.domain.run_templates import filled, filled_text, filled_url
from trustfabric.domain.spec_fields import SECRET_PREFIX
from trustfabric.drivers.attendance import Stopwatch
from trustfabric.drivers.pinned import Answer, PinnedClient
from trustfabric.drivers.retry_after import retry_after_s
from trustfabric.drivers.secrets import Masker, Secrets
from trustfabric.errors import ForbiddenError, InvalidError

BODY_LIMIT = 1 << 20
RESULT_LIMIT = 64 << 10
RETRY_BASE_S = 0.5
RETRY_MAX_S = 30.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_DENIED = frozenset({401, 403})
_REDIRECTS = range(300, 400)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """How requests are made; hosts are the client's to allow."""

    body_bytes: int = BODY_LIMIT
    retry_base_s: float = RETRY_BASE_S
    retry_max_s: float = RETRY_MAX_S
    polls: int = 10_000
    """Of one step at most, whatever its interval."""


class _Failed(Exception):  # noqa: N818  it ends an execution, nothing more
    def __init__(self, message: str, reason: FailureReason) -> None:
        super().__init__(message)
        self.reason = reason


class KnownSecrets:
    """The secrets that a playbook refers to, each resolved once."""

    def __init__(self, secrets: Secrets, spec: CloudSpec) -> None:
        self.values: dict[str, str] = {}
        for step in spec.steps:
            polled = [] if step.poll is None else [step.poll.request]
            for request in (step.request, *polled):
                for text in (*request.headers.values(), *_texts(request.body)):
                    self._add(secrets, text)

    def put_into(self, text: str) -> str | None:
        """Return a header with its secret; None where it refers to none."""
        before, mark, name = text.partition(SECRET_PREFIX)
        return f"{before}{self.values[name]}" if mark else None

    def _add(self, secrets: Secrets, text: str) -> None:
        before, mark, name = text.partition(SECRET_PREFIX)
        if mark and (not before or before.endswith(" ")):
            self.values[name] = secrets.resolve(name)


def _texts(body: Any) -> list[str]:
    """Return the texts of a body that are references to secrets."""
    match body:
        case str() if body.startswith(SECRET_PREFIX):
            return [body]
        case Mapping():
            return [text for value in body.values() for text in _texts(value)]
        case list():
            return [text for value in body for text in _texts(value)]
        case _:
            return []


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request with the run's data and its secrets in it."""

    url: URL
    headers: dict[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(slots=True)
class Calls:
    """The calls of one execution, in order."""

    client: PinnedClient
    session: aiohttp.ClientSession
    settings: CloudSettings
    masker: Masker
    emit: Emit
    secrets: KnownSecrets
    data: dict[str, Any]
    """What templates are filled with."""
    made: list[dict[str, Any]] = field(default_factory=list)

    async def all(self, spec: CloudSpec) -> tuple[str, FailureReason | None]:
        try:
            for step in spec.steps:
                await self._step(step)
        except _Failed as failure:
            return str(failure), failure.reason
        except InvalidError as error:
            return str(error), FailureReason.PLAYBOOK_BUG
        except ForbiddenError as error:
            return str(error), FailureReason.POLICY_DENIED
        count = len(spec.steps)
        return f"{count} step{'' if count == 1 else 's'} done", None

    def detail(self) -> dict[str, Any]:
        response = self.data["response"]
        if response is MISSING:
            return {}
        masked = self.masker.mask_document(response)
        if len(orjson.dumps(masked)) > RESULT_LIMIT:
            return {}
        return {"output": masked}

    def files(self) -> tuple[ProducedFile, ...]:
        content = orjson.dumps(
            self.masker.mask_document(self.made), option=orjson.OPT_INDENT_2
        )
        return (
            ProducedFile(
                name="requests.json",
                content=content,
                media_type="application/json",
                artifact_type="requests",
            ),
        )

    async def _step(self, step: Step) -> None:
        await self._say(f"{step.name}: {step.request.method} {step.request.url}")
        answer = await self._send(step.request, self._prepared(step.request))
        self._judge(answer, step.expect, step.name)
        if step.poll is not None:
            await self._poll(step.poll, step.name)

    async def _poll(self, poll: Poll, name: str) -> None:
        # Once: what it polls with is the answer to the request, not to the last poll.
        prepared, interval = self._prepared(poll.request), poll.interval_s
        for _ in range(self.settings.polls):
            answer = await self._send(poll.request, prepared)
            fault = self._fault(answer, poll.until)
            if fault is None:
                return
            for condition in poll.failed:
                if condition.holds(self.data["response"]):
                    raise _Failed(
                        f"{name}: {condition}", FailureReason.EXECUTION_FAILURE
                    )
            if answer.status in _DENIED or answer.status in _REDIRECTS:
                self._judge(answer, poll.until, name)
            wait = max(interval, retry_after_s(answer.headers) or 0)
            await self._say(f"{name}: not yet ({fault}); again in {wait:g} s")
            await asyncio.sleep(wait)
            interval = min(interval * poll.backoff, poll.max_interval_s)
        raise _Failed(f"{name}: polled too often", FailureReason.TIMEOUT)

    # --- one request -------------------------------------------------------------

    def _prepared(self, request: Request) -> _Prepared:
        return _Prepared(
            url=URL(filled_url(request.url, self.data), encoded=True),
            headers=self._headers(request),
            body=self._body(request),
        )

    async def _send(self, request: Request, prepared: _Prepared) -> Answer:
        """Send a request, again where it may be; its JSON is `response` then."""
        self.data["response"] = MISSING
        delay = self.settings.retry_base_s
        for left in range(request.retries, -1, -1):
            answer, failure, sent = await self._try(request, prepared)
            again = failure is not None or (
                answer is not None and answer.status in _AGAIN
            )
            if not (again and left and (request.idempotent or not sent)):
                break
            wait = retry_after_s({} if answer is None else answer.headers) or delay
            why = failure if answer is None else f"status {answer.status}"
            await self._say(f"{why}; again in {wait:g} s")
            await asyncio.sleep(wait)
            delay = min(delay * 2, self.settings.retry_max_s)
        else:  # pragma: no cover  the last round always breaks
            raise AssertionError
        if answer is None:
            assert failure is not None
            raise failure
        self.data["response"] = _json_of(answer)
        return answer

    async def _try(
        self, request: Request, prepared: _Prepared
    ) -> tuple[Answer | None, _Failed | None, bool]:
        """Return the answer, or why there is none and whether it may have been sent."""
        watch, url = Stopwatch(), prepared.url
        shown = self.masker.mask(str(url))
        try:
            async with asyncio.timeout(request.timeout_s):
                answer = await self.client.send(
                    self.session,
                    request.method,
                    url,
                    headers=prepared.headers,
                    body=prepared.body,
                    limit=self.settings.body_bytes,
                )
        except aiohttp.ConnectionTimeoutError:
            said = f"{url.host}:{url.port}: no connection in time"
            failure, sent = _Failed(said, FailureReason.DEPENDENCY_UNAVAILABLE), False
        except TimeoutError:
            failure = _Failed(
                f"{url.host}: no answer within {request.timeout_s:g} s",
                FailureReason.TIMEOUT,
            )
            sent = True
        except aiohttp.ClientError as error:
            failure, sent = _failure_of(error, url)
        else:
            self._note(request.method, shown, watch, answer.status, len(answer.body))
            await self._say(
                f"{request.method} {shown}: {answer.status}, "
                f"{len(answer.body)} bytes in {watch.spent_s:.2f} s"
            )
            return answer, None, True
        self._note(request.method, shown, watch, None, 0, str(failure))
        if failure.reason is FailureReason.POLICY_DENIED:
            raise failure
        return None, failure, sent

    def _headers(self, request: Request) -> dict[str, str]:
        headers = {"User-Agent": "trustfabric"}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        for name, text in request.headers.items():
            value = self.secrets.put_into(text)
            if value is None:
                value = filled_text(text, self.data)
            if any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):  # noqa: PLR2004
                raise InvalidError(f"header {name}: its value has control characters")
            headers[name] = value
        return headers

    def _body(self, request: Request) -> bytes | None:
        if request.body is None:
            return None
        document = self._with_secrets(request.body)
        try:
            return orjson.dumps(document)
        except orjson.JSONEncodeError as error:
            raise InvalidError(f"body: can't be sent as JSON: {error}") from None

    def _with_secrets(self, body: Any) -> Any:
        match body:
            case str() if body.startswith(SECRET_PREFIX):
                return self.secrets.put_into(body)
            case Mapping():
                return {key: self._with_secrets(one) for key, one in body.items()}
            case list():
                return [self._with_secrets(one) for one in body]
            case _:
                return filled(body, self.data)

    # --- what it means -------------------------------------------------------------

    def _judge(self, answer: Answer, expect: Expectation, name: str) -> None:
        fault = self._fault(answer, expect)
        if fault is None:
            return
        reason = FailureReason.EXECUTION_FAILURE
        if answer.status in _REDIRECTS:
            reason, fault = FailureReason.POLICY_DENIED, f"{fault}: not followed"
        elif answer.status in _DENIED:
            reason = FailureReason.POLICY_DENIED
        elif answer.status in _AGAIN:
            reason = FailureReason.DEPENDENCY_UNAVAILABLE
        raise _Failed(f"{name}: {fault}", reason)

    def _fault(self, answer: Answer, expect: Expectation) -> str | None:
        """Say what is not as expected; None where all is."""
        if answer.cut:
            return f"the answer is larger than {self.settings.body_bytes} bytes"
        fits = (
            200 <= answer.status < 300  # noqa: PLR2004  any success
            if expect.statuses is None
            else answer.status in expect.statuses
        )
        if not fits:
            return f"status {answer.status}"
        if expect.conditions and self.data["response"] is MISSING:
            return "the answer is not JSON"
        for condition in expect.conditions:
            if not condition.holds(self.data["response"]):
                return f"not so: {condition}"
        return None

    def _note(
        self,
        method: str,
        url: str,
        watch: Stopwatch,
        status: int | None,
        size: int,
        error: str | None = None,
    ) -> None:
        if len(self.made) < 1000:  # noqa: PLR2004  of one execution
            self.made.append(
                {
                    "method": method,
                    "url": url,
                    "status": status,
                    "bytes": size,
                    "seconds": round(watch.spent_s, 3),
                    "error": error,
                }
            )

    async def _say(self, text: str) -> None:
        line = self.masker.mask(text)[:2000]
        await self.emit(RemediationLogEvent(LogStream.STDOUT, line))


def _json_of(answer: Answer) -> Any:
    if answer.cut:
        return MISSING
    try:
        document = orjson.loads(answer.body)
        check_document("response", document)
    except (orjson.JSONDecodeError, InvalidError):
        return MISSING
    return document


def _failure_of(error: aiohttp.ClientError, url: URL) -> tuple[_Failed, bool]:
    """Return what a failed exchange means, and whether the request may be out."""
    where = f"{url.host}:{url.port}"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        said = f"{where}: its certificate is not to be trusted"
        return _Failed(said, FailureReason.POLICY_DENIED), False
    if isinstance(error, aiohttp.ClientSSLError) or (
        isinstance(error, aiohttp.ClientOSError)
        and isinstance(error.__cause__, ssl.SSLError)
    ):
        said = f"{where}: no TLS with it"
        return _Failed(said, FailureReason.DEPENDENCY_UNAVAILABLE), False
    if isinstance(error, aiohttp.ClientConnectorError):
        why = error.os_error.strerror or "no such host"
        said = f"{where}: {why}"
        return _Failed(said, FailureReason.DEPENDENCY_UNAVAILABLE), False
    said = f"{where}: {type(error).__name__}: the exchange broke off"
    return _Failed(said, FailureReason.DEPENDENCY_UNAVAILABLE), True
