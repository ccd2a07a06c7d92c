"""One step of a VM carried out: at its hypervisor, in its row, in its trust.

Everything here may be repeated after any crash: a new boot is committed, and trust
falls, before the domain is started.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import structlog

from trustfabric.actors.attestation import Attest, Attestation
from trustfabric.actors.hypervisor import Hypervisor, Unwatch
from trustfabric.actors.placement import RELAUNCH, Launch, PassGate, keep_down
from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import attestations, boots, launches, placement, servers, vms
from trustfabric.db.companions import Companion
from trustfabric.db.session import Connection, Database
from trustfabric.db.vms import Instance
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.ports import Provisioner, Tpm
from trustfabric.domain.power import Desired, Hold, Step
from trustfabric.domain.restarts import RestartPolicy
from trustfabric.domain.servers import ServerStatus, status_for
from trustfabric.domain.trust import Change, Signal
from trustfabric.domain.vms import PowerState, VmSpec, is_structural
from trustfabric.errors import (
    AlreadyRunningError,
    FabricError,
    NotFoundError,
    PlacementBlockedError,
)
from trustfabric.supervision import Address

log = structlog.get_logger(__name__)

ASK_S = 10.0
GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Equipment:
    """What every VM actor works with."""

    database: Database
    provisioner: Provisioner
    hypervisor: Address[Hypervisor]
    trust: Address[TrustRegistry]
    attestation: Address[Attestation]
    tpms: Tpm
    spec_of: Callable[[Instance], VmSpec]
    quarantine_action: Hold
    epoch: int
    """Of this start of the runtime: it writes nothing that a newer one looks after."""
    new_boot_id: Callable[[], UUID]
    gone: Callable[[InstanceId], None]
    """Called when an instance is removed for good: its actor is to be let go."""


class Power:
    """Takes the steps of one VM; `observed` is its power where a step needs it."""

    def __init__(
        self,
        instance_id: InstanceId,
        equipment: Equipment,
        now: Callable[[], datetime],
    ) -> None:
        self._id = instance_id
        self._use = equipment
        self._now = now

    async def take(
        self, step: Step, instance: Instance, observed: PowerState | None
    ) -> None:
        """Take one step; afterwards the situation is to be looked at again."""
        takes: dict[Step, Callable[[Instance], Awaitable[None]]] = {
            Step.BOOT: self._boot,
            Step.RELAUNCH: self._relaunch,
            Step.NOTE_CRASH: lambda it: self._note_crash(it, observed),
            Step.NOTE_RUNNING: self._note_running,
            Step.NOTE_STRANGE_BOOT: self._note_strange_boot,
            Step.NOTE_REBOOT: self._note_reboot,
            Step.END_VANISHED: self._end_vanished,
            Step.PAUSE: self._pause,
            Step.RESUME: self._resume,
            Step.STOP: self._switch_off,
            Step.STOP_FOR_HOLD: self._stop_for_hold,
            Step.NOTE_STOPPED: lambda it: self._note(it, PowerState.STOPPED, "stopped"),
            Step.REMOVE: self._remove,
        }
        await takes[step](instance)

    # --- booting ---------------------------------------------------------------

    async def _relaunch(self, instance: Instance) -> None:
        launch = Launch(
            server_id=instance.server_id,
            verb=RELAUNCH,
            backend=instance.driver,
            tier=instance.isolation_tier,
        )
        try:
            await self._boot(instance, PassGate(launch, self._now()))
        except PlacementBlockedError:
            await keep_down(
                self._use.database,
                launch,
                self._id,
                epoch=self._use.epoch,
                now=self._now(),
            )

    async def _boot(self, instance: Instance, *gate: PassGate) -> None:
        try:
            instance = await self._define(instance)
            await self._signal(Signal.BOOTED, "new boot", *gate, boots_anew=True)
            if instance.attestation.get("source") == "swtpm":
                await self._boot_tpm(instance)
            await self._start(instance)
        except PlacementBlockedError:
            raise
        except FabricError as error:
            if is_structural(error):
                await self._note_blocked(instance, error)
            raise
        await self._note_running(instance)

    async def _define(self, instance: Instance) -> Instance:
        """Make it known to its hypervisor; return it under the name it has there."""
        provisioner = self._use.provisioner
        if instance.defined_at is not None and not provisioner.observes:
            return instance  # made once; such a hypervisor can't be asked for it
        defined = await provisioner.define(self._use.spec_of(instance))
        if defined.launch is not None:
            async with self._writing() as conn:
                await launches.set_launch(conn, self._id, defined.launch, self._now())
        if instance.defined_at is None:
            async with self._writing() as conn:
                await boots.set_defined(conn, self._id, defined, self._now())
                await vms.log_event(
                    conn, self._id, "defined", {"notes": list(defined.notes)}
                )
        return replace(instance, name=defined.hypervisor_name)

    async def _start(self, instance: Instance) -> None:
        try:
            await self._use.provisioner.start(instance.name)
        except AlreadyRunningError:
            log.info("vm.ran-already", instance_id=self._id)
        except NotFoundError:
            if self._use.provisioner.observes:
                raise  # the next look finds out what became of it
            await self._end_vanished(instance)
            raise

    async def _boot_tpm(self, instance: Instance) -> None:
        await self._use.tpms.start(instance.name)
        async with self._use.database.reading() as conn:
            known = await attestations.list_keys(conn, self._id)
        if not known:
            # Enrolled once, when the VM is defined; no later boot brings its own.
            key = await self._use.tpms.enroll(instance.name)
            async with self._writing() as conn:
                await attestations.add_key(conn, self._id, key)

    async def _note_running(self, instance: Instance) -> None:
        await self._note(instance, PowerState.RUNNING, "started")
        self._use.attestation.tell(Attest(self._id, "boot"))

    async def _note_strange_boot(self, instance: Instance) -> None:
        await self._signal(Signal.BOOTED, "booted outside", boots_anew=True)
        await self._note_running(instance)

    async def _note_reboot(self, instance: Instance) -> None:
        """Its domain ran on; that it runs is noted, and attested, next."""
        await self._signal(Signal.BOOTED, "guest rebooted", boots_anew=True)
        async with self._writing() as conn:
            await vms.log_event(
                conn, self._id, "rebooted", {"times": instance.reboots_due}
            )

    # --- ended unasked ---------------------------------------------------------

    async def _note_crash(
        self, instance: Instance, observed: PowerState | None
    ) -> None:
        gone = observed is None
        await self._signal(
            Signal.VANISHED if gone else Signal.CRASHED,
            "domain vanished" if gone else "domain crashed",
        )
        died_with_us = gone and self._use.provisioner.volatile
        stays_off = not (died_with_us or _policy(instance).relaunches(observed))
        power = PowerState.VANISHED if gone else PowerState.CRASHED
        event = "vanished" if gone else "crashed"
        await self._note(
            instance, power, event, stays_off=stays_off, crash=not died_with_us
        )

    async def _end_vanished(self, instance: Instance) -> None:
        """Terminate it: its disk, its TPM's keys and its name went with its domain.

        Its server gets a new instance, through the gate, where its policy says so or
        somebody asked for a start. One that shall be off stays without until then.
        """
        await self._signal(Signal.VANISHED, "domain vanished")
        await self._use.tpms.remove(instance.name)
        why = f"its hypervisor has no domain {instance.name} any more"
        if instance.last_error is not None:  # why it was off, maybe
            why = f"{instance.last_error}; {why}"
        async with self._ending() as conn:
            # A start may have been ordered since it was looked at.
            now = await vms.get_instance(conn, None, self._id)
            status = _status_without(now or instance)
            newest = await vms.list_newest(conn, instance.server_id, limit=1)
            if status is not None and newest and newest[0].id == self._id:
                await servers.note_status(conn, instance.server_id, status)
            await vms.set_desired(conn, self._id, Desired.TERMINATED)
            await vms.set_power(
                conn,
                self._id,
                PowerState.VANISHED,
                self._now(),
                error=why,
                terminated=True,
            )
            await vms.log_event(conn, self._id, "vanished", {"reason": why})
        log.warning("vm.vanished", instance_id=self._id, name=instance.name)
        self._use.hypervisor.tell(Unwatch(instance.name))

    # --- held and switched off -------------------------------------------------

    async def _pause(self, instance: Instance) -> None:
        await self._use.provisioner.pause(instance.name)
        await self._note(instance, PowerState.PAUSED, "paused")

    async def _resume(self, instance: Instance) -> None:
        await self._use.provisioner.resume(instance.name)
        await self._note(instance, PowerState.RUNNING, "resumed")

    async def _stop_for_hold(self, instance: Instance) -> None:
        # From here on it waits, whatever comes between; unless somebody has it stop.
        async with self._writing() as conn:
            await vms.set_desired(conn, self._id, Desired.STOPPED)
            await servers.set_status(
                conn, instance.server_id, ServerStatus.PENDING_REMEDIATION
            )
        await self._switch_off(instance)

    async def _switch_off(self, instance: Instance) -> None:
        async with self._writing() as conn:
            await vms.set_power(conn, self._id, PowerState.STOPPING, self._now())
            await servers.note_status(conn, instance.server_id, ServerStatus.STOPPING)
        try:
            await self._use.provisioner.stop(instance.name, grace_s=GRACE_S)
        except NotFoundError:
            log.info("vm.was-gone", instance_id=self._id)
        await self._use.tpms.stop(instance.name)
        await self._note(instance, PowerState.STOPPED, "stopped")

    async def _remove(self, instance: Instance) -> None:
        await self._use.provisioner.undefine(instance.name)
        await self._use.tpms.remove(instance.name)
        async with self._ending() as conn:
            await vms.set_power(
                conn, self._id, PowerState.STOPPED, self._now(), terminated=True
            )
            await vms.log_event(conn, self._id, "torn-down")
        self._use.hypervisor.tell(Unwatch(instance.name))

    # --- writing down ----------------------------------------------------------

    async def _note(
        self,
        instance: Instance,
        power: PowerState,
        event: str,
        *,
        stays_off: bool = False,
        crash: bool = False,
    ) -> None:
        async with self._writing() as conn:
            if stays_off:
                await vms.set_desired(conn, self._id, Desired.STOPPED)
            await vms.set_power(conn, self._id, power, self._now())
            if crash:
                await boots.add_crash(conn, self._id, self._now())
            await vms.log_event(conn, self._id, event)
            status = status_for(power)
            newest = await vms.list_newest(conn, instance.server_id, limit=1)
            if status is not None and newest and newest[0].id == self._id:
                await servers.note_status(conn, instance.server_id, status)
        log.info("vm.noted", event_type=event, instance_id=self._id, name=instance.name)

    async def _note_blocked(self, instance: Instance, error: FabricError) -> None:
        async with self._writing() as conn:
            await vms.set_desired(conn, self._id, Desired.STOPPED)
            await vms.set_power(
                conn, self._id, PowerState.STOPPED, self._now(), error=str(error)
            )
            await servers.set_status(conn, instance.server_id, ServerStatus.BLOCKED)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Connection]:
        """Write as the one start of the runtime that looks after it."""
        async with self._use.database.writing() as conn:
            await vms.fence(conn, self._id, self._use.epoch)
            yield conn

    @asynccontextmanager
    async def _ending(self) -> AsyncIterator[Connection]:
        """Likewise, to its end: which a trigger marks in the registry's row as well.

        So it takes the registry's turn first: a change of its trust has that row when
        it asks for the VM's.
        """
        async with self._use.database.writing() as conn:
            await placement.take_turn(conn)
            await vms.fence(conn, self._id, self._use.epoch)
            yield conn

    async def _signal(
        self,
        signal: Signal,
        reason: str,
        *gate: PassGate,
        boots_anew: bool = False,
    ) -> None:
        companions: tuple[Companion, ...] = gate
        if boots_anew:
            boot_id = self._use.new_boot_id()
            boot = boots.SetBoot(boot_id, self._now(), self._use.epoch)
            companions = (*gate, boot)
        await self._use.trust.ask(
            ApplyChange(
                instance_id=self._id,
                change=Change(signal=signal, actor=f"vm:{self._id}", reason=reason),
                companions=companions,
            ),
            within_s=ASK_S,
        )


def _status_without(instance: Instance) -> ServerStatus | None:
    """Return what its server becomes when its domain is gone; None leaves it so."""
    if instance.desired_state == Desired.STOPPED:
        return None
    asked_for = instance.power_state not in {PowerState.RUNNING, PowerState.PAUSED}
    if asked_for or _policy(instance).relaunches(None):
        return ServerStatus.PENDING_ATTESTATION
    return ServerStatus.ERROR


def _policy(instance: Instance) -> RestartPolicy:
    return RestartPolicy(instance.vm.get("restart", RestartPolicy.ALWAYS))
