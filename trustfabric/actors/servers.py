"""Servers: launches, stops and removes the VM that each runs on.

A launch passes the placement gate or waits for it; one that waits resumes by itself
when trust comes back. What is wanted is committed before anyone acts on it, so the
VM's actor finds it again after any crash.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import structlog

from trustfabric.actors.placement import ask_gate
from trustfabric.actors.streams import (
    ActorFollower,
    Broadcaster,
    Event,
    Follow,
    Stream,
)
from trustfabric.actors.trust import OpenInstance, TrustRegistry
from trustfabric.actors.vms import Equipment, Look, Vm
from trustfabric.db import servers, vms
from trustfabric.db.session import Database
from trustfabric.db.vms import NewInstance
from trustfabric.domain.events import TrustEvent
from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId
from trustfabric.domain.power import Desired
from trustfabric.domain.servers import Server, ServerStatus
from trustfabric.domain.trust import Lifecycle
from trustfabric.errors import (
    AlreadyRunningError,
    FabricError,
    NotFoundError,
    PlacementBlockedError,
)
from trustfabric.supervision import (
    Actor,
    Address,
    AskError,
    DynamicAddress,
    Notice,
    Request,
)

log = structlog.get_logger(__name__)

ASK_S = 10.0
SWEEP_S = 30.0
_OPENS = frozenset({Lifecycle.RESTORED, Lifecycle.SUSPECT})
"""An instance in one of these may let its server's next launch through the gate."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: narrowed to an owner, and to its instance where a run asks."""

    owner_id: OwnerId | None
    actor: str
    run_id: RunId | None = None


@dataclass(frozen=True, slots=True)
class CreateServer(Request["Servers", Server]):
    new: servers.NewServer


@dataclass(frozen=True, slots=True)
class StartServer(Request["Servers", Server]):
    """Launch it. PlacementBlockedError with notes; AlreadyRunningError."""

    server_id: ServerId
    caller: Caller


@dataclass(frozen=True, slots=True)
class StopServer(Request["Servers", Server]):
    server_id: ServerId
    caller: Caller


@dataclass(frozen=True, slots=True)
class RedeployServer(Request["Servers", Server]):
    """Remove its VM and launch a new instance. PlacementBlockedError."""

    server_id: ServerId
    caller: Caller


@dataclass(frozen=True, slots=True)
class DeleteServer(Request["Servers", None]):
    server_id: ServerId
    caller: Caller


@dataclass(frozen=True, slots=True)
class ReleaseServer(Request["Servers", Server]):
    """Let it launch although its last instance ended distrusted."""

    server_id: ServerId
    caller: Caller
    reason: str


@dataclass(frozen=True, slots=True)
class Gone(Notice["Servers"]):
    """An instance was removed for good: its actor is to be let go."""

    instance_id: InstanceId


@dataclass(frozen=True, slots=True)
class _Changed(Notice["Servers"]):
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class _Sweep(Notice["Servers"]):
    pass


Verb = StartServer | StopServer | RedeployServer | ReleaseServer
Message = CreateServer | Verb | DeleteServer | Gone | _Changed | _Sweep


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the servers' actor works with."""

    database: Database
    trust: Address[TrustRegistry]
    broadcaster: Address[Broadcaster]
    vms: DynamicAddress[Vm]
    equipment: Equipment
    new_instance: Callable[[Server, str], NewInstance]
    """Builds the insert of a server's next instance from its name for it."""
    runtime_id: str
    epoch: int


class Servers(Actor):
    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet

    async def on_start(self) -> None:
        async with self._fleet.database.writing() as conn:
            living = await vms.adopt_living(
                conn, self._fleet.runtime_id, self._fleet.epoch
            )
        for instance_id, is_unsettled in living:
            vm = await self._watch_over(instance_id)
            if is_unsettled:
                # Its order was committed, and perhaps never told to it.
                vm.tell(Look())
        self.address.tell(_Sweep())

    async def handle(self, message: Message) -> Server | None:
        match message:
            case CreateServer(new):
                return await self._create(new)
            case StartServer() | StopServer() | RedeployServer() | ReleaseServer():
                await self._carry_out(message)
                return (await self._read(message))[0]
            case DeleteServer():
                await self._delete(message)
            case Gone(instance_id):
                await self._fleet.vms.stop_child(str(instance_id))
            case _Changed(events):
                await self._follow_trust(events)
            case _Sweep():
                await self._sweep()
            case _:
                assert_never(message)
        return None

    async def _carry_out(self, message: Verb) -> None:
        match message:
            case StartServer():
                await self._start(message)
            case StopServer():
                await self._stop_vm(message)
            case RedeployServer():
                await self._redeploy(message)
            case ReleaseServer():
                await self._release(message)
            case _:
                assert_never(message)

    async def _create(self, new: servers.NewServer) -> Server:
        async with self._fleet.database.writing() as conn:
            return await servers.insert_server(conn, new)

    async def _start(self, message: StartServer) -> None:
        server, instance = await self._read(message)
        if instance is not None and instance.desired_state == Desired.RUNNING:
            raise AlreadyRunningError(f"server {server.id} runs or is starting")
        await self._pass_gate(server, message.caller)
        if instance is None:
            await self._launch(server, message.caller)
        else:
            await self._want(server, instance, Desired.RUNNING, ServerStatus.STARTING)

    async def _stop_vm(self, message: StopServer) -> None:
        server, instance = await self._read(message)
        is_off = instance is None or not instance.power_state.active
        if instance is None or (is_off and instance.desired_state == Desired.STOPPED):
            await self._set_status(server, ServerStatus.STOPPED)
        else:
            await self._want(server, instance, Desired.STOPPED, ServerStatus.STOPPING)

    async def _redeploy(self, message: RedeployServer) -> None:
        server, instance = await self._read(message)
        await self._pass_gate(server, message.caller)
        await self._launch(server, message.caller, instance)
        if instance is not None:
            await self._nudge(instance.id)

    async def _delete(self, message: DeleteServer) -> None:
        server, instance = await self._read(message)
        async with self._fleet.database.writing() as conn:
            if instance is not None:
                await vms.set_desired(conn, instance.id, Desired.TERMINATED)
            await servers.delete_server(conn, server.id, self.now())
        if instance is not None:
            await self._nudge(instance.id)

    async def _release(self, message: ReleaseServer) -> None:
        server, _ = await self._read(message)
        async with self._fleet.database.writing() as conn:
            await servers.release_server(
                conn,
                server.id,
                by=message.caller.actor,
                reason=message.reason,
                now=self.now(),
            )

    async def _read(
        self, message: Verb | DeleteServer
    ) -> tuple[Server, vms.Instance | None]:
        """Return the server and its living instance."""
        async with self._fleet.database.reading() as conn:
            server = await servers.get_server(
                conn, message.caller.owner_id, message.server_id
            )
            if server is None:
                raise NotFoundError(f"no server {message.server_id}")
            newest = await vms.list_newest(conn, server.id, limit=1)
        living = newest and newest[0].terminated_at is None
        terminated = newest and newest[0].desired_state == Desired.TERMINATED
        return server, newest[0] if living and not terminated else None

    async def _pass_gate(self, server: Server, caller: Caller) -> None:
        decision = await ask_gate(
            self._fleet.database,
            server.id,
            self.now(),
            backend=self._fleet.equipment.provisioner.name,
            tier=str(server.vm.get("isolation_tier", "standard")),
            for_run=caller.run_id,
        )
        if decision.allowed:
            return
        await self._set_status(server, decision.status)
        raise PlacementBlockedError(
            f"server {server.id}: the placement gate refuses", notes=decision.notes
        )

    async def _launch(
        self, server: Server, caller: Caller, instead: vms.Instance | None = None
    ) -> None:
        name = f"tf-{server.id}-{self.random.getrandbits(32):08x}"
        new = self._fleet.new_instance(server, name)
        insert = new if instead is None else vms.ReplaceInstance(instead.id, new)
        instance_id = await self._fleet.trust.ask(
            OpenInstance(insert=insert, actor=caller.actor), within_s=ASK_S
        )
        await self._set_status(server, ServerStatus.PROVISIONING)
        await self._watch_over(instance_id)

    async def _want(
        self,
        server: Server,
        instance: vms.Instance,
        desired: Desired,
        status: ServerStatus,
    ) -> None:
        async with self._fleet.database.writing() as conn:
            await vms.set_desired(conn, instance.id, desired)
            await servers.set_status(conn, server.id, status)
        await self._nudge(instance.id)

    async def _set_status(self, server: Server, status: ServerStatus) -> None:
        async with self._fleet.database.writing() as conn:
            await servers.set_status(conn, server.id, status)

    async def _nudge(self, instance_id: InstanceId) -> None:
        vm = await self._watch_over(instance_id)
        vm.tell(Look())

    async def _watch_over(self, instance_id: InstanceId) -> Address[Vm]:
        equipment = self._fleet.equipment
        return await self._fleet.vms.start_child(
            str(instance_id), lambda: Vm(instance_id, equipment)
        )

    async def _follow_trust(self, events: Sequence[Event]) -> None:
        """Launch what waited for trust that is back; have VMs look at their own."""
        changes = [event for event in events if isinstance(event, TrustEvent)]
        for event in changes:
            vm = self._fleet.vms.child(str(event.instance_id))
            quarantined = Lifecycle.QUARANTINED in {
                event.lifecycle,
                event.previous_lifecycle,
            }
            if vm is not None and quarantined:
                vm.tell(Look())
        opened = {each.server_id for each in changes if each.lifecycle in _OPENS}
        if opened:
            async with self._fleet.database.reading() as conn:
                waiting = await servers.list_waiting(conn, opened)
            for server_id in waiting:
                await self._try_again(server_id)

    async def _sweep(self) -> None:
        try:
            await self._look_for_waiting()
        except (FabricError, AskError) as error:
            log.warning("servers.sweep-failed", error=str(error))
        self.after(SWEEP_S, _Sweep())

    async def _look_for_waiting(self) -> None:
        # Following again is harmless, and repairs what a broadcaster's death broke.
        await self._fleet.broadcaster.ask(
            Follow(ActorFollower(Stream.TRUST, self.address, _changed)),
            within_s=ASK_S,
        )
        for status in ServerStatus:
            if status.waits_for_gate:
                async with self._fleet.database.reading() as conn:
                    waiting = await servers.list_servers(conn, None, status=status)
                for server in waiting:
                    await self._try_again(server.id)

    async def _try_again(self, server_id: ServerId) -> None:
        caller = Caller(None, "actor:servers")
        async with self._fleet.database.reading() as conn:
            server = await servers.get_server(conn, None, server_id)
        if server is None or not server.status.waits_for_gate:
            return
        try:
            await self._start(StartServer(server_id, caller))
        except (PlacementBlockedError, AlreadyRunningError):
            return
        except (FabricError, AskError) as error:
            log.warning("server.not-resumed", server_id=server_id, error=str(error))


def _changed(events: tuple[Any, ...]) -> _Changed:
    return _Changed(events)
