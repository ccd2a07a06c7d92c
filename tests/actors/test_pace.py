"""How long background passes rest."""

from trustfabric.actors.pace import LONGEST_S, RESTS, STUCK_S, Pace


class Time:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def rest_after(took_s: float) -> float:
    time = Time()
    pace = Pace(time.monotonic)
    with pace.working():
        time.now += took_s
    return pace.rest_s()


def test_the_first_pass_need_not_wait() -> None:
    assert Pace(Time().monotonic).rest_s() == 0


def test_a_pass_is_followed_by_a_rest_in_proportion_and_bounded() -> None:
    assert abs(rest_after(0.01) - RESTS * 0.01) < 1e-9
    assert abs(rest_after(0.5) - LONGEST_S) < 1e-9


def test_what_was_stuck_need_not_rest() -> None:
    assert rest_after(STUCK_S) == 0


def test_a_rest_is_over_when_its_time_is() -> None:
    time = Time()
    pace = Pace(time.monotonic)
    with pace.working():
        time.now += 0.01

    time.now += LONGEST_S

    assert pace.rest_s() == 0
