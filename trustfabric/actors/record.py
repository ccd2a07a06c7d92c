"""What is written down of one VM: its row, its own log, its trust."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import structlog

from trustfabric.actors.equipment import ASK_S, Equipment
from trustfabric.actors.trust import ApplyChange
from trustfabric.db import boots, placement, servers, vms
from trustfabric.db.companions import Companion
from trustfabric.db.session import Connection
from trustfabric.db.vms import Instance
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.power import Desired
from trustfabric.domain.servers import ServerStatus, status_for
from trustfabric.domain.trust import Change, Signal
from trustfabric.domain.vms import PowerState
from trustfabric.errors import FabricError

log = structlog.get_logger(__name__)


class Record:
    """Writes for one instance, and only while no newer start looks after it."""

    def __init__(
        self,
        instance_id: InstanceId,
        equipment: Equipment,
        now: Callable[[], datetime],
    ) -> None:
        self._id = instance_id
        self._use = equipment
        self._now = now

    async def note(
        self,
        instance: Instance,
        power: PowerState,
        event: str,
        *,
        stays_off: bool = False,
        crash: bool = False,
    ) -> None:
        async with self.writing() as conn:
            if stays_off:
                await vms.set_desired(conn, self._id, Desired.STOPPED)
            await vms.set_power(conn, self._id, power, self._now())
            if crash:
                await boots.add_crash(conn, self._id, self._now())
            await vms.log_event(conn, self._id, event)
            status = status_for(power)
            if status is not None and await self._is_newest(conn, instance):
                await servers.note_status(conn, instance.server_id, status)
        log.info("vm.noted", event_type=event, instance_id=self._id, name=instance.name)

    async def note_blocked(self, instance: Instance, error: FabricError) -> None:
        async with self.writing() as conn:
            await vms.set_desired(conn, self._id, Desired.STOPPED)
            await vms.set_power(
                conn, self._id, PowerState.STOPPED, self._now(), error=str(error)
            )
            if await self._is_newest(conn, instance):
                blocked = ServerStatus.BLOCKED
                await servers.set_status(conn, instance.server_id, blocked)

    async def require_ours(self) -> None:
        """Raise ConflictError where a newer start of the runtime looks after it."""
        async with self.writing():
            pass

    async def _is_newest(self, conn: Connection, instance: Instance) -> bool:
        """Tell whether its server's status is about this one."""
        newest = await vms.list_newest(conn, instance.server_id, limit=1)
        return bool(newest) and newest[0].id == self._id

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """Write as the one start of the runtime that looks after it."""
        async with self._use.database.writing() as conn:
            await vms.fence(conn, self._id, self._use.epoch)
            yield conn

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[Connection]:
        """Likewise, to its end: which a trigger marks in the registry's row as well.

        So it takes the registry's turn first: a change of its trust has that row when
        it asks for the VM's.
        """
        async with self._use.database.writing() as conn:
            await placement.take_turn(conn)
            await vms.fence(conn, self._id, self._use.epoch)
            yield conn

    async def begin_boot(self, reason: str, *companions: Companion) -> UUID:
        """Commit a new boot, and with it that nothing is known of it yet."""
        boot = self._use.new_boot_id()
        begun = boots.SetBoot(boot, self._now(), self._use.epoch)
        await self.signal(Signal.BOOTED, reason, *companions, begun)
        return boot

    async def signal(self, signal: Signal, reason: str, *companions: Companion) -> None:
        await self._use.trust.ask(
            ApplyChange(
                instance_id=self._id,
                change=Change(signal=signal, actor=f"vm:{self._id}", reason=reason),
                companions=companions,
            ),
            within_s=ASK_S,
        )
