import pytest

from trustfabric.domain.vms import PowerChange, PowerState
from trustfabric.drivers.libvirt_events import power_change, power_state


@pytest.mark.parametrize(
    ("event", "detail", "change"),
    [
        (0, 0, None),
        (1, 0, PowerChange.UNDEFINED),
        (2, 0, PowerChange.STARTED),
        (3, 0, PowerChange.PAUSED),
        (4, 0, PowerChange.RESUMED),
        (5, 0, PowerChange.SHUT_DOWN),
        (5, 1, PowerChange.DESTROYED),
        (5, 2, PowerChange.PANICKED),
        (5, 5, PowerChange.FAILED),
        (5, 99, PowerChange.SHUT_DOWN),
        (6, 1, None),
        (8, 0, PowerChange.PANICKED),
        (99, 0, None),
    ],
)
def test_an_event_means_one_change(
    event: int, detail: int, change: PowerChange | None
) -> None:
    assert power_change(event, detail) is change


@pytest.mark.parametrize(
    ("state", "reason", "power"),
    [
        (0, 0, PowerState.UNKNOWN),
        (1, 1, PowerState.RUNNING),
        (3, 1, PowerState.PAUSED),
        (3, 10, PowerState.CRASHED),
        (4, 1, PowerState.STOPPING),
        (5, 0, PowerState.DEFINED),
        (5, 1, PowerState.STOPPED),
        (5, 2, PowerState.STOPPED),
        (5, 3, PowerState.CRASHED),
        (5, 6, PowerState.CRASHED),
        (6, 1, PowerState.CRASHED),
        (99, 0, PowerState.UNKNOWN),
    ],
)
def test_a_state_and_its_reason_mean_one_power(
    state: int, reason: int, power: PowerState
) -> None:
    assert power_state(state, reason) is power
