"""Launches of servers' VMs through the gate, and the actors that look after them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from random import Random

from trustfabric.actors.equipment import Equipment
from trustfabric.actors.placement import Opening, Order, blocked
from trustfabric.actors.settling import find
from trustfabric.actors.streams import Broadcaster
from trustfabric.actors.trust import OpenInstance, TrustRegistry
from trustfabric.actors.vms import Look, Settled, Vm, vm_maker
from trustfabric.db import vms
from trustfabric.db.session import Database
from trustfabric.db.vms import NewInstance
from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId
from trustfabric.domain.servers import LaunchVerb, Server
from trustfabric.errors import ConflictError, PlacementBlockedError
from trustfabric.supervision import Address, DynamicAddress

ASK_S = 10.0
TRIES = 3
"""Of a launch whose gate opens while its refusal is written down."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: narrowed to an owner, and to its instance where a run asks."""

    owner_id: OwnerId | None
    actor: str
    run_id: RunId | None = None


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


class Launcher:
    """Launches for the actor that owns it."""

    def __init__(
        self, fleet: Fleet, now: Callable[[], datetime], random: Random
    ) -> None:
        self._fleet = fleet
        self._now = now
        self._random = random

    async def launch(
        self,
        verb: LaunchVerb,
        server_id: ServerId,
        caller: Caller,
        *,
        resumes: bool = False,
    ) -> None:
        """Launch through the gate, or have it wait: PlacementBlockedError."""
        for _ in range(TRIES):
            async with self._fleet.database.reading() as conn:
                server, instance = await find(conn, server_id, caller.owner_id)
            new = self._new_instance(server)
            again = instance if verb is LaunchVerb.START else None
            order = Order(
                server_id=server_id,
                owner_id=caller.owner_id,
                verb=verb,
                backend=new.driver,
                tier=(again or new).isolation_tier,
                now=self._now,
                for_run=caller.run_id,
                resumes=resumes,
                again=None if again is None else again.id,
            )
            if again is not None:
                if await self._settle(order):
                    return await self.nudge(again)
                continue  # it went away meanwhile
            opening = Opening(order, new, None if instance is None else instance.id)
            try:
                await self._open(opening, caller)
            except PlacementBlockedError:
                await self._settle(order)  # which keeps the refusal
            else:
                return None if instance is None else await self.nudge(instance)
        raise ConflictError(f"server {server_id}: its gate opens and closes; try again")

    def _new_instance(self, server: Server) -> NewInstance:
        name = f"tf-{server.id}-{self._random.getrandbits(32):08x}"
        return self._fleet.new_instance(server, name)

    async def _settle(self, order: Order) -> bool:
        """Keep what the gate decides; False: there is no VM to run again."""
        async with self._fleet.database.writing() as conn:
            decision = await order.settle(conn)
        if decision is not None and not decision.allowed:
            raise blocked(order.server_id, decision)
        return decision is not None

    async def _open(self, opening: Opening, caller: Caller) -> None:
        instance_id = await self._fleet.trust.ask(
            OpenInstance(insert=opening, actor=caller.actor), within_s=ASK_S
        )
        await self.watch_over(instance_id)

    async def nudge(self, instance: vms.Instance) -> None:
        """Have its actor look, where it is ours; another runtime finds the order."""
        if instance.runtime_owner == self._fleet.runtime_id:
            vm = await self.watch_over(instance.id)
            vm.tell(Look())

    async def watch_over(
        self, instance_id: InstanceId, settled: Settled | None = None
    ) -> Address[Vm]:
        """Have it looked after; `settled` spares its actor the first look."""
        return await self._fleet.vms.start_child(
            str(instance_id), vm_maker(instance_id, self._fleet.equipment, settled)
        )
