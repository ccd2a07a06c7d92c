"""Asking the placement gate: decided, kept and acted on in one transaction.

Whatever could veto a launch takes turns with it, in every runtime on the database: so
a veto is seen by the decision, or comes after the launch and finds it there. What goes
wrong on the way raises: a gate that can't be evaluated refuses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from trustfabric.actors.settling import find
from trustfabric.db import placement, servers, vms
from trustfabric.db.session import Connection, Database
from trustfabric.domain.ids import InstanceId, OwnerId, RunId, ServerId
from trustfabric.domain.placement import Decision, decide, policy_notes
from trustfabric.domain.power import Desired
from trustfabric.domain.servers import LaunchVerb, Server, ServerStatus
from trustfabric.domain.trust import Snapshot
from trustfabric.errors import (
    AlreadyRunningError,
    ConflictError,
    PlacementBlockedError,
)

RELAUNCH = "relaunch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What the gate is asked to let pass."""

    server_id: ServerId
    verb: str
    backend: str
    tier: str
    for_run: RunId | None = None


async def judge(conn: Connection, launch: Launch, now: datetime) -> Decision:
    """Decide and keep the decision, in a transaction whose turn it is."""
    situation = await placement.read_situation(conn, launch.server_id, now)
    decision = decide(situation, now, for_run=launch.for_run)
    await placement.record_decision(
        conn,
        placement.PolicyDecision(
            server_id=launch.server_id,
            backend=launch.backend,
            tier=launch.tier,
            verb=launch.verb,
            notes=(*decision.notes, *policy_notes(situation)),
            blocking=decision.blocking,
            inputs=situation.inputs,
            allowed=decision.allowed,
            decided_at=now,
        ),
    )
    return decision


def blocked(server_id: ServerId, decision: Decision) -> PlacementBlockedError:
    """Return the refusal as whoever asked is told it."""
    return PlacementBlockedError(
        f"server {server_id}: the placement gate refuses", notes=decision.notes
    )


async def explain(
    database: Database, server_id: ServerId, now: datetime
) -> tuple[Decision, tuple[str, ...]]:
    """Say what the gate would answer now, and the policy engine's notes."""
    async with database.reading() as conn:
        situation = await placement.read_situation(conn, server_id, now)
    return decide(situation, now), policy_notes(situation)


async def may_resume(
    database: Database, server_id: ServerId, now: datetime
) -> LaunchVerb | None:
    """Return what a server waits to do, where the gate would let it now.

    Nothing is kept of this look: that a refusal stands is no news.
    """
    async with database.reading() as conn:
        server = await servers.get_server(conn, None, server_id)
        if server is None or not server.status.waits_for_gate:
            return None
        situation = await placement.read_situation(conn, server_id, now)
    return server.waits_for if decide(situation, now).allowed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A start or a redeployment that somebody asks for."""

    server_id: ServerId
    owner_id: OwnerId | None
    verb: LaunchVerb
    backend: str
    tier: str
    now: Callable[[], datetime]
    for_run: RunId | None = None
    resumes: bool = False
    """Only where the server still waits for just this."""
    again: InstanceId | None = None
    """The VM that is to run again; None: a new one is."""

    async def settle(self, conn: Connection) -> Decision | None:
        """Decide, and write what comes of it but for a new instance.

        None where the VM that is to run again is no more: nothing was decided.
        AlreadyRunningError where there is nothing to do, NotFoundError.
        """
        await placement.take_turn(conn)
        server, instance = await self.look(conn)
        if self.again not in {None, instance and instance.id}:
            return None
        decision = await self.ask(conn)
        if not decision.allowed:
            await servers.set_status(conn, server.id, decision.status, self.verb)
        elif instance is not None and self.verb is LaunchVerb.START:
            await vms.set_desired(conn, instance.id, Desired.RUNNING)
            await servers.set_status(conn, server.id, ServerStatus.STARTING)
        return decision

    async def look(self, conn: Connection) -> tuple[Server, vms.Instance | None]:
        """Read the server and its VM, and whether there is something to do."""
        server, instance = await find(conn, self.server_id, self.owner_id)
        runs = instance is not None and instance.desired_state == Desired.RUNNING
        if self.verb is LaunchVerb.START and runs:
            raise AlreadyRunningError(f"server {server.id} runs or is starting")
        waits = server.status.waits_for_gate and server.waits_for is self.verb
        if self.resumes and not waits:
            raise AlreadyRunningError(f"server {server.id} waits no longer")
        return server, instance

    async def ask(self, conn: Connection) -> Decision:
        launch = Launch(
            server_id=self.server_id,
            verb=self.verb,
            backend=self.backend,
            tier=self.tier,
            for_run=self.for_run,
        )
        return await judge(conn, launch, self.now())


@dataclass(frozen=True, slots=True)
class Opening:
    """The insert of the instance that an order makes: in one commit with its gate.

    PlacementBlockedError undoes it all; `Order.settle` then keeps the refusal.
    """

    order: Order
    insert: vms.NewInstance
    instead: InstanceId | None
    """The VM whose place it takes."""

    async def write(self, conn: Connection) -> InstanceId:
        await placement.take_turn(conn)
        server, instance = await self.order.look(conn)
        if self.instead != (instance and instance.id):
            raise ConflictError(f"server {server.id} was launched meanwhile")
        decision = await self.order.ask(conn)
        if not decision.allowed:
            raise blocked(server.id, decision)
        made = await self._insert().write(conn)
        # The server's row after the VM's, as everybody locks them.
        await servers.set_status(conn, server.id, ServerStatus.PROVISIONING)
        return made

    def _insert(self) -> vms.NewInstance | vms.ReplaceInstance:
        if self.instead is None:
            return self.insert
        return vms.ReplaceInstance(self.instead, self.insert)


@dataclass(frozen=True, slots=True)
class PassGate:
    """Companion: a boot after a crash passes the gate, or nothing of it happens.

    The registry's transaction has its turn. PlacementBlockedError; `keep_down` then
    keeps the refusal.
    """

    launch: Launch
    now: datetime

    async def write(self, conn: Connection, before: Snapshot) -> None:  # noqa: ARG002
        decision = await judge(conn, self.launch, self.now)
        if not decision.allowed:
            raise blocked(self.launch.server_id, decision)


async def keep_down(
    database: Database,
    launch: Launch,
    instance_id: InstanceId,
    *,
    epoch: int,
    now: datetime,
) -> bool:
    """Have a crashed VM wait for the gate; False: it is open again by now."""
    async with database.writing() as conn:
        await placement.take_turn(conn)
        await vms.fence(conn, instance_id, epoch)
        decision = await judge(conn, launch, now)
        if not decision.allowed:
            await vms.set_desired(conn, instance_id, Desired.STOPPED)
            await servers.set_status(conn, launch.server_id, decision.status)
    return not decision.allowed
