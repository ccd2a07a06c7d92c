"""The aiohttp application: its routes, and what every request passes first."""

from importlib import resources
from pathlib import Path

from aiohttp import web

from trustfabric.db import agents as agent_rows
from trustfabric.db import runs, servers
from trustfabric.domain.runs import RunStatus
from trustfabric.errors import ForbiddenError, UnauthenticatedError
from trustfabric.http import (
    agents,
    artifacts,
    attestation,
    consoles,
    ear,
    evaluations,
    holds,
    intelligence,
    metrics,
    playbooks,
    policies,
    session,
    system,
    trust,
    why,
)
from trustfabric.http import runs as run_routes
from trustfabric.http import servers as server_routes
from trustfabric.http.auth import authenticate
from trustfabric.http.errors import Handler, problems
from trustfabric.http.face import FACE, Face
from trustfabric.http.tokens import AgentScope, Principal, RunScope

BODY_LIMIT = 1 << 20
_OPEN = frozenset(
    {
        ("GET", "/"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", ear.JWKS),
        ("POST", "/api/session"),
        ("DELETE", "/api/session"),
    }
)
_STATIC = "/static/"
METRICS = "/metrics"

RUN_ROUTES = frozenset(
    {
        ("GET", r"/api/servers/{id:\d+}"),
        ("GET", r"/api/servers/{id:\d+}/vm"),
        ("POST", r"/api/servers/{id:\d+}/start"),
        ("POST", r"/api/servers/{id:\d+}/stop"),
        ("POST", r"/api/servers/{id:\d+}/redeploy"),
        ("POST", r"/api/servers/{id:\d+}/vm/attest"),
        ("POST", artifacts.PATH),
    }
)
"""All that a run's token may do: to the run's own server, and to the run itself."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; img-src 'self' data:; object-src 'none'; "
        "base-uri 'none'; frame-ancestors 'none'; form-action 'self'; "
        "require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def build(face: Face) -> web.Application:
    """Put the application together; every part of it is handed the same face."""
    application = web.Application(
        middlewares=[
            problems,
            authenticate(face.tokens, face.now, _public, _welcome),
        ],
        client_max_size=BODY_LIMIT,
    )
    application[FACE] = face
    application.on_response_prepare.append(_secure)
    for part in (
        trust,
        playbooks,
        run_routes,
        artifacts,
        server_routes,
        consoles,
        evaluations,
        intelligence,
        holds,
        why,
        session,
        system,
        metrics,
        ear,
        attestation,
        agents,
        policies,
    ):
        application.add_routes(part.routes)
    static = Path(str(resources.files("trustfabric.http") / "static"))
    application.router.add_get("/", _dashboard(static / "index.html"))
    application.router.add_static(_STATIC, static)
    return application


def _dashboard(page: Path) -> Handler:
    async def dashboard(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(page)

    return dashboard


def _public(request: web.Request) -> bool:
    if request.match_info.http_exception is not None and not request.path.startswith(
        "/api/"
    ):
        return True  # not there: the same answer for everybody
    if request.path == METRICS and request.app[FACE].metrics_open:
        return True
    method = "GET" if request.method == "HEAD" else request.method
    return (method, request.path) in _OPEN or request.path.startswith(_STATIC)


async def _welcome(request: web.Request, principal: Principal) -> None:
    """Make the first request of a new user leave its row; hold runs to their scope."""
    face = request.app[FACE]
    if principal.metrics:
        if request.path != METRICS:
            raise ForbiddenError("a token of role metrics reads metrics only")
        return
    if principal.run is not None:
        await _check_run(request, principal.run)
    if principal.agent is not None:
        await _check_agent(request, principal.agent)
    if principal.user_id not in face.known_users:
        async with face.database.writing() as conn:
            await servers.add_user(conn, principal.user_id)
        face.known_users.add(principal.user_id)


async def _check_run(request: web.Request, scope: RunScope) -> None:
    resource = request.match_info.route.resource
    route = (request.method, resource.canonical if resource is not None else "")
    itself = resource is not None and resource.canonical == _ITSELF
    own = str(scope.run_id if itself else scope.server_id)
    if request.match_info.get("id") != own or route not in _RUN_CANONICAL:
        raise ForbiddenError("a run's token reaches its own server only")
    face = request.app[FACE]
    async with face.database.reading() as conn:
        run = await runs.get_active_run(conn, scope.instance_id)
    if (
        run is None
        or run.id != scope.run_id
        or run.status is not RunStatus.RUNNING
        or run.lease_epoch != scope.lease_epoch
        or run.lease_expires_at is None
        or run.lease_expires_at <= face.now()
    ):
        raise UnauthenticatedError("the run that this token was for is over")


async def _check_agent(request: web.Request, scope: AgentScope) -> None:
    if request.path != agents.CHALLENGES:
        raise ForbiddenError("an agent's token fetches and answers challenges only")
    face = request.app[FACE]
    digest = agents.digest_of(scope.secret)
    async with face.database.reading() as conn:
        holds = await agent_rows.token_holds(
            conn, scope.instance_id, digest, face.now()
        )
    if not holds:
        raise UnauthenticatedError("the agent's token is over: issue another")


_ITSELF = artifacts.PATH.replace(r":\d+", "")
_RUN_CANONICAL = frozenset(
    (method, path.replace(r":\d+", "")) for method, path in RUN_ROUTES
)


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer says, streams too, unless it says so itself."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "trustfabric"
    fresh = "no-store" if request.path.startswith("/api/") else "no-cache"
    response.headers.setdefault("Cache-Control", fresh)
