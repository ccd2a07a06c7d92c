"""Scores over HTTP."""

from aiohttp import web

from trustfabric.db import intelligence, servers
from trustfabric.domain.ids import ServerId
from trustfabric.errors import NotFoundError
from trustfabric.http.auth import PRINCIPAL
from trustfabric.http.face import FACE
from trustfabric.http.parse import Query, path_id
from trustfabric.http.reply import reply
from trustfabric.http.views import score_view

routes = web.RouteTableDef()


@routes.get(r"/api/intelligence/servers/{id:\d+}/scores")
async def list_scores(request: web.Request) -> web.Response:
    Query(request)
    owner, server_id = request[PRINCIPAL].owner, ServerId(path_id(request))

    async with request.app[FACE].database.reading() as conn:
        if await servers.get_server(conn, owner, server_id) is None:
            raise NotFoundError(f"no server {server_id}")
        rows = await intelligence.list_scores(conn, owner, server_id)
    return reply([score_view(row) for row in rows])
