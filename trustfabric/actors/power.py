"""One step of a VM carried out: at its hypervisor, in its row, in its trust.

Everything here may be repeated after any crash.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog

from trustfabric.actors.boots import Boots
from trustfabric.actors.equipment import Equipment
from trustfabric.actors.hypervisor import Unwatch
from trustfabric.actors.record import Record
from trustfabric.db import boots, servers, vms
from trustfabric.db.vms import Instance
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.power import Desired, Seen, Step
from trustfabric.domain.restarts import RestartPolicy
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.trust import Signal
from trustfabric.domain.vms import PowerState, VmSpec
from trustfabric.errors import FabricError, NotFoundError

log = structlog.get_logger(__name__)

GRACE_S = 10.0


class Power:
    """Takes the steps of one VM; `seen` is what it is where a step needs it."""

    def __init__(
        self,
        instance_id: InstanceId,
        equipment: Equipment,
        now: Callable[[], datetime],
    ) -> None:
        self._id = instance_id
        self._use = equipment
        self._now = now
        self._record = Record(instance_id, equipment, now)
        self._boots = Boots(
            instance_id, equipment, self._record, self._end_vanished, now
        )

    async def take(self, step: Step, instance: Instance, seen: Seen | None) -> None:
        """Take one step; afterwards the situation is to be looked at again."""
        takes: dict[Step, Callable[[Instance], Awaitable[None]]] = {
            Step.BOOT: self._boots.boot,
            Step.RELAUNCH: self._boots.relaunch,
            Step.NOTE_CRASH: lambda it: self._note_crash(it, seen),
            Step.NOTE_RUNNING: self._boots.note_running,
            Step.NOTE_STRANGE_BOOT: self._boots.note_strange_boot,
            Step.NOTE_REBOOT: self._boots.note_reboot,
            Step.NOTE_ELSEWHERE: self._note_elsewhere,
            Step.NOTE_MOVED: self._note_moved,
            Step.END_VANISHED: self._end_vanished,
            Step.PAUSE: self._pause,
            Step.RESUME: self._resume,
            Step.STOP: self._switch_off,
            Step.STOP_FOR_HOLD: self._stop_for_hold,
            Step.NOTE_STOPPED: self._note_stopped,
            Step.REMOVE: self._remove,
        }
        await takes[step](instance)

    # --- ended unasked ---------------------------------------------------------

    async def _note_crash(self, instance: Instance, seen: Seen | None) -> None:
        gone, observed = seen is None, None if seen is None else seen.power
        await self._record.signal(
            Signal.VANISHED if gone else Signal.CRASHED,
            "domain vanished" if gone else "domain crashed",
        )
        died_with_us = gone and self._use.provisioner.volatile
        stays_off = not (died_with_us or _policy(instance).relaunches(observed))
        power = PowerState.VANISHED if gone else PowerState.CRASHED
        event = "vanished" if gone else "crashed"
        await self._record.note(
            instance, power, event, stays_off=stays_off, crash=not died_with_us
        )

    async def _end_vanished(self, instance: Instance) -> None:
        """Terminate it: its disk, its TPM's keys and its name went with its domain.

        Its server gets a new instance, through the gate, where its policy says so or
        somebody asked for a start. One that shall be off stays without until then.
        """
        await self._record.signal(Signal.VANISHED, "domain vanished")
        await self._use.tpms.remove(instance.name)
        if (made_from := self._made_from(instance)) is not None:
            await self._use.provisioner.forget(made_from)
        why = f"its hypervisor has no domain {instance.name} any more"
        if instance.last_error is not None:  # why it was off, maybe
            why = f"{instance.last_error}; {why}"
        async with self._record.ending() as conn:
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

    def _made_from(self, instance: Instance) -> VmSpec | None:
        """Return its specification, unless the settings make none of it now."""
        try:
            return self._use.spec_of(instance)
        except FabricError as error:
            log.warning("vm.no-spec", instance_id=self._id, error=str(error))
            return None

    # --- at another hypervisor -------------------------------------------------

    async def _note_elsewhere(self, instance: Instance) -> None:
        why = self._use.elsewhere(instance)
        log.warning("vm.elsewhere", instance_id=self._id, reason=why)
        async with self._record.writing() as conn:
            await vms.set_power(
                conn, self._id, PowerState.UNKNOWN, self._now(), error=why
            )
            await vms.log_event(conn, self._id, "elsewhere", {"reason": why})

    async def _note_moved(self, instance: Instance) -> None:
        here = self._use.provisioner
        async with self._record.writing() as conn:
            await boots.set_endpoint(conn, self._id, here.name, here.endpoint)
            ways = {"from": instance.endpoint, "to": here.endpoint}
            await vms.log_event(conn, self._id, "moved", ways)

    # --- held and switched off -------------------------------------------------

    async def _pause(self, instance: Instance) -> None:
        await self._use.provisioner.pause(instance.name)
        await self._record.note(instance, PowerState.PAUSED, "paused")

    async def _resume(self, instance: Instance) -> None:
        await self._use.provisioner.resume(instance.name)
        await self._record.note(instance, PowerState.RUNNING, "resumed")

    async def _stop_for_hold(self, instance: Instance) -> None:
        # From here on it waits, whatever comes between; unless somebody has it stop.
        async with self._record.writing() as conn:
            await vms.set_desired(conn, self._id, Desired.STOPPED)
            await servers.set_status(
                conn, instance.server_id, ServerStatus.PENDING_REMEDIATION
            )
        await self._switch_off(instance)

    async def _switch_off(self, instance: Instance) -> None:
        async with self._record.writing() as conn:
            await vms.set_power(conn, self._id, PowerState.STOPPING, self._now())
            await servers.note_status(conn, instance.server_id, ServerStatus.STOPPING)
        try:
            await self._use.provisioner.stop(instance.name, grace_s=GRACE_S)
        except NotFoundError:
            log.info("vm.was-gone", instance_id=self._id)
        await self._use.tpms.stop(instance.name)
        await self._note_stopped(instance)

    async def _note_stopped(self, instance: Instance) -> None:
        await self._record.note(instance, PowerState.STOPPED, "stopped")

    async def _remove(self, instance: Instance) -> None:
        await self._use.provisioner.undefine(instance.name, self._made_from(instance))
        await self._use.tpms.remove(instance.name)
        async with self._record.ending() as conn:
            await vms.set_power(
                conn, self._id, PowerState.STOPPED, self._now(), terminated=True
            )
            await vms.log_event(conn, self._id, "torn-down")
        self._use.hypervisor.tell(Unwatch(instance.name))


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
