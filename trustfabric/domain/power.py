"""What to do next so that a VM's power becomes what is wanted: one pure step."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

from trustfabric.domain.vms import PowerChange, PowerState, power_after


@dataclass(frozen=True, slots=True)
class Seen:
    """What a hypervisor says of one domain."""

    power: PowerState
    boot: UUID | None = None
    """The boot that is marked on what runs; None: it was begun by somebody else."""

    def after(self, change: PowerChange) -> "Seen":
        """Return what is known after an event, which tells nothing of marks."""
        power = power_after(self.power, change)
        runs_on = self.power.active and power.active
        anew = change is PowerChange.STARTED or not runs_on
        return Seen(power, None if anew else self.boot)


UNSEEN: Final = Seen(PowerState.DEFINED)


class Boot(StrEnum):
    """Which boot a VM is in, compared with the one that was recorded."""

    SAME = "same"
    AGAIN = "again"
    """Its guest rebooted inside what runs."""
    STRANGE = "strange"
    """What runs was begun by somebody else, or that can't be told."""


class Desired(StrEnum):
    """What shall be (`runtime_vm_instances.desired_state`)."""

    RUNNING = "running"
    STOPPED = "stopped"
    TERMINATED = "terminated"


class Hold(StrEnum):
    """What distrust demands of a VM that runs (`QUARANTINE_ACTION`)."""

    NONE = "none"
    PAUSE = "pause"
    STOP = "stop"


class Step(StrEnum):
    """One thing to do; afterwards the situation is looked at again."""

    NOTHING = "nothing"
    BOOT = "boot"
    RELAUNCH = "relaunch"
    """Boot again after a crash: the gate is asked first."""
    NOTE_CRASH = "note-crash"
    NOTE_RUNNING = "note-running"
    """Its boot was committed and it runs; say so and have it attested."""
    NOTE_STRANGE_BOOT = "note-strange-boot"
    """It runs although nobody here started it: a new boot all the same."""
    NOTE_REBOOT = "note-reboot"
    """The guest booted again inside its running domain."""
    NOTE_ELSEWHERE = "note-elsewhere"
    """It was made at a hypervisor that this runtime isn't connected to."""
    NOTE_MOVED = "note-moved"
    """Its domain is here, whatever the address it was made at."""
    END_VANISHED = "end-vanished"
    """Its hypervisor keeps domains and hasn't this one: the instance is over."""
    PAUSE = "pause"
    """It is quarantined: freeze it."""
    RESUME = "resume"
    """It was frozen, and is not quarantined any more."""
    STOP = "stop"
    STOP_FOR_HOLD = "stop-for-hold"
    """It is quarantined: stop it, and let it wait for the gate."""
    NOTE_STOPPED = "note-stopped"
    REMOVE = "remove"


_NOT_YET_BOOTED = frozenset(
    {
        PowerState.UNKNOWN,
        PowerState.DEFINED,
        PowerState.STARTING,
        PowerState.STOPPED,
        PowerState.STOPPING,
    }
)

_RAN = frozenset({PowerState.RUNNING, PowerState.PAUSED})

_MAY_RUN = _RAN | {PowerState.STARTING, PowerState.UNKNOWN}


def told(recorded: PowerState, echoed: PowerState | None) -> PowerState | None:
    """Return what is, where a hypervisor echoes only what we did since our start.

    Of what ran before it knows nothing: there the record stands in for it.
    """
    return recorded if echoed is None and recorded in _RAN else echoed


def step_of_another(
    desired: Desired, *, here: bool, volatile: bool, noted: bool
) -> Step:
    """Return the next step of a VM that was made at another address than ours.

    `here`: our hypervisor has its domain. `volatile`: its own one ended, and all of it,
    with an earlier process of ours. Of any other nothing can be known, and so nothing
    is done, but that it is `noted`.
    """
    if here:
        return Step.NOTE_MOVED
    if volatile:
        over = desired is Desired.TERMINATED
        return Step.REMOVE if over else Step.END_VANISHED
    return Step.NOTHING if noted else Step.NOTE_ELSEWHERE


def taken_away(
    desired: Desired, recorded: PowerState, observed: PowerState | None
) -> bool:
    """Tell whether a VM is over, at a hypervisor that was given it and keeps its own.

    Its disk and its keys went with its domain: it is never made again, not when it was
    off either. One that was to stop is noted as stopped first.
    """
    if observed is not None or desired is Desired.TERMINATED:
        return False
    return desired is Desired.RUNNING or not recorded.active


def next_step(
    desired: Desired,
    recorded: PowerState,
    observed: PowerState | None,
    *,
    volatile: bool,
    hold: Hold = Hold.NONE,
    boot: Boot = Boot.SAME,
) -> Step:
    """Return the next step towards `desired`.

    `recorded` is what the database says; `observed` what the hypervisor says, None
    where it does not know the domain. A volatile driver's domains die with our
    process: one that is missing was running when we died, and goes on.
    `boot` is of what runs, if anything does.
    """
    active = observed is not None and observed.active
    match desired:
        case Desired.TERMINATED:
            return Step.REMOVE
        case Desired.STOPPED:
            if active:
                return Step.STOP
            return Step.NOTHING if recorded.off else Step.NOTE_STOPPED
        case Desired.RUNNING:
            if observed is None or not active:
                lost = observed is None and not volatile
                return _towards_running(recorded, volatile=volatile, lost=lost)
            if recorded is PowerState.STARTING and observed is PowerState.PAUSED:
                return Step.BOOT  # cut before its first instruction
            return _note_boot(recorded, boot) or _held(recorded, observed, hold)


def _note_boot(recorded: PowerState, boot: Boot) -> Step | None:
    """Return what there is to note of the boot that runs."""
    if boot is Boot.STRANGE or recorded not in _MAY_RUN:
        return Step.NOTE_STRANGE_BOOT
    if recorded not in _RAN:
        return Step.NOTE_RUNNING
    return Step.NOTE_REBOOT if boot is Boot.AGAIN else None


def _held(recorded: PowerState, observed: PowerState, hold: Hold) -> Step:
    match hold:
        case Hold.STOP:
            return Step.STOP_FOR_HOLD
        case Hold.PAUSE:
            frozen = PowerState.PAUSED in {observed, recorded}
            return Step.NOTHING if frozen else Step.PAUSE
        case Hold.NONE:
            # Frozen by us, as the record says; what others froze is theirs.
            ours = recorded is PowerState.PAUSED
            return Step.RESUME if ours else Step.NOTHING


def _towards_running(recorded: PowerState, *, volatile: bool, lost: bool) -> Step:
    if recorded in _NOT_YET_BOOTED:
        return Step.BOOT
    if recorded in {PowerState.CRASHED, PowerState.VANISHED}:
        died_with_us = volatile and recorded is PowerState.VANISHED
        return Step.BOOT if died_with_us else Step.RELAUNCH
    return Step.END_VANISHED if lost else Step.NOTE_CRASH
