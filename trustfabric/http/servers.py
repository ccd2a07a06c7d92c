"""Servers over HTTP: their records, launches and stops, their VM."""

from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BeforeValidator, ConfigDict, Field

from trustfabric.actors.attestation import Attest
from trustfabric.actors.launcher import Caller
from trustfabric.actors.placement import explain
from trustfabric.actors.servers import (
    CreateServer,
    DeleteServer,
    RedeployServer,
    ReleaseServer,
    StartServer,
    StopServer,
    Verb,
)
from trustfabric.db import accelerators, runs, servers, trust, trust_events, vms
from trustfabric.domain.accelerators import check_vouches_for_vm
from trustfabric.domain.ids import ServerId
from trustfabric.domain.seeds import NETWORK_MAX, USER_DATA_MAX, read_seed
from trustfabric.domain.servers import Server, ServerStatus
from trustfabric.domain.vms import IsolationTier, check_image_name
from trustfabric.errors import InvalidError, NotFoundError
from trustfabric.http.auth import PRINCIPAL, require
from trustfabric.http.face import ASK_S, FACE
from trustfabric.http.parse import Body, Query, path_id, read_body, read_nothing
from trustfabric.http.reply import page, reply
from trustfabric.http.tokens import Role
from trustfabric.http.views import (
    accelerator_view,
    history_view,
    instance_view,
    server_view,
)

routes = web.RouteTableDef()

NEWEST = 10
EVENTS = 10


class CloudInit(Body):
    """What cloud-init in the guest is given; no view shows it."""

    user_data: str = Field(max_length=USER_DATA_MAX)
    meta_data: dict[str, str] | None = Field(None, max_length=64)
    network_config: str | None = Field(None, max_length=NETWORK_MAX)


class VmConfig(Body):
    image: str = Field("demo", min_length=1, max_length=128)
    memory_mib: int | None = Field(None, ge=1, le=2**31 - 1)
    vcpu_count: int | None = Field(None, ge=1, le=4096)
    isolation_tier: IsolationTier | None = None
    restart: Literal["always", "on-failure", "never"] | None = None
    """Whether it boots again when it ended unasked; absent: always."""
    cloud_init: CloudInit | None = None


def _vouches_for_vm(kind: object) -> object:
    try:
        check_vouches_for_vm(kind)
    except InvalidError as error:
        raise ValueError(str(error)) from None
    return kind


class AttestationConfig(Body):
    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Annotated[
        Literal["tpm", "amd-sev-snp", "intel-tdx", "composite-azure-vtpm"],
        BeforeValidator(_vouches_for_vm),
    ] = "tpm"
    source: Literal["agent", "swtpm", "virtio", "vsock"] = "agent"


class ServerConfig(Body):
    model_config = ConfigDict(extra="allow", frozen=True)

    vm: VmConfig = VmConfig()
    attestation: AttestationConfig = AttestationConfig()


class NewServer(Body):
    name: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
    server_type: str | None = Field(None, min_length=1, max_length=100)
    config: ServerConfig = ServerConfig()


@routes.get("/api/servers")
async def list_servers(request: web.Request) -> web.Response:
    query = Query(request, "status", "limit", "cursor")
    limit = query.limit()
    status = query.choice("status", ServerStatus)

    async with request.app[FACE].database.reading() as conn:
        rows = await servers.list_servers(
            conn,
            request[PRINCIPAL].owner,
            status=status,
            after=query.cursor() or 0,
            limit=limit,
        )
    return page(
        request,
        [server_view(row) for row in rows],
        count=len(rows),
        limit=limit,
        last=rows[-1].id if rows else 0,
    )


@routes.post("/api/servers")
async def create_server(request: web.Request) -> web.Response:
    principal = require(request, Role.OPERATOR)
    body = await read_body(request, NewServer)
    check_image_name(body.config.vm.image)
    config = body.config.model_dump(mode="json", exclude_none=True)
    read_seed(config["vm"])
    new = servers.NewServer(
        owner_id=principal.user_id,
        name=body.name,
        server_type=body.server_type,
        config=config,
    )

    server = await request.app[FACE].servers.ask(CreateServer(new), within_s=ASK_S)
    return reply(server_view(server), status=201, location=f"/api/servers/{server.id}")


@routes.get(r"/api/servers/{id:\d+}")
async def get_server(request: web.Request) -> web.Response:
    Query(request)
    return reply(server_view(await find_server(request)))


@routes.delete(r"/api/servers/{id:\d+}")
async def delete_server(request: web.Request) -> web.Response:
    Query(request)
    message = DeleteServer(ServerId(path_id(request)), _caller(request))
    await request.app[FACE].servers.ask(message, within_s=ASK_S)
    return web.Response(status=204)


@routes.post(r"/api/servers/{id:\d+}/start")
async def start_server(request: web.Request) -> web.Response:
    await read_nothing(request)
    return await _verb(
        request, StartServer(ServerId(path_id(request)), _caller(request))
    )


@routes.post(r"/api/servers/{id:\d+}/stop")
async def stop_server(request: web.Request) -> web.Response:
    await read_nothing(request)
    return await _verb(
        request, StopServer(ServerId(path_id(request)), _caller(request))
    )


@routes.post(r"/api/servers/{id:\d+}/redeploy")
async def redeploy_server(request: web.Request) -> web.Response:
    await read_nothing(request)
    return await _verb(
        request, RedeployServer(ServerId(path_id(request)), _caller(request))
    )


class ServerRelease(Body):
    reason: str = Field(min_length=1, max_length=500)


@routes.post(r"/api/servers/{id:\d+}/release")
async def release_server(request: web.Request) -> web.Response:
    caller = _caller(request)
    body = await read_body(request, ServerRelease)
    return await _verb(
        request, ReleaseServer(ServerId(path_id(request)), caller, body.reason)
    )


@routes.post(r"/api/servers/{id:\d+}/vm/attest")
async def attest_server(request: web.Request) -> web.Response:
    require(request, Role.OPERATOR)
    await read_nothing(request)
    server = await find_server(request)
    instance = await find_living(request, server.id)
    request.app[FACE].attestation.tell(Attest(instance.id, "manual"))
    body = {"server_id": server.id, "vm_instance_id": instance.id, "challenged": True}
    return reply(body, status=202)


@routes.get(r"/api/servers/{id:\d+}/placement")
async def explain_placement(request: web.Request) -> web.Response:
    Query(request)
    face = request.app[FACE]
    server = await find_server(request)
    decision, policy = await explain(face.database, server.id, face.now())
    return reply(
        {
            "server_id": server.id,
            "allowed": decision.allowed,
            "notes": decision.notes,
            "blocking": decision.blocking,
            "policy_notes": policy,
        }
    )


@routes.get(r"/api/servers/{id:\d+}/vm")
async def get_vm(request: web.Request) -> web.Response:
    Query(request)
    face = request.app[FACE]
    server = await find_server(request)
    views: list[dict[str, Any]] = []
    async with face.database.reading() as conn:
        for instance in await vms.list_newest(conn, server.id, limit=NEWEST):
            posture = await trust.get_posture(conn, None, instance.id)
            assert posture is not None
            history = await trust_events.list_history(
                conn, None, instance.id, limit=EVENTS
            )
            view = instance_view(
                instance, posture, history[0] if history else None, face.now()
            )
            active = await runs.get_active_run(conn, instance.id)
            view["active_run"] = active and {
                "id": active.id,
                "playbook": active.playbook,
                "status": active.status,
                "approval_state": active.approval_state,
            }
            found = await accelerators.list_accelerators(
                conn, [instance.id], face.now()
            )
            view["accelerators"] = [
                accelerator_view(one) for one in found.get(instance.id, ())
            ]
            view["trust_history"] = [history_view(event) for event in history]
            view["events"] = [
                {"event_type": kind, "payload": payload, "created_at": at}
                for kind, payload, at in await vms.list_events(
                    conn, instance.id, limit=EVENTS
                )
            ]
            views.append(view)
    living = next((view for view in views if view["terminated_at"] is None), None)
    return reply(
        {
            "server_id": server.id,
            "server_name": server.name,
            "latest_status": views[0]["attestation_status"] if views else None,
            "last_updated_at": views[0]["updated_at"] if views else None,
            "active_instance_id": living and living["id"],
            "instances": views,
        }
    )


def _caller(request: web.Request) -> Caller:
    principal = require(request, Role.OPERATOR)
    run_id = principal.run.run_id if principal.run else None
    return Caller(principal.owner, principal.actor, run_id)


async def _verb(request: web.Request, message: Verb) -> web.Response:
    server = await request.app[FACE].servers.ask(message, within_s=ASK_S)
    return reply(server_view(server), status=202)


async def find_server(request: web.Request) -> Server:
    """Return the server of the path. NotFoundError, also for another's."""
    server_id = ServerId(path_id(request))
    async with request.app[FACE].database.reading() as conn:
        server = await servers.get_server(conn, request[PRINCIPAL].owner, server_id)
    if server is None:
        raise NotFoundError(f"no server {server_id}")
    return server


async def find_living(request: web.Request, server_id: ServerId) -> vms.Instance:
    """Return a server's VM. NotFoundError."""
    async with request.app[FACE].database.reading() as conn:
        newest = await vms.list_newest(conn, server_id, limit=1)
    if not newest or newest[0].terminated_at is not None:
        raise NotFoundError(f"server {server_id} has no VM")
    return newest[0]
