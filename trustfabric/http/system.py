"""The runtime itself over HTTP: its supervision tree, and whether it is well."""

from aiohttp import web

from trustfabric.db import runtimes
from trustfabric.errors import ForbiddenError, NotFoundError, UnavailableError
from trustfabric.http.auth import require
from trustfabric.http.face import FACE
from trustfabric.http.parse import Query, read_nothing
from trustfabric.http.reply import reply
from trustfabric.http.tokens import Role
from trustfabric.http.views import actor_view

routes = web.RouteTableDef()


@routes.get("/api/system/actors")
async def list_actors(request: web.Request) -> web.Response:
    require(request, Role.OPERATOR)
    Query(request)
    return reply([actor_view(line) for line in request.app[FACE].runtime.report()])


@routes.post(r"/api/system/actors/{path:.+}/kill")
async def kill_actor(request: web.Request) -> web.Response:
    principal = require(request, Role.ADMIN)
    await read_nothing(request)
    face = request.app[FACE]
    if not face.chaos:
        raise ForbiddenError("killing actors is off: set CHAOS_ENABLED=true")
    path = request.match_info["path"]
    try:
        await face.runtime.kill(path, f"killed by {principal.actor}")
    except KeyError:
        raise NotFoundError(f"no actor {path[:200]}") from None
    return reply({"path": path, "killed": True}, status=202)


@routes.get("/healthz")
async def healthz(request: web.Request) -> web.Response:
    """Say that the process runs and its loop turns."""
    Query(request)
    return reply({"status": "ok"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """Say whether the database answers, so that requests can be served."""
    Query(request)
    try:
        async with request.app[FACE].database.reading() as conn:
            await runtimes.ping(conn)
    except UnavailableError:
        return reply({"status": "unavailable", "database": "unavailable"}, status=503)
    return reply({"status": "ready", "database": "ok"})
