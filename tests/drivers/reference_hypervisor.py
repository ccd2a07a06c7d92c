"""A small hypervisor that speaks the HTTP API, for tests to run the driver against."""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web


@dataclass
class Machine:
    """One VM of it."""

    order: dict[str, Any]
    running: bool = False
    lines: list[str] = field(default_factory=list)
    stays: bool = False
    """Its console is open and says nothing more."""


class ReferenceHypervisor:
    """Serves on a free port of loopback; knobs make it misbehave."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.by_key: dict[str, str] = {}
        self.token: str | None = None
        self.confirmed_tier: str | None = None
        """What it says it made, in place of what was asked."""
        self.fail_next: list[int] = []
        """Statuses to answer with before anything is done."""
        self.quotes = False
        """Those answers quote what was asked, as many frameworks do."""
        self.delay_s = 0.0
        self.requests: list[tuple[str, str]] = []
        self.more_lines = asyncio.Event()
        app = web.Application(middlewares=[self._gate])
        app.add_routes(
            [
                web.post("/instances", self._create),
                web.post("/instances/{name}/start", self._start),
                web.post("/instances/{name}/stop", self._stop),
                web.delete("/instances/{name}", self._delete),
                web.get("/instances/{name}/logs", self._logs),
                web.get("/instances/{name}/logs/stream", self._follow),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.serve()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    async def serve(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def vanish(self) -> None:
        """Stop listening; `serve` comes back on the same port."""
        await self._runner.cleanup()

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        await asyncio.sleep(self.delay_s)
        if self.fail_next:
            text = f"{request.headers} {await request.text()}" if self.quotes else ""
            status = self.fail_next.pop(0)
            return web.Response(status=status, text=text or "as told")
        wanted = None if self.token is None else f"Bearer {self.token}"
        if wanted is not None and request.headers.get("Authorization") != wanted:
            return web.Response(status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    def _machine(self, request: web.Request) -> Machine:
        machine = self.machines.get(request.match_info["name"])
        if machine is None:
            raise web.HTTPNotFound
        return machine

    async def _create(self, request: web.Request) -> web.Response:
        order = await request.json()
        key = request.headers.get("Idempotency-Key", "")
        name = self.by_key.setdefault(key, f"hv-{len(self.machines) + 1}")
        self.machines.setdefault(name, Machine(order))
        return web.json_response(
            {
                "instance_id": name,
                "isolation_tier": self.confirmed_tier or order["tier"],
                "attestation": order["config"]["attestation"]["kind"],
                "image": order["image"],
            },
            status=201,
        )

    async def _start(self, request: web.Request) -> web.Response:
        machine = self._machine(request)
        if machine.running:
            raise web.HTTPConflict
        machine.running = True
        machine.lines.append("booted")
        return web.Response(status=202)

    async def _stop(self, request: web.Request) -> web.Response:
        self._machine(request).running = False
        return web.Response(status=202)

    async def _delete(self, request: web.Request) -> web.Response:
        self._machine(request)
        del self.machines[request.match_info["name"]]
        return web.Response(status=204)

    async def _logs(self, request: web.Request) -> web.Response:
        tail = int(request.query.get("tail", "100"))
        lines = self._machine(request).lines[-tail:]
        return web.Response(text="".join(f"{line}\n" for line in lines))

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        machine = self._machine(request)
        if not machine.running:
            return web.Response(status=204)
        response = web.StreamResponse()
        await response.prepare(request)
        for line in machine.lines:
            await response.write(f"{line}\n".encode())
        while machine.stays:
            await asyncio.sleep(0.05)
        return response
