"""Servers: launches, stops and removes the VM that each runs on.

A launch passes the placement gate or waits for it; one that waits resumes by itself
when trust comes back. What is wanted is committed before anyone acts on it, so the
VM's actor finds it again after any crash.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import structlog

from trustfabric.actors.launcher import Caller, Fleet, Launcher
from trustfabric.actors.pace import Pace
from trustfabric.actors.placement import may_resume
from trustfabric.actors.settling import (
    Release,
    Unsettled,
    find,
    order_end,
    order_release,
    order_stop,
)
from trustfabric.actors.streams import ActorFollower, Event, Follow, Stream
from trustfabric.actors.vms import Look, settled_as
from trustfabric.db import servers, vms
from trustfabric.domain.events import HeldEvent, TrustEvent
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.servers import LaunchVerb, Server
from trustfabric.domain.trust import Lifecycle
from trustfabric.errors import (
    ConflictError,
    FabricError,
)
from trustfabric.supervision import (
    Actor,
    AskError,
    Notice,
    Request,
)

log = structlog.get_logger(__name__)

ASK_S = 10.0
SWEEP_S = 30.0
ORDERS_S = 2.0
"""How late an order is found that was given in another runtime."""

AGAIN_S = 1.0

PAGE = 100
ADOPTED = 500

_OPENS = frozenset({Lifecycle.RESTORED, Lifecycle.SUSPECT})
"""An instance in one of these may let its server's next launch through the gate."""


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
class _Opened(Notice["Servers"]):
    """Try those whose trust was heard of, and may be back."""


@dataclass(frozen=True, slots=True)
class _Sweep(Notice["Servers"]):
    """Look for what waits for the gate, whatever was heard or not."""


@dataclass(frozen=True, slots=True)
class _Waiting(Notice["Servers"]):
    """Try those that wait from beyond this id."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class _Orders(Notice["Servers"]):
    """Have our VMs look that are not as they are wanted."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class _Adopt(Notice["Servers"]):
    """Look after our own from beyond this id: in pages, so that orders go between."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class _TryAgain(Notice["Servers"]):
    server_id: ServerId


Verb = StartServer | StopServer | RedeployServer | ReleaseServer
Looking = _Sweep | _Waiting | _Orders | _Adopt | _TryAgain
Message = CreateServer | Verb | DeleteServer | Gone | _Changed | _Opened | Looking


class Servers(Actor):
    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet
        self._launcher = Launcher(fleet, self.now, self.random)
        self._opened: set[ServerId] = set()
        self._orders = Unsettled(fleet.database, fleet.runtime_id)

    async def on_start(self) -> None:
        self._pace = Pace(self.monotonic)
        await self._adopt(_Adopt())
        self.address.tell(_Sweep())
        self.after(ORDERS_S, _Orders())

    async def handle(self, message: Message) -> Server | None:
        match message:
            case CreateServer(new):
                return await self._create(new)
            case StartServer() | StopServer() | RedeployServer() | ReleaseServer():
                await self._carry_out(message)
                return await self._read(message)
            case DeleteServer():
                await self._delete(message)
            case Gone(instance_id):
                await self._fleet.vms.stop_child(str(instance_id))
            case _Changed(events):
                self._follow_trust(events)
            case _Opened():
                await self._try_opened()
            case _Sweep() | _Waiting() | _Orders() | _Adopt() | _TryAgain():
                await self._look_about(message)
            case _:
                assert_never(message)
        return None

    async def _carry_out(self, message: Verb) -> None:
        match message:
            case StartServer(server_id, caller):
                await self._launcher.launch(LaunchVerb.START, server_id, caller)
            case StopServer():
                await self._stop_vm(message)
            case RedeployServer(server_id, caller):
                await self._launcher.launch(LaunchVerb.REDEPLOY, server_id, caller)
            case ReleaseServer():
                await self._release(message)
            case _:
                assert_never(message)

    async def _create(self, new: servers.NewServer) -> Server:
        async with self._fleet.database.writing() as conn:
            return await servers.insert_server(conn, new)

    # --- the rest of their lives --------------------------------------------------

    async def _stop_vm(self, message: StopServer) -> None:
        who = message.server_id, message.caller.owner_id
        instance = await order_stop(self._fleet.database, *who)
        if instance is not None:
            await self._launcher.nudge(instance)

    async def _delete(self, message: DeleteServer) -> None:
        who = message.server_id, message.caller.owner_id
        instance = await order_end(self._fleet.database, *who, self.now())
        if instance is not None:
            await self._launcher.nudge(instance)

    async def _release(self, message: ReleaseServer) -> None:
        who = message.server_id, message.caller.owner_id
        seen = Release(message.caller.actor, message.reason, self.now())
        await order_release(self._fleet.database, *who, seen)
        self.address.tell(_TryAgain(message.server_id))

    async def _read(self, message: Verb) -> Server:
        async with self._fleet.database.reading() as conn:
            return (await find(conn, message.server_id, message.caller.owner_id))[0]

    def _follow_trust(self, events: Sequence[Event]) -> None:
        """Launch what waited for trust that is back; have VMs look at their own."""
        if any(isinstance(event, HeldEvent) for event in events):
            self.address.tell(_Waiting())
        changes = [event for event in events if isinstance(event, TrustEvent)]
        for event in changes:
            vm = self._fleet.vms.child(str(event.instance_id))
            quarantined = Lifecycle.QUARANTINED in {
                event.lifecycle,
                event.previous_lifecycle,
            }
            if vm is not None and quarantined:
                vm.tell(Look())
        was_idle = not self._opened
        self._opened.update(e.server_id for e in changes if e.lifecycle in _OPENS)
        if was_idle and self._opened:
            self.after(self._pace.rest_s(), _Opened())

    async def _try_opened(self) -> None:
        opened, self._opened = self._opened, set()
        now, most = self.now(), len(opened)
        with self._pace.working():
            waiting = await self._fleet.database.glance(
                lambda conn: servers.list_waiting(conn, now, opened, limit=most)
            )
        for server_id in waiting:
            await self._try_again(server_id)

    # --- what nobody told ---------------------------------------------------------

    async def _look_about(self, message: Looking) -> None:
        try:
            match message:
                case _Sweep():
                    self.after(SWEEP_S, message)
                    await self._follow()
                    self.address.tell(_Waiting())
                case _Waiting(after):
                    await self._try_waiting(after)
                case _Orders(after):
                    await self._look_at_orders(after)
                case _Adopt():
                    await self._adopt(message)
                case _TryAgain(server_id):
                    await self._try_again(server_id)
                case _:
                    assert_never(message)
        except (FabricError, AskError) as error:
            log.warning("servers.look-failed", error=str(error))
            if isinstance(message, _Adopt):
                self.after(AGAIN_S, message)

    async def _adopt(self, page: _Adopt) -> None:
        fleet = self._fleet
        who = fleet.runtime_id, fleet.epoch
        async with fleet.database.writing() as conn:
            living = await vms.adopt_living(conn, *who, after=page.after, limit=ADOPTED)
        elsewhere = {one.id for one in living if not fleet.equipment.is_here(one)}
        if elsewhere:
            here = fleet.equipment.provisioner.endpoint
            log.warning("servers.elsewhere", vms=len(elsewhere), connected_to=here)
        for one in living:
            unsettled = one.unsettled or one.id in elsewhere
            settled = None if unsettled else settled_as(one)
            vm = await self._launcher.watch_over(one.id, settled)
            if unsettled:
                # Its order was committed, and perhaps never told to it.
                vm.tell(Look())
        if len(living) == ADOPTED:
            self.address.tell(_Adopt(living[-1].id))

    async def _follow(self) -> None:
        # Following again is harmless, and repairs what a broadcaster's death broke.
        try:
            for stream in (Stream.TRUST, Stream.HOLDS):
                follow = Follow(ActorFollower(stream, self.address, _changed))
                await self._fleet.broadcaster.ask(follow, within_s=ASK_S)
        except AskError as error:
            log.warning("servers.not-following", error=str(error))

    async def _try_waiting(self, after: int) -> None:
        async with self._fleet.database.reading() as conn:
            now = self.now()
            waiting = await servers.list_waiting(conn, now, after=after, limit=PAGE)
        for server_id in waiting:
            await self._try_again(server_id)
        if len(waiting) == PAGE:
            self.address.tell(_Waiting(waiting[-1]))

    async def _look_at_orders(self, after: int) -> None:
        try:
            orders = await self._orders.read(after)
        except FabricError:
            self.after(ORDERS_S, _Orders())
            raise
        for instance_id in orders.fresh:
            vm = await self._launcher.watch_over(instance_id)
            vm.tell(Look())
        if orders.goes_on_after is None:
            self.after(ORDERS_S, _Orders())
        else:
            self.address.tell(_Orders(orders.goes_on_after))

    async def _try_again(self, server_id: ServerId) -> None:
        caller = Caller(None, "actor:servers")
        try:
            verb = await may_resume(self._fleet.database, server_id, self.now())
            if verb is not None:
                await self._launcher.launch(verb, server_id, caller, resumes=True)
        except ConflictError:
            return  # refused once more, or another runtime was first
        except (FabricError, AskError) as error:
            log.warning("server.not-resumed", server_id=server_id, error=str(error))


def _changed(events: tuple[Any, ...]) -> _Changed:
    return _Changed(events)
