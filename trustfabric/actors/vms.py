"""One VM instance: makes its power what is wanted, and tells trust what happened.

The actor holds nothing that the database doesn't: on every restart it reads its row,
asks the hypervisor what is, and goes on with the next step (domain/power.py). A new
boot is committed, and trust falls, before the domain is started.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import assert_never
from uuid import UUID

import structlog

from trustfabric.actors.attestation import Attest, Attestation
from trustfabric.actors.hypervisor import (
    Hypervisor,
    PowerOf,
    RebootsNoted,
    RebootsOf,
    Unwatch,
    Watcher,
)
from trustfabric.actors.placement import ask_gate
from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import attestations, servers, trust, vms
from trustfabric.db.session import Connection, Database
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.ports import Provisioner, Tpm
from trustfabric.domain.power import (
    Desired,
    Hold,
    RestartPolicy,
    Step,
    next_step,
    relaunch_wait,
)
from trustfabric.domain.servers import ServerStatus, status_for
from trustfabric.domain.trust import Change, Lifecycle, Signal
from trustfabric.domain.vms import PowerState, VmSpec, is_structural
from trustfabric.errors import (
    AlreadyRunningError,
    ConflictError,
    FabricError,
    NotFoundError,
)
from trustfabric.supervision import Actor, Address, AskError, Notice, Timer

log = structlog.get_logger(__name__)

ASK_S = 10.0
GRACE_S = 10.0
RETRY_S = (0.5, 30.0)


@dataclass(frozen=True, slots=True)
class Equipment:
    """What every VM actor works with."""

    database: Database
    provisioner: Provisioner
    hypervisor: Address[Hypervisor]
    trust: Address[TrustRegistry]
    attestation: Address[Attestation]
    tpms: Tpm
    spec_of: Callable[[vms.Instance], VmSpec]
    quarantine_action: Hold
    epoch: int
    """Of this start of the runtime: it writes nothing that a newer one looks after."""
    new_boot_id: Callable[[], UUID]
    gone: Callable[[InstanceId], None]
    """Called when an instance is removed for good: its actor is to be let go."""


@dataclass(frozen=True, slots=True)
class Look(Notice["Vm"]):
    """Something may have changed: look, and take the next step."""


@dataclass(frozen=True, slots=True)
class Rebooted(Notice["Vm"]):
    """The guest booted again inside its running domain."""


@dataclass(frozen=True, slots=True)
class _Done(Notice["Vm"]):
    step: Step
    error: BaseException | None


class Vm(Actor):
    def __init__(self, instance_id: InstanceId, equipment: Equipment) -> None:
        super().__init__()
        self._id = instance_id
        self._use = equipment
        self._busy: Step | None = None
        self._look_again = False
        self._failures = 0
        self._crashes: list[float] = []
        self._name: str | None = None
        self._next: Timer | None = None

    async def on_start(self) -> None:
        self.address.tell(Look())

    async def handle(self, message: Look | Rebooted | _Done) -> None:
        match message:
            case Look():
                await self._look()
            case Rebooted():
                await self._rebooted(message)
            case _Done():
                self._done(message)
            case _:
                assert_never(message)

    async def _look(self) -> None:
        if self._busy is not None:
            self._look_again = True
            return
        try:
            instance, hold = await self._read()
            if instance is None or instance.terminated_at is not None:
                self._use.gone(self._id)
                return
            if (instance.owner_epoch or 0) > self._use.epoch:
                log.warning("vm.fenced", instance_id=self._id)
                return
            step = await self._next_step(instance, hold)
        except (FabricError, AskError) as error:
            self._retry(error)
            return
        if step is Step.NOTHING:
            self._failures = 0
            return
        if step is Step.RELAUNCH and self._waits():
            return
        self._busy = step
        _ = self.run(self._take(step, instance), lambda result: _done(step, result))

    def _waits(self) -> bool:
        """Tell whether it crashed too often to boot now; look again when it may."""
        wait_s = relaunch_wait(self._crashes, self.monotonic())
        if wait_s <= 0:
            return False
        if self._next is not None:
            self._next.cancel()
        log.warning("vm.crashes-again", instance_id=self._id, after_s=wait_s)
        self._next = self.after(wait_s, Look())
        return True

    async def _rebooted(self, message: Rebooted) -> None:
        link, name = self._use.hypervisor, self._name
        if name is None:
            return  # the first look is still to come, and is told of it again
        try:
            count = await link.ask(RebootsOf(name), within_s=ASK_S)
            if count == 0:
                return  # noted already
            await self._signal(Signal.BOOTED, "guest rebooted", boots=True)
        except ConflictError:
            return  # it is terminated
        except (FabricError, AskError) as error:
            log.warning("vm.reboot-waits", instance_id=self._id, error=str(error))
            self.after(RETRY_S[0], message)
            return
        link.tell(RebootsNoted(name, count))
        self.address.tell(Look())

    async def _read(self) -> tuple[vms.Instance | None, Hold]:
        async with self._use.database.reading() as conn:
            instance = await vms.get_instance(conn, None, self._id)
            posture = await trust.get_posture(conn, None, self._id)
        quarantined = (
            posture is not None and posture.snapshot.lifecycle is Lifecycle.QUARANTINED
        )
        return instance, self._use.quarantine_action if quarantined else Hold.NONE

    async def _next_step(self, instance: vms.Instance, hold: Hold) -> Step:
        self._name = instance.name
        observed = await self._power_of(instance.name)
        step = self._step(instance, observed, hold)
        if step is Step.NOTE_CRASH:
            # The event of our own start may still be on its way.
            observed = await self._power_of(instance.name, afresh=True)
            step = self._step(instance, observed, hold)
        return step

    def _step(
        self, instance: vms.Instance, observed: PowerState | None, hold: Hold
    ) -> Step:
        return next_step(
            Desired(instance.desired_state),
            instance.power_state,
            observed,
            volatile=self._use.provisioner.volatile,
            hold=hold,
        )

    async def _power_of(self, name: str, *, afresh: bool = False) -> PowerState | None:
        watcher = Watcher(self.address, Look(), Rebooted())
        return await self._use.hypervisor.ask(
            PowerOf(name, watcher, afresh), within_s=ASK_S
        )

    def _done(self, message: _Done) -> None:
        self._busy = None
        error = message.error
        if isinstance(error, FabricError | AskError):
            self._retry(error)
        elif error is not None:
            raise error
        else:
            if message.step is Step.NOTE_CRASH:
                self._crashes = [*self._crashes[-20:], self.monotonic()]
            self._look_again = False
            self.address.tell(Look())

    def _retry(self, error: FabricError | AskError) -> None:
        low, high = RETRY_S
        delay = min(high, low * 2.0**self._failures) * (1 + 0.2 * self.random.random())
        self._failures = min(self._failures + 1, 16)
        log.warning("vm.retries", instance_id=self._id, error=str(error), after_s=delay)
        if isinstance(error, AskError) or not is_structural(error):
            self.after(delay, Look())
        elif self._look_again:
            self._look_again = False
            self.address.tell(Look())

    async def _take(self, step: Step, instance: vms.Instance) -> None:
        takes = {
            Step.BOOT: self._boot,
            Step.RELAUNCH: self._relaunch,
            Step.NOTE_CRASH: self._note_crash,
            Step.NOTE_RUNNING: self._note_running,
            Step.NOTE_STRANGE_BOOT: self._note_strange_boot,
            Step.PAUSE: self._pause,
            Step.RESUME: self._resume,
            Step.STOP: self._switch_off,
            Step.STOP_FOR_HOLD: self._stop_for_hold,
            Step.NOTE_STOPPED: lambda it: self._note(it, PowerState.STOPPED, "stopped"),
            Step.REMOVE: self._remove,
        }
        await takes[step](instance)

    async def _relaunch(self, instance: vms.Instance) -> None:
        decision = await ask_gate(
            self._use.database,
            instance.server_id,
            self.now(),
            backend=instance.driver,
            tier=instance.isolation_tier,
        )
        if decision.allowed:
            await self._boot(instance)
            return
        async with self._writing() as conn:
            await vms.set_desired(conn, self._id, Desired.STOPPED)
            await servers.set_status(conn, instance.server_id, decision.status)

    async def _note_strange_boot(self, instance: vms.Instance) -> None:
        await self._signal(Signal.BOOTED, "booted outside", boots=True)
        await self._note_running(instance)

    async def _boot(self, instance: vms.Instance) -> None:
        try:
            await self._use.provisioner.define(self._use.spec_of(instance))
            await self._signal(Signal.BOOTED, "new boot", boots=True)
            if instance.attestation.get("source") == "swtpm":
                await self._boot_tpm(instance)
            try:
                await self._use.provisioner.start(instance.name)
            except AlreadyRunningError:
                log.info("vm.ran-already", instance_id=self._id)
        except FabricError as error:
            if is_structural(error):
                await self._note_blocked(instance, error)
            raise
        await self._note_running(instance)

    async def _boot_tpm(self, instance: vms.Instance) -> None:
        await self._use.tpms.start(instance.name)
        async with self._use.database.reading() as conn:
            known = await attestations.list_keys(conn, self._id)
        if not known:
            # Enrolled once, when the VM is defined; no later boot brings its own.
            key = await self._use.tpms.enroll(instance.name)
            async with self._writing() as conn:
                await attestations.add_key(conn, self._id, key)

    async def _note_running(self, instance: vms.Instance) -> None:
        await self._note(instance, PowerState.RUNNING, "started")
        self._use.attestation.tell(Attest(self._id, "boot"))

    async def _note_crash(self, instance: vms.Instance) -> None:
        observed = await self._power_of(instance.name)
        gone = observed is None
        await self._signal(
            Signal.VANISHED if gone else Signal.CRASHED,
            "domain vanished" if gone else "domain crashed",
        )
        policy = RestartPolicy(instance.vm.get("restart", RestartPolicy.ALWAYS))
        died_with_us = gone and self._use.provisioner.volatile
        stays_off = not (died_with_us or policy.relaunches(observed))
        power = PowerState.VANISHED if gone else PowerState.CRASHED
        event = "vanished" if gone else "crashed"
        await self._note(instance, power, event, stays_off=stays_off)

    async def _pause(self, instance: vms.Instance) -> None:
        await self._use.provisioner.pause(instance.name)
        await self._note(instance, PowerState.PAUSED, "paused")

    async def _resume(self, instance: vms.Instance) -> None:
        await self._use.provisioner.resume(instance.name)
        await self._note(instance, PowerState.RUNNING, "resumed")

    async def _stop_for_hold(self, instance: vms.Instance) -> None:
        async with self._writing() as conn:
            await vms.set_desired(conn, self._id, Desired.STOPPED)
        await self._switch_off(instance)
        async with self._writing() as conn:
            await servers.set_status(
                conn, instance.server_id, ServerStatus.PENDING_REMEDIATION
            )

    async def _switch_off(self, instance: vms.Instance) -> None:
        async with self._writing() as conn:
            await vms.set_power(conn, self._id, PowerState.STOPPING, self.now())
            await servers.set_status(conn, instance.server_id, ServerStatus.STOPPING)
        try:
            await self._use.provisioner.stop(instance.name, grace_s=GRACE_S)
        except NotFoundError:
            log.info("vm.was-gone", instance_id=self._id)
        await self._use.tpms.stop(instance.name)
        await self._note(instance, PowerState.STOPPED, "stopped")

    async def _remove(self, instance: vms.Instance) -> None:
        await self._use.provisioner.undefine(instance.name)
        await self._use.tpms.remove(instance.name)
        async with self._writing() as conn:
            await vms.set_power(
                conn, self._id, PowerState.STOPPED, self.now(), terminated=True
            )
            await vms.log_event(conn, self._id, "torn-down")
        self._use.hypervisor.tell(Unwatch(instance.name))

    async def _note(
        self,
        instance: vms.Instance,
        power: PowerState,
        event: str,
        *,
        stays_off: bool = False,
    ) -> None:
        async with self._writing() as conn:
            if stays_off:
                await vms.set_desired(conn, self._id, Desired.STOPPED)
            await vms.set_power(conn, self._id, power, self.now())
            await vms.log_event(conn, self._id, event)
            status = status_for(power)
            newest = await vms.list_newest(conn, instance.server_id, limit=1)
            if status is not None and newest and newest[0].id == self._id:
                await servers.note_status(conn, instance.server_id, status)
        log.info("vm.noted", event_type=event, instance_id=self._id, name=instance.name)

    async def _note_blocked(self, instance: vms.Instance, error: FabricError) -> None:
        async with self._writing() as conn:
            await vms.set_desired(conn, self._id, Desired.STOPPED)
            await vms.set_power(
                conn, self._id, PowerState.STOPPED, self.now(), error=str(error)
            )
            await servers.set_status(conn, instance.server_id, ServerStatus.BLOCKED)

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Connection]:
        """Write as the one start of the runtime that looks after it."""
        async with self._use.database.writing() as conn:
            await vms.fence(conn, self._id, self._use.epoch)
            yield conn

    async def _signal(
        self, signal: Signal, reason: str, *, boots: bool = False
    ) -> None:
        companions: tuple[vms.SetBoot, ...] = ()
        if boots:
            boot_id = self._use.new_boot_id()
            companions = (vms.SetBoot(boot_id, self.now(), self._use.epoch),)
        await self._use.trust.ask(
            ApplyChange(
                instance_id=self._id,
                change=Change(signal=signal, actor=f"vm:{self._id}", reason=reason),
                companions=companions,
            ),
            within_s=ASK_S,
        )


def _done(step: Step, result: object) -> _Done:
    return _Done(step, result if isinstance(result, BaseException) else None)
