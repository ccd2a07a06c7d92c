"""What to do next so that a VM's power becomes what is wanted: one pure step."""

from enum import StrEnum

from trustfabric.domain.vms import PowerState


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


def told(recorded: PowerState, echoed: PowerState | None) -> PowerState | None:
    """Return what is, where a hypervisor echoes only what we did since our start.

    Of what ran before it knows nothing: there the record stands in for it.
    """
    return recorded if echoed is None and recorded in _RAN else echoed


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
    rebooted: bool = False,
) -> Step:
    """Return the next step towards `desired`.

    `recorded` is what the database says; `observed` what the hypervisor says, None
    where it does not know the domain. A volatile driver's domains die with our
    process: one that is missing was running when we died, and goes on.
    """
    active = observed is not None and observed.active
    match desired:
        case Desired.TERMINATED:
            return Step.REMOVE
        case Desired.STOPPED:
            if active:
                return Step.STOP
            return Step.NOTE_STOPPED if recorded.active else Step.NOTHING
        case Desired.RUNNING:
            if observed is None or not active:
                lost = observed is None and not volatile
                return _towards_running(recorded, volatile=volatile, lost=lost)
            if rebooted and recorded in _RAN:
                return Step.NOTE_REBOOT
            return _while_running(recorded, observed, hold)


def _while_running(recorded: PowerState, observed: PowerState, hold: Hold) -> Step:
    if recorded is PowerState.STARTING:
        return Step.NOTE_RUNNING
    if recorded not in _RAN:
        return Step.NOTE_STRANGE_BOOT
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
