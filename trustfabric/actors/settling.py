"""What is wanted of servers' VMs: ordered in one commit, and found where nobody told.

An order takes its turn with the gate's decisions, so that of a start and a stop at
once, in whatever runtimes, one comes first.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from trustfabric.db import placement, servers, vms
from trustfabric.db.session import Connection, Database
from trustfabric.domain.ids import InstanceId, OwnerId, ServerId
from trustfabric.domain.power import Desired
from trustfabric.domain.servers import Server, ServerStatus
from trustfabric.errors import NotFoundError

PAGE = 500


async def find(
    conn: Connection, server_id: ServerId, owner_id: OwnerId | None
) -> tuple[Server, vms.Instance | None]:
    """Return a server and its VM, unless that is on its way out. NotFoundError."""
    server = await servers.get_server(conn, owner_id, server_id)
    if server is None:
        raise NotFoundError(f"no server {server_id}")
    newest = await vms.list_newest(conn, server.id, limit=1)
    gone = not newest or newest[0].terminated_at is not None
    if gone or newest[0].desired_state == Desired.TERMINATED:
        return server, None
    return server, newest[0]


async def order_stop(
    database: Database, server_id: ServerId, owner_id: OwnerId | None
) -> vms.Instance | None:
    """Have a server's VM be off; return it where that is still to be done."""
    async with database.writing() as conn:
        await placement.take_turn(conn)
        server, instance = await find(conn, server_id, owner_id)
        stays = Desired.STOPPED
        if instance is not None:
            await vms.set_desired(conn, instance.id, stays)
        # One that waits for its boot is off: no boot is committed after this.
        is_off = instance is None or instance.power_state.off
        status = ServerStatus.STOPPED if is_off else ServerStatus.STOPPING
        await servers.set_status(conn, server.id, status)
    was_to_be_off = instance is None or instance.desired_state == stays
    return None if is_off and was_to_be_off else instance


async def order_end(
    database: Database, server_id: ServerId, owner_id: OwnerId | None, now: datetime
) -> vms.Instance | None:
    """Delete a server; return its VM, which is to be removed."""
    async with database.writing() as conn:
        await placement.take_turn(conn)
        server, instance = await find(conn, server_id, owner_id)
        if instance is not None:
            await vms.set_desired(conn, instance.id, Desired.TERMINATED)
        await servers.delete_server(conn, server.id, now)
    return instance


class Release(NamedTuple):
    """Somebody has seen to it."""

    by: str
    reason: str
    at: datetime


async def order_release(
    database: Database, server_id: ServerId, owner_id: OwnerId | None, seen: Release
) -> None:
    """Let a server launch although its last instance ended distrusted."""
    async with database.writing() as conn:
        server, _ = await find(conn, server_id, owner_id)
        await servers.release_server(
            conn, server.id, by=seen.by, reason=seen.reason, now=seen.at
        )


class Orders(NamedTuple):
    """One page of them."""

    fresh: list[InstanceId]
    """Those whose wanted state is news."""
    goes_on_after: InstanceId | None
    """None: this was the last page."""


@dataclass(slots=True)
class _Pass:
    before: dict[InstanceId, str]
    """What was wanted of each that was unsettled when they were last looked through."""
    now: dict[InstanceId, str]


class Unsettled:
    """Looks through a runtime's unsettled instances again and again.

    An order can be given in any runtime, and only the one that looks after the
    instance carries it out. Each order is told once: who can't carry it out yet tries
    again by itself, in its own time.
    """

    def __init__(self, database: Database, runtime_id: str) -> None:
        self._database = database
        self._runtime_id = runtime_id
        self._pass = _Pass({}, {})

    async def read(self, after: int) -> Orders:
        """Return the orders from beyond this id; 0 begins a new pass."""
        if after == 0:
            self._pass = _Pass(self._pass.now, {})
        async with self._database.reading() as conn:
            found = await vms.list_unsettled(
                conn, self._runtime_id, after=after, limit=PAGE
            )
        self._pass.now.update(found)
        known = self._pass.before
        fresh = [one for one, desired in found if known.get(one) != desired]
        return Orders(fresh, found[-1][0] if len(found) == PAGE else None)
