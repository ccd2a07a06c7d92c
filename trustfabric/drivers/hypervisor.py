"""The HTTP driver: VMs behind a hypervisor's REST API.

The API lists nothing and announces nothing, so power is what this driver did, told
as events; `observe` only checks that somebody answers and echoes it.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import orjson

from trustfabric.domain.ports import ConsoleItem, ConsoleTail, Defined
from trustfabric.domain.power import Seen
from trustfabric.domain.vms import (
    IsolationTier,
    PowerChange,
    PowerEvent,
    PowerState,
    VmSpec,
    power_after,
)
from trustfabric.drivers.console_lines import LineRing
from trustfabric.drivers.credentials import Secret
from trustfabric.drivers.hypervisor_answers import (
    REDIRECT,
    SERVER_ERROR,
    parse_object,
    raise_for,
    read_body,
    read_chunk,
)
from trustfabric.errors import (
    AlreadyRunningError,
    ConflictError,
    FabricError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FOLLOW_LINES: Final = 1000
_UNNUMBERED: Final = "the hypervisor numbers no lines: some between may be missing"
_ATTEMPTS: Final = 3
_BACKOFF_S: Final = 0.1
_NO_CONTENT: Final = 204


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that was read whole."""

    status: int
    body: bytes


class HttpProvisioner:
    """A `Provisioner` for one endpoint; its power states don't outlive it."""

    name = "http"
    simulated = False
    volatile = False
    observes = False
    pauses = False

    def __init__(
        self,
        endpoint: str,
        *,
        token: Callable[[], Secret | None] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._base = _base_url(endpoint)
        self._token = token
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._generation = 0
        self._lost: str | None = "never opened"
        self._on_event: Callable[[PowerEvent], None] | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._defined: dict[UUID, Defined] = {}
        self._power: dict[str, PowerState] = {}

    @property
    def endpoint(self) -> str:
        return self._base

    @property
    def credentials(self) -> Mapping[str, object]:
        given = self._token is not None
        method = "bearer" if given else "none"
        return {"username": None, "method": method, "secret_provided": given}

    async def open(
        self,
        on_event: Callable[[PowerEvent], None],
        on_lost: Callable[[str], None],
    ) -> None:
        await self.close()
        self._generation += 1
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers=self._headers(),
            json_serialize=lambda value: orjson.dumps(value).decode(),
        )
        self._lost = None
        try:
            await self._probe()
        except FabricError:
            await self.close()
            raise
        self._on_event, self._on_lost = on_event, on_lost

    async def renew(self) -> None:
        if self._session is not None:
            self._session.headers.update(self._headers())

    async def close(self) -> None:
        session, self._session = self._session, None
        self._on_event = self._on_lost = None
        self._lost = "closed"
        if session is not None:
            await session.close()

    async def define(self, spec: VmSpec) -> Defined:
        known = self._defined.get(spec.uuid)
        if known is not None:
            return known
        answer = await self._send(
            "POST",
            "/instances",
            json=_order(spec),
            headers={"Idempotency-Key": str(spec.uuid)},
            secret=spec.seed is not None,
        )
        defined = _defined(parse_object(answer.body), spec)
        if defined is None:
            await self._discard(parse_object(answer.body).get("instance_id"))
            raise InvalidError(
                f"{spec.name}: the hypervisor made less of it than asked",
                downgraded=["isolation_tier"],
            )
        self._defined[spec.uuid] = defined
        self._power.setdefault(defined.hypervisor_name, PowerState.DEFINED)
        return defined

    async def start(self, name: str, boot: UUID) -> None:
        del boot  # its API keeps no marks
        try:
            await self._send("POST", f"{_path(name)}/start")
        except ConflictError as error:
            raise AlreadyRunningError(f"{name} runs already") from error
        self._happened(name, PowerChange.STARTED)

    async def stop(self, name: str, *, grace_s: float) -> None:
        within_s = self._timeout_s + grace_s
        await self._send("POST", f"{_path(name)}/stop", again=True, within_s=within_s)
        self._happened(name, PowerChange.SHUT_DOWN)

    async def pause(self, name: str) -> None:
        raise UnsupportedError(f"{name}: this hypervisor's API can't pause")

    async def resume(self, name: str) -> None:
        raise UnsupportedError(f"{name}: this hypervisor's API can't resume")

    async def undefine(self, name: str, spec: VmSpec | None = None) -> None:
        del spec  # its API has no disks
        await self._discard(name)
        self._happened(name, PowerChange.DESTROYED)
        self._happened(name, PowerChange.UNDEFINED)
        self._power.pop(name, None)
        others = [it for it in self._defined.items() if it[1].hypervisor_name != name]
        self._defined = dict(others)

    async def adopt(self, name: str, boot: UUID) -> None:
        del name, boot

    async def mark(self, name: str, boot: UUID) -> None:
        del name, boot

    async def forget(self, spec: VmSpec) -> None:
        del spec

    async def observe(self) -> Mapping[str, Seen]:
        await self._probe()
        return {name: Seen(power) for name, power in self._power.items()}

    async def look(self, name: str) -> Seen | None:
        await self._probe()
        power = self._power.get(name)
        return None if power is None else Seen(power)

    async def console_tail(self, name: str, lines: int) -> ConsoleTail:
        if lines <= 0:
            return ConsoleTail(())
        ring = LineRing(lines)
        path = f"{_path(name)}/logs?tail={lines}"
        async with self._streaming(path, self._timeout_s) as response:
            async for chunk in response.content.iter_any():
                ring.feed(chunk)
        ring.end()
        tail = ring.tail(lines)
        return ConsoleTail(tail, None if tail else "the hypervisor has no lines of it")

    async def console_follow(
        self, name: str, *, after: int | None = None, beat_s: float = 15.0
    ) -> AsyncGenerator[Sequence[ConsoleItem], None]:
        position = after or 0
        ring = LineRing(_FOLLOW_LINES, begin=position)
        if position:
            ring.break_with(_UNNUMBERED)
        async with self._streaming(f"{_path(name)}/logs/stream", None) as response:
            if response.status == _NO_CONTENT:
                return
            while (chunk := await read_chunk(response, beat_s)) != b"":
                if chunk is not None:
                    ring.feed(chunk)
                batch = ring.since(position)
                position = batch[-1].seq if batch else position
                if batch or chunk is None:
                    yield batch
        ring.end()
        if last := ring.since(position):
            yield last

    async def _probe(self) -> None:
        """Find out whether anybody answers: what, hardly matters."""
        try:
            await self._send("GET", "/", again=True)
        except (NotFoundError, InvalidError, ConflictError):
            return
        except UnavailableError as error:
            if not error.facts.get("redirects"):  # such as to its documentation
                raise

    async def _discard(self, name: object) -> None:
        if isinstance(name, str) and _NAME.fullmatch(name) is not None:
            try:
                await self._send("DELETE", _path(name), again=True)
            except NotFoundError:
                return

    def _happened(self, name: str, change: PowerChange) -> None:
        before = self._power.get(name, PowerState.UNKNOWN)
        if change is PowerChange.DESTROYED and not before.active:
            return
        self._power[name] = power_after(before, change)
        if self._on_event is not None:
            event = PowerEvent(name, self._generation, change)
            asyncio.get_running_loop().call_soon(self._on_event, event)

    def _headers(self) -> dict[str, str]:
        secret = None if self._token is None else self._token()
        if secret is None:
            return {}
        return {"Authorization": f"Bearer {secret.get_secret_value()}"}

    async def _send(  # noqa: PLR0913 (what a request has)
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        again: bool = False,
        within_s: float | None = None,
        secret: bool = False,
    ) -> Answer:
        """Ask, up to three times where no harm is done; quote no words on a secret."""
        options: dict[str, Any] = {"json": json, "headers": headers}
        if within_s is not None:
            options["timeout"] = aiohttp.ClientTimeout(total=within_s)
        for attempt in range(_ATTEMPTS if again else 1):
            last = not again or attempt == _ATTEMPTS - 1
            try:
                answer = await self._ask(method, path, options)
            except UnavailableError as error:
                if last or error.facts.get("cause") != "network":
                    self._note_loss(error)
                    raise
            else:
                if last or answer.status < SERVER_ERROR:
                    said = b"(it may quote cloud-init's)" if secret else answer.body
                    raise_for(answer.status, said, f"{method} {path}")
                    return answer
            await asyncio.sleep(_BACKOFF_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(self, method: str, path: str, options: dict[str, Any]) -> Answer:
        async with self._request(method, path, options, None) as response:
            return Answer(response.status, await read_body(response))

    @asynccontextmanager
    async def _streaming(
        self, path: str, within_s: float | None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        timeout = aiohttp.ClientTimeout(total=within_s, sock_connect=self._timeout_s)
        options = {"timeout": timeout}
        async with self._request("GET", path, options, self._timeout_s) as response:
            if response.status >= REDIRECT:
                raise_for(response.status, await read_body(response), f"GET {path}")
            yield response

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, options: dict[str, Any], begins_s: float | None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Translate what the network does; redirects are not followed."""
        if self._session is None or self._lost is not None:
            raise UnavailableError(f"{method} {path}: the link is down: {self._lost}")
        url = self._base + path
        try:
            async with (
                asyncio.timeout(begins_s) as patience,
                self._session.request(
                    method, url, allow_redirects=False, **options
                ) as response,
            ):
                patience.reschedule(None)
                yield response
        except TimeoutError as error:
            raise UnavailableError(
                f"{method} {path}: no answer in time", cause="deadline"
            ) from error
        except aiohttp.ClientError as error:
            raise UnavailableError(
                f"{method} {path}: {type(error).__name__}",
                cause="network",
                unreachable=isinstance(error, aiohttp.ClientConnectorError),
            ) from error

    def _note_loss(self, error: UnavailableError) -> None:
        """Nobody listens at the endpoint: that is the link, not this call."""
        if error.facts.get("unreachable") and self._lost is None:
            self._lost = str(error)
            if self._on_lost is not None:
                asyncio.get_running_loop().call_soon(self._on_lost, self._lost)


def _base_url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidError(f"not an http(s) endpoint: {endpoint!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidError("the endpoint is a plain URL: secrets go in its token")
    return endpoint.rstrip("/")


def _path(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise InvalidError(f"not an instance of this hypervisor: {name[:80]!r}")
    return f"/instances/{name}"


def _order(spec: VmSpec) -> dict[str, object]:
    return {
        "server_id": spec.server_id,
        "image": spec.image,
        "tier": spec.tier.value,
        "capabilities": list(spec.capabilities),
        "config": {
            "name": spec.name,
            "memory_mib": spec.memory_mib,
            "vcpu_count": spec.vcpu_count,
            "attestation": {"kind": spec.attestation_kind},
            **_cloud_init(spec),
        },
    }


def _cloud_init(spec: VmSpec) -> dict[str, object]:
    if spec.seed is None:
        return {}
    files = spec.seed.files(spec.name)
    texts = {name.replace("-", "_"): text.decode() for name, text in files.items()}
    return {"cloud_init": texts}


def _defined(made: Mapping[str, object], spec: VmSpec) -> Defined | None:
    """Return what was made; None when it is isolated otherwise than asked."""
    name, attestation = made.get("instance_id"), made.get("attestation")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidError("the hypervisor named no instance_id that can be used")
    if made.get("isolation_tier") != spec.tier.value:
        return None
    return Defined(
        hypervisor_name=name,
        tier=IsolationTier(spec.tier),
        attestation_hint=None if attestation is None else str(attestation)[:200],
    )
