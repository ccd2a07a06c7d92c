"""One VM instance: looks at what is wanted and what is, and takes the next step.

The actor holds nothing that the database doesn't: on every restart it reads its row,
asks the hypervisor what is, and goes on: domain/power.py decides, actors/power.py acts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import structlog

from trustfabric.actors.attestation import Attest
from trustfabric.actors.equipment import ASK_S, Equipment
from trustfabric.actors.hypervisor import PowerOf, Watcher
from trustfabric.actors.power import Power
from trustfabric.db import trust, vms
from trustfabric.domain.ids import InstanceId
from trustfabric.domain.power import (
    Boot,
    Desired,
    Hold,
    Seen,
    Step,
    next_step,
    step_of_another,
    taken_away,
    told,
)
from trustfabric.domain.restarts import relaunch_wait
from trustfabric.domain.trust import Lifecycle
from trustfabric.domain.vms import PowerState, is_structural, is_volatile
from trustfabric.errors import FabricError
from trustfabric.supervision import Actor, AskError, Notice, Timer

log = structlog.get_logger(__name__)

RETRY_S = (0.5, 30.0)
MISSING_S = 2.0
"""Between the two looks that a domain must be missing in to count as vanished."""

_LOOKED_TWICE = frozenset({Step.NOTE_CRASH, Step.END_VANISHED, Step.NOTE_STRANGE_BOOT})


@dataclass(frozen=True, slots=True)
class Look(Notice["Vm"]):
    """Something may have changed: look, and take the next step."""


@dataclass(frozen=True, slots=True)
class Unheard(Notice["Vm"]):
    """What it did while its hypervisor's link was down is lost: find out."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What a row said of an instance that is as it is wanted."""

    name: str
    seen: Seen


@dataclass(frozen=True, slots=True)
class _Compare(Notice["Vm"]):
    """Look only where its hypervisor says something else than the row did."""

    row: Settled


@dataclass(frozen=True, slots=True)
class _Done(Notice["Vm"]):
    step: Step
    error: BaseException | None


class Vm(Actor):
    def __init__(
        self,
        instance_id: InstanceId,
        equipment: Equipment,
        settled: Settled | None = None,
    ) -> None:
        super().__init__()
        self._id = instance_id
        self._settled = settled
        self._use = equipment
        self._power = Power(instance_id, equipment, self.now)
        self._busy: Step | None = None
        self._look_again = False
        self._failures = 0
        self._missing_since: float | None = None
        self._unheard = False
        self._next: Timer | None = None

    async def on_start(self) -> None:
        first = Look() if self._settled is None else _Compare(self._settled)
        self.address.tell(first)

    async def handle(self, message: Look | Unheard | _Compare | _Done) -> None:
        match message:
            case Look():
                await self._look()
            case Unheard():
                self._unheard = True
                await self._look()
            case _Compare(row):
                await self._compare(row)
            case _Done():
                self._done(message)
            case _:
                assert_never(message)

    async def _compare(self, row: Settled) -> None:
        try:
            seen = await self._power_of(row.name)
        except (FabricError, AskError) as error:
            self._retry(error)
            return
        if seen != row.seen:
            await self._look()
        elif row.seen.power is PowerState.RUNNING:
            # Its guest may have rebooted while nobody listened: its TPM tells.
            self._use.attestation.tell(Attest(self._id, "scheduled"))

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
            asked_at = self.monotonic()
            step, seen = await self._next_step(instance, hold)
        except (FabricError, AskError) as error:
            self._missing_since = None  # the two looks are of one link that stays up
            self._retry(error)
            return
        if step is not Step.END_VANISHED:
            self._missing_since = None
        if step is Step.NOTHING:
            self._failures = 0
            self._ask_unheard(instance)
        elif not self._waits(step, instance, asked_at):
            self._busy = step
            work = self._power.take(step, instance, seen)
            _ = self.run(work, lambda result: _done(step, result))

    def _waits(self, step: Step, instance: vms.Instance, asked_at: float) -> bool:
        """Tell whether it is too early for the step; look again when it is time."""
        match step:
            case Step.RELAUNCH:
                wait_s = relaunch_wait(instance.crashes, self.now())
            case Step.END_VANISHED:
                if self._missing_since is None:
                    self._missing_since = self.monotonic()
                # Since it was asked for: an answer may be old when it comes.
                wait_s = self._missing_since + MISSING_S - asked_at
            case _:
                return False
        if wait_s <= 0:
            return False
        if self._next is not None:
            self._next.cancel()
        log.warning("vm.waits", instance_id=self._id, step=step, after_s=wait_s)
        self._next = self.after(wait_s, Look())
        return True

    async def _read(self) -> tuple[vms.Instance | None, Hold]:
        async with self._use.database.reading() as conn:
            instance = await vms.get_instance(conn, None, self._id)
            posture = await trust.get_posture(conn, None, self._id)
        quarantined = posture is not None and posture.lifecycle is Lifecycle.QUARANTINED
        return instance, self._use.quarantine_action if quarantined else Hold.NONE

    async def _next_step(
        self, instance: vms.Instance, hold: Hold
    ) -> tuple[Step, Seen | None]:
        seen = await self._power_of(instance.name)
        step = self._step(instance, seen, hold)
        if step in _LOOKED_TWICE:
            # The event of our own start may still be on its way; it tells no mark.
            seen = await self._power_of(instance.name, afresh=True)
            step = self._step(instance, seen, hold)
        return step, seen

    def _step(self, instance: vms.Instance, seen: Seen | None, hold: Hold) -> Step:
        provisioner, recorded = self._use.provisioner, instance.power_state
        desired = Desired(instance.desired_state)
        if not self._use.is_here(instance):
            return step_of_another(
                desired,
                here=seen is not None,
                volatile=is_volatile(instance.driver, instance.endpoint),
                noted=instance.last_error == self._use.elsewhere(instance),
            )
        observed = None if seen is None else seen.power
        boot = Boot.AGAIN if instance.reboots_due > 0 else Boot.SAME
        if not provisioner.observes:
            observed = told(recorded, observed)
        elif (
            instance.defined_at is not None
            and not provisioner.volatile
            and taken_away(desired, recorded, observed)
        ):
            return Step.END_VANISHED
        elif seen is None or seen.boot is None or seen.boot != instance.boot_id:
            boot = Boot.STRANGE
        return next_step(
            desired,
            recorded,
            observed,
            volatile=provisioner.volatile,
            hold=hold,
            boot=boot,
        )

    def _ask_unheard(self, instance: vms.Instance) -> None:
        """Have it attested after a lost link: its guest may have rebooted meanwhile."""
        unheard, self._unheard = self._unheard, False
        if unheard and instance.power_state is PowerState.RUNNING:
            self._use.attestation.tell(Attest(self._id, "scheduled"))

    async def _power_of(self, name: str, *, afresh: bool = False) -> Seen | None:
        return await self._use.hypervisor.ask(
            PowerOf(name, Watcher(self.address, Look(), Unheard()), afresh),
            within_s=ASK_S,
        )

    def _done(self, message: _Done) -> None:
        self._busy = None
        error = message.error
        if isinstance(error, FabricError | AskError):
            self._retry(error)
        elif error is not None:
            raise error
        else:
            self._look_again = False
            self.address.tell(Look())

    def _retry(self, error: FabricError | AskError) -> None:
        low, high = RETRY_S
        delay = min(high, low * 2.0**self._failures) * (1 + 0.2 * self.random.random())
        self._failures = min(self._failures + 1, 16)
        log.warning("vm.retries", instance_id=self._id, error=str(error), after_s=delay)
        waits = isinstance(error, AskError) or not is_structural(error)
        if self._look_again and not waits:
            self._look_again = False
            self.address.tell(Look())
        else:
            # What a person must mend is off by now; what is to stop, stops in the end.
            self.after(delay, Look())


def _done(step: Step, result: object) -> _Done:
    return _Done(step, result if isinstance(result, BaseException) else None)


def settled_as(one: vms.Adopted) -> Settled:
    """Return what an adopted instance's row said of it."""
    boot = one.boot_id if one.power.active else None
    return Settled(one.name, Seen(one.power, boot))


def vm_maker(
    instance_id: InstanceId, equipment: Equipment, settled: Settled | None
) -> Callable[[], Vm]:
    """Return what makes its actor, each incarnation; only the first may be spared.

    Where quarantine holds what runs, every one looks: its row doesn't tell of that.
    """
    spared = [settled] if equipment.quarantine_action is Hold.NONE else []

    def make() -> Vm:
        return Vm(instance_id, equipment, spared.pop() if spared else None)

    return make
