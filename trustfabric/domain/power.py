"""What to do next so that a VM's power becomes what is wanted: one pure step."""

from collections.abc import Sequence
from enum import StrEnum

from trustfabric.domain.vms import PowerState


class Desired(StrEnum):
    """What shall be (`runtime_vm_instances.desired_state`)."""

    RUNNING = "running"
    STOPPED = "stopped"
    TERMINATED = "terminated"


class RestartPolicy(StrEnum):
    """Whether a VM that ended unasked boots again (`vm.restart` of its server)."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    """Unless it ended in order, or was switched off."""
    NEVER = "never"

    def relaunches(self, ended: PowerState | None) -> bool:
        """Tell it of a VM by its power now; None where its domain vanished."""
        match self:
            case RestartPolicy.ALWAYS:
                return True
            case RestartPolicy.ON_FAILURE:
                return ended in {None, PowerState.CRASHED}
            case RestartPolicy.NEVER:
                return False


RECENT_S = 600.0
LONGEST_WAIT_S = 300.0


def relaunch_wait(crashes: Sequence[float], now: float) -> float:
    """Return how long to wait before booting what crashed at these times, in seconds.

    The first crash of the last ten minutes doesn't wait; each further one waits
    twice as long as the one before, 1 s to 5 min.
    """
    recent = [at for at in crashes if now - at < RECENT_S]
    if len(recent) <= 1:
        return 0.0
    wait = min(LONGEST_WAIT_S, 2.0 ** (len(recent) - 2))
    return max(0.0, recent[-1] + wait - now)


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


def next_step(
    desired: Desired,
    recorded: PowerState,
    observed: PowerState | None,
    *,
    volatile: bool,
    hold: Hold = Hold.NONE,
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
            if observed is not None and active:
                return _while_running(recorded, observed, hold)
            return _towards_running(recorded, volatile=volatile)


def _while_running(recorded: PowerState, observed: PowerState, hold: Hold) -> Step:
    if recorded is PowerState.STARTING:
        return Step.NOTE_RUNNING
    if recorded not in {PowerState.RUNNING, PowerState.PAUSED}:
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


def _towards_running(recorded: PowerState, *, volatile: bool) -> Step:
    if recorded in _NOT_YET_BOOTED:
        return Step.BOOT
    if recorded in {PowerState.CRASHED, PowerState.VANISHED}:
        died_with_us = volatile and recorded is PowerState.VANISHED
        return Step.BOOT if died_with_us else Step.RELAUNCH
    return Step.NOTE_CRASH
