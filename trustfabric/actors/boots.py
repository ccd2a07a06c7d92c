"""The boots of one VM: ours, and those that others began.

Everything here may be repeated after any crash: a new boot is committed, and trust
falls, before the domain is started.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import structlog

from trustfabric.actors.attestation import Attest
from trustfabric.actors.equipment import Equipment
from trustfabric.actors.placement import RELAUNCH, Launch, PassGate, keep_down
from trustfabric.actors.record import Record
from trustfabric.db import attestations, boots, launches, vms
from trustfabric.db.vms import Instance
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.vms import PowerState, is_structural
from trustfabric.errors import (
    AlreadyRunningError,
    ConflictError,
    FabricError,
    InvalidError,
    NotFoundError,
    NotWantedError,
    PlacementBlockedError,
)

log = structlog.get_logger(__name__)


class Boots:
    """Begins them, and notes them."""

    def __init__(
        self,
        instance_id: InstanceId,
        equipment: Equipment,
        record: Record,
        end_vanished: Callable[[Instance], Awaitable[None]],
        now: Callable[[], datetime],
    ) -> None:
        self._id = instance_id
        self._use = equipment
        self._record = record
        self._end_vanished = end_vanished
        self._now = now

    async def relaunch(self, instance: Instance) -> None:
        launch = Launch(
            server_id=instance.server_id,
            verb=RELAUNCH,
            backend=instance.driver,
            tier=instance.isolation_tier,
        )
        try:
            await self.boot(instance, PassGate(launch, self._now()))
        except PlacementBlockedError:
            await keep_down(
                self._use.database,
                launch,
                self._id,
                epoch=self._use.epoch,
                now=self._now(),
            )

    async def boot(self, instance: Instance, *gate: PassGate) -> None:
        try:
            async with self._blocking(instance):
                instance = await self._define(instance)
                wanted = boots.StillWanted()
                boot = await self._record.begin_boot("new boot", wanted, *gate)
                await self._boot_tpm(instance)
                if await self._start(instance, boot):
                    await self.note_running(instance)
        except NotWantedError as error:
            log.info("vm.not-started", instance_id=self._id, reason=str(error))

    @asynccontextmanager
    async def _blocking(self, instance: Instance) -> AsyncIterator[None]:
        """Where its hypervisor can't have it as asked, leave it off for a person."""
        try:
            yield
        except (PlacementBlockedError, NotWantedError):
            raise
        except FabricError as error:
            if is_structural(error):
                await self._switch_off(instance)
                await self._record.note_blocked(instance, error)
            raise

    async def _switch_off(self, instance: Instance) -> None:
        """Cut the power of what may run: somebody else's start, or a cut one of ours.

        Of what couldn't be defined, too; but never of what a newer start looks after.
        """
        await self._record.require_ours()
        if instance.defined_at is not None:
            with suppress(NotFoundError):
                await self._use.provisioner.stop(instance.name, grace_s=0)

    async def _define(self, instance: Instance) -> Instance:
        """Make it known to its hypervisor; return it under the name it has there."""
        provisioner = self._use.provisioner
        if instance.defined_at is not None and not provisioner.observes:
            return instance  # made once; such a hypervisor can't be asked for it
        defined = await provisioner.define(self._use.spec_of(instance))
        if defined.launch is not None:
            async with self._record.writing() as conn:
                await launches.set_launch(conn, self._id, defined.launch, self._now())
        notes = {"notes": list(defined.notes)}
        if instance.defined_at is None or instance.capability_notes != defined.notes:
            async with self._record.writing() as conn:
                await boots.set_defined(conn, self._id, defined, self._now())
                await vms.log_event(conn, self._id, "defined", notes)
        return replace(instance, name=defined.hypervisor_name)

    async def _start(self, instance: Instance, boot: UUID) -> bool:
        """Start it; False where something else ran, and is off."""
        try:
            await self._use.provisioner.start(instance.name, boot)
        except AlreadyRunningError:
            log.info("vm.ran-already", instance_id=self._id)
            return await self._adopt(instance, boot)
        except NotFoundError:
            if self._use.provisioner.observes:
                raise  # the next look finds out what became of it
            await self._end_vanished(instance)
            raise
        return True

    async def _boot_tpm(self, instance: Instance) -> None:
        """Boot the software TPM beside it with it, where it has one."""
        if instance.attestation.get("source") != "swtpm":
            return
        await self._use.tpms.start(instance.name)
        async with self._use.database.reading() as conn:
            known = await attestations.list_keys(conn, self._id)
        if not known:
            # Enrolled once, when the VM is defined; no later boot brings its own.
            key = await self._use.tpms.enroll(instance.name)
            async with self._record.writing() as conn:
                await attestations.add_key(conn, self._id, key)

    async def note_running(self, instance: Instance) -> None:
        await self._record.note(instance, PowerState.RUNNING, "started")
        self._use.attestation.tell(Attest(self._id, "boot"))

    async def note_strange_boot(self, instance: Instance) -> None:
        """Take it for what it should be, or boot it as it should be, which comes next.

        Whoever started it may have changed it before.
        """
        boot = await self._record.begin_boot("booted outside")
        async with self._blocking(instance):
            instance = await self._define(instance)
            await self._boot_tpm(instance)
            if await self._adopt(instance, boot):
                await self.note_running(instance)

    async def _adopt(self, instance: Instance, boot: UUID) -> bool:
        """Mark what runs as `boot`; False where it is off, or was not as asked."""
        try:
            await self._use.provisioner.adopt(instance.name, boot)
        except ConflictError:
            return False
        except InvalidError as error:
            log.warning("vm.not-as-asked", instance_id=self._id, error=str(error))
            async with self._record.writing() as conn:
                await vms.log_event(
                    conn, self._id, "not-as-asked", {"reason": str(error)}
                )
            return False
        return True

    async def note_reboot(self, instance: Instance) -> None:
        """Its domain ran on; that it runs is noted, and attested, next."""
        boot = await self._record.begin_boot("guest rebooted")
        async with self._record.writing() as conn:
            await vms.log_event(
                conn, self._id, "rebooted", {"times": instance.reboots_due}
            )
        try:
            await self._use.provisioner.mark(instance.name, boot)
        except ConflictError:
            return  # off, which comes next
        await self._record.note(instance, instance.power_state, "started")
        self._use.attestation.tell(Attest(self._id, "boot"))
