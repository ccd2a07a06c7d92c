"""The HTTP site as an actor: up while it lives, its streams ended before it stops."""

import socket
from collections.abc import Callable

import structlog
from aiohttp import web

from trustfabric.http.app import build
from trustfabric.http.face import FACE, Face
from trustfabric.supervision import Actor

log = structlog.get_logger(__name__)

SHUTDOWN_S = 2.0
"""Requests in flight get this long; streams are ended at once."""


class Site(Actor):
    def __init__(self, face: Face, listening: Callable[[], socket.socket]) -> None:
        super().__init__()
        self._face = face
        self._listening = listening
        self._runner: web.AppRunner | None = None

    async def on_start(self) -> None:
        application = build(self._face)
        application.on_shutdown.append(_end_streams)
        runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=SHUTDOWN_S
        )
        await runner.setup()
        self._runner = runner
        # A copy of the descriptor: the next incarnation listens on the same socket.
        await web.SockSite(runner, self._listening().dup()).start()

    async def on_stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


async def _end_streams(application: web.Application) -> None:
    for subscription in tuple(application[FACE].streams):
        subscription.close()
