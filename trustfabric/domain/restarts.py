"""Whether a VM that ended unasked boots again, and how long it waits for that."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from trustfabric.domain.vms import PowerState


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


RECENT = timedelta(minutes=10)
LONGEST_WAIT_S = 300.0


def relaunch_wait(crashes: Sequence[datetime], now: datetime) -> float:
    """Return how long to wait before booting what crashed at these times, in seconds.

    The first crash of the last ten minutes doesn't wait; each further one waits
    twice as long as the one before, 1 s to 5 min. A crash in the future, as a clock
    that was set back leaves it, counts as one of now.
    """
    recent = [min(at, now) for at in crashes if now - at < RECENT]
    if len(recent) <= 1:
        return 0.0
    wait = min(LONGEST_WAIT_S, 2.0 ** (len(recent) - 2))
    return max(0.0, wait - (now - recent[-1]).total_seconds())
