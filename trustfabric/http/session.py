"""The dashboard's session: a token kept in a cookie that scripts can't read."""

from aiohttp import web
from pydantic import Field

from trustfabric.http.auth import CSRF_COOKIE, PRINCIPAL, SESSION_COOKIE
from trustfabric.http.face import FACE
from trustfabric.http.parse import Body, Query, read_body
from trustfabric.http.reply import reply
from trustfabric.http.tokens import Principal

routes = web.RouteTableDef()


class SignIn(Body):
    token: str = Field(min_length=1, max_length=8192, repr=False)


@routes.post("/api/session")
async def sign_in(request: web.Request) -> web.Response:
    face = request.app[FACE]
    if request.content_type != "application/json":
        # Else a form of another site could sign somebody in as somebody else.
        raise web.HTTPUnsupportedMediaType
    body = await read_body(request, SignIn)
    principal = face.tokens.check(body.token)

    response = reply(_view(principal))
    seconds = max(0, int((principal.expires_at - face.now()).total_seconds()))
    response.set_cookie(
        SESSION_COOKIE,
        body.token,
        max_age=seconds,
        path="/",
        httponly=True,
        samesite="Strict",
        secure=request.secure,
    )
    response.set_cookie(
        CSRF_COOKIE,
        face.tokens.csrf(body.token),
        max_age=seconds,
        path="/",
        samesite="Strict",
        secure=request.secure,
    )
    return response


@routes.get("/api/session")
async def who_am_i(request: web.Request) -> web.Response:
    Query(request)
    return reply(_view(request[PRINCIPAL]))


@routes.delete("/api/session")
async def sign_out(request: web.Request) -> web.Response:
    Query(request)
    response = web.Response(status=204)
    response.del_cookie(SESSION_COOKIE, path="/")
    response.del_cookie(CSRF_COOKIE, path="/")
    return response


def _view(principal: Principal) -> dict[str, object]:
    return {
        "sub": principal.user_id,
        "role": principal.role,
        "exp": principal.expires_at,
    }
