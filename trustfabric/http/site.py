"""The HTTP site as an actor: up while it lives, its streams ended before it stops."""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import structlog
from aiohttp import web
from aiohttp.http import HttpProcessingError

from trustfabric.http.app import build
from trustfabric.http.face import FACE, Face
from trustfabric.supervision import Actor, Notice

log = structlog.get_logger(__name__)

SHUTDOWN_S = 1.0
"""Requests in flight get this long; streams are ended at once."""


@dataclass(frozen=True, slots=True)
class _Ended(Notice["Site"]):
    how: BaseException


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
            application,
            access_log=None,
            logger=_server_log(),
            shutdown_timeout=SHUTDOWN_S,
        )
        # However this incarnation ends, its connections and its socket go with it.
        _ = self.run(_until_cancelled(runner), _Ended)
        self._runner = runner
        await runner.setup()
        # A copy of the descriptor: the next incarnation listens on the same socket.
        await web.SockSite(runner, self._listening().dup()).start()

    async def on_stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def handle(self, message: _Ended) -> NoReturn:
        raise RuntimeError("the site ended by itself") from message.how


async def _until_cancelled(runner: web.AppRunner) -> NoReturn:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        # None are left after an orderly stop; who is killed says no good-byes.
        for connection in runner.server.connections if runner.server else ():
            connection.force_close()
        await runner.cleanup()
    raise AssertionError("nobody sets it")


def _server_log() -> logging.Logger:
    # Not getLogger: nothing of it outlives this incarnation.
    logger = logging.Logger("http.server", logging.WARNING)  # noqa: LOG001
    logger.addHandler(_IntoOurLog())
    return logger


class _IntoOurLog(logging.Handler):
    """What aiohttp says goes through our log, which masks secrets.

    What strangers send garbled was answered, and may hold anything: it is not told.
    """

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            log.debug("http.unreadable", kind=type(error).__name__)
        else:
            log.error("http.server", text=record.getMessage(), exc_info=error)


async def _end_streams(application: web.Application) -> None:
    for subscription in tuple(application[FACE].streams):
        subscription.close()
