"""The next step of a VM: every situation leads on, and none boots twice."""

from uuid import uuid4

import pytest

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
from trustfabric.domain.vms import PowerChange, PowerState

P = PowerState
ACTIVE = [P.STARTING, P.RUNNING, P.PAUSED, P.STOPPING]
OFF = [None, P.DEFINED, P.STOPPED, P.CRASHED]

TOWARDS_RUNNING = {
    # recorded: (observed off, observed active)
    P.UNKNOWN: (Step.BOOT, Step.NOTE_RUNNING),
    P.DEFINED: (Step.BOOT, Step.NOTE_STRANGE_BOOT),
    P.STARTING: (Step.BOOT, Step.NOTE_RUNNING),
    P.RUNNING: (Step.NOTE_CRASH, Step.NOTHING),  # vanished where nothing is seen
    P.PAUSED: (Step.NOTE_CRASH, Step.RESUME),
    P.STOPPING: (Step.BOOT, Step.NOTE_STRANGE_BOOT),
    P.STOPPED: (Step.BOOT, Step.NOTE_STRANGE_BOOT),
    P.CRASHED: (Step.RELAUNCH, Step.NOTE_STRANGE_BOOT),
    P.VANISHED: (Step.RELAUNCH, Step.NOTE_STRANGE_BOOT),
}


@pytest.mark.parametrize("recorded", PowerState)
@pytest.mark.parametrize("observed", [*OFF, *ACTIVE])
def test_one_that_shall_run_is_led_there(
    recorded: PowerState, observed: PowerState | None
) -> None:
    off, active = TOWARDS_RUNNING[recorded]

    step = next_step(Desired.RUNNING, recorded, observed, volatile=False)

    if observed is None and off is Step.NOTE_CRASH:
        off = Step.END_VANISHED
    if recorded is P.STARTING and observed is P.PAUSED:
        active = Step.BOOT  # before its first instruction
    assert step is (active if observed in ACTIVE else off)


@pytest.mark.parametrize("recorded", PowerState)
@pytest.mark.parametrize("hold", Hold)
def test_what_somebody_else_began_is_a_new_boot_whatever_was_recorded(
    recorded: PowerState, hold: Hold
) -> None:
    step = next_step(
        Desired.RUNNING,
        recorded,
        P.RUNNING,
        volatile=False,
        hold=hold,
        boot=Boot.STRANGE,
    )

    assert step is Step.NOTE_STRANGE_BOOT


@pytest.mark.parametrize("desired", Desired)
def test_of_one_at_another_hypervisor_nothing_is_done(desired: Desired) -> None:
    def step(*, noted: bool) -> Step:
        return step_of_another(desired, here=False, volatile=False, noted=noted)

    assert step(noted=False) is Step.NOTE_ELSEWHERE
    assert step(noted=True) is Step.NOTHING


@pytest.mark.parametrize("desired", Desired)
def test_one_whose_domain_is_here_is_at_home_by_another_address(
    desired: Desired,
) -> None:
    for noted in (True, False):
        step = step_of_another(desired, here=True, volatile=False, noted=noted)
        assert step is Step.NOTE_MOVED


def test_what_ended_with_an_earlier_process_is_over() -> None:
    def step(desired: Desired) -> Step:
        return step_of_another(desired, here=False, volatile=True, noted=True)

    assert step(Desired.RUNNING) is step(Desired.STOPPED) is Step.END_VANISHED
    assert step(Desired.TERMINATED) is Step.REMOVE


@pytest.mark.parametrize("change", PowerChange)
@pytest.mark.parametrize("power", PowerState)
def test_a_mark_outlasts_only_what_runs_on(
    power: PowerState, change: PowerChange
) -> None:
    boot = uuid4()

    after = Seen(power, boot).after(change)

    runs_on = power.active and after.power.active
    assert after.boot == (
        boot if runs_on and change is not PowerChange.STARTED else None
    )


@pytest.mark.parametrize("recorded", PowerState)
@pytest.mark.parametrize("observed", [*OFF, *ACTIVE])
@pytest.mark.parametrize("volatile", [True, False])
def test_one_that_shall_stop_is_stopped_and_noted_once(
    recorded: PowerState,
    observed: PowerState | None,
    volatile: bool,  # noqa: FBT001
) -> None:
    step = next_step(Desired.STOPPED, recorded, observed, volatile=volatile)

    if observed in ACTIVE:
        assert step is Step.STOP
    else:
        news = recorded in ACTIVE or recorded is PowerState.UNKNOWN
        assert step is (Step.NOTE_STOPPED if news else Step.NOTHING)


@pytest.mark.parametrize("recorded", PowerState)
@pytest.mark.parametrize("observed", [*OFF, *ACTIVE])
def test_one_that_shall_go_is_removed_whatever_it_does(
    recorded: PowerState, observed: PowerState | None
) -> None:
    step = next_step(Desired.TERMINATED, recorded, observed, volatile=False)

    assert step is Step.REMOVE


@pytest.mark.parametrize("recorded", PowerState)
def test_one_whose_domain_was_taken_away_is_over(recorded: PowerState) -> None:
    assert taken_away(Desired.RUNNING, recorded, None)
    assert taken_away(Desired.STOPPED, recorded, None) is (recorded not in ACTIVE)
    assert not taken_away(Desired.TERMINATED, recorded, None)
    for desired in Desired:
        assert not taken_away(desired, recorded, P.STOPPED)


def test_what_died_with_our_process_goes_on_without_asking_the_gate() -> None:
    def step(recorded: PowerState) -> Step:
        return next_step(Desired.RUNNING, recorded, None, volatile=True)

    assert step(P.RUNNING) is Step.NOTE_CRASH
    assert step(P.VANISHED) is Step.BOOT
    assert step(P.CRASHED) is Step.RELAUNCH


@pytest.mark.parametrize("recorded", PowerState)
@pytest.mark.parametrize("observed", ACTIVE)
@pytest.mark.parametrize("desired", Desired)
@pytest.mark.parametrize("volatile", [True, False])
def test_what_runs_is_never_booted(
    recorded: PowerState,
    observed: PowerState,
    desired: Desired,
    volatile: bool,  # noqa: FBT001
) -> None:
    step = next_step(desired, recorded, observed, volatile=volatile)

    unstarted = recorded is P.STARTING and observed is P.PAUSED
    assert step not in {Step.BOOT, Step.RELAUNCH} or unstarted


@pytest.mark.parametrize(
    ("hold", "recorded", "observed", "expected"),
    [
        (Hold.NONE, PowerState.RUNNING, PowerState.RUNNING, Step.NOTHING),
        (Hold.NONE, PowerState.PAUSED, PowerState.PAUSED, Step.RESUME),
        (Hold.NONE, PowerState.RUNNING, PowerState.PAUSED, Step.NOTHING),
        (Hold.PAUSE, PowerState.RUNNING, PowerState.RUNNING, Step.PAUSE),
        (Hold.PAUSE, PowerState.PAUSED, PowerState.PAUSED, Step.NOTHING),
        (Hold.STOP, PowerState.RUNNING, PowerState.RUNNING, Step.STOP_FOR_HOLD),
        (Hold.STOP, PowerState.PAUSED, PowerState.PAUSED, Step.STOP_FOR_HOLD),
        (Hold.STOP, PowerState.STARTING, PowerState.RUNNING, Step.NOTE_RUNNING),
    ],
)
def test_distrust_holds_what_runs_as_it_is_told_to(
    hold: Hold, recorded: PowerState, observed: PowerState, expected: Step
) -> None:
    step = next_step(Desired.RUNNING, recorded, observed, volatile=False, hold=hold)

    assert step is expected


@pytest.mark.parametrize("hold", Hold)
def test_a_hold_never_keeps_what_shall_stop_from_stopping(hold: Hold) -> None:
    step = next_step(
        Desired.STOPPED,
        PowerState.RUNNING,
        PowerState.RUNNING,
        volatile=False,
        hold=hold,
    )

    assert step is Step.STOP


def test_what_rebooted_itself_is_noted_before_anything_else() -> None:
    for recorded in (P.RUNNING, P.PAUSED):
        step = next_step(
            Desired.RUNNING, recorded, P.RUNNING, volatile=False, boot=Boot.AGAIN
        )
        assert step is Step.NOTE_REBOOT


@pytest.mark.parametrize("recorded", [P.UNKNOWN, P.STARTING, P.STOPPED, P.CRASHED])
def test_a_boot_that_is_still_to_be_noted_covers_its_reboots(
    recorded: PowerState,
) -> None:
    def step(boot: Boot) -> Step:
        return next_step(
            Desired.RUNNING, recorded, P.RUNNING, volatile=False, boot=boot
        )

    assert step(Boot.AGAIN) is step(Boot.SAME)


def test_a_hypervisor_that_only_echoes_us_is_not_taken_to_have_lost_anything() -> None:
    def step(desired: Desired, recorded: PowerState) -> Step:
        return next_step(desired, recorded, told(recorded, None), volatile=False)

    assert step(Desired.RUNNING, P.RUNNING) is Step.NOTHING
    assert step(Desired.STOPPED, P.RUNNING) is Step.STOP
    assert step(Desired.RUNNING, P.STARTING) is Step.BOOT
    assert step(Desired.RUNNING, P.STOPPED) is Step.BOOT
