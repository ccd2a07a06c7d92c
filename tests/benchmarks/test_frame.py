"""The frame of the benchmarks: medians, judgements, and what is written."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import frame
from benchmarks.bench import Bench
from benchmarks.frame import By, Figure, Met, Part, Sample

FAST = Figure(name="fast", unit="/s", peer="theirs", by=By.RATIO, floor=3, aim=6)
SMALL = Figure(name="small", unit="kB", less_is_better=True, floor=30, aim=12)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, quick=True, cluster_url="", programs=tmp_path)


@pytest.mark.parametrize(
    ("value", "met"),
    [(12.0, Met.AIM), (12.1, Met.FLOOR), (30.0, Met.FLOOR), (30.1, Met.NO)],
)
def test_less_may_be_better(value: float, met: Met) -> None:
    assert SMALL.judge(value, None) is met


@pytest.mark.parametrize(
    ("ratio", "met"),
    [(6.0, Met.AIM), (5.9, Met.FLOOR), (3.0, Met.FLOOR), (2.9, Met.NO)],
)
def test_a_ratio_is_judged_whatever_the_value(ratio: float, met: Met) -> None:
    assert FAST.judge(1.0, ratio) is met


def test_a_ratio_that_nobody_measured_meets_nothing() -> None:
    assert FAST.judge(1e9, None) is Met.NO


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    rounds = [Sample("fast", 40, 10), Sample("fast", 900, 100), Sample("fast", 10, 5)]

    result = frame.summarise(FAST, rounds, [1.0, 3.0, 2.0])

    assert (result.value, result.peer_value, result.ratio) == (40, 10, 4)
    assert (result.met, result.load, result.rounds) == (Met.FLOOR, 2, 3)


async def test_rounds_are_interleaved_and_what_varies_little_runs_once(
    bench: Bench,
) -> None:
    order = []

    def part(name: str, figure: Figure, *, once: bool = False) -> Part:
        async def measure(_: Bench) -> list[Sample]:
            order.append(name)
            return [Sample(figure.name, 10, 2)]

        return Part(name, (figure,), measure, once=once)

    parts = [part("a", FAST), part("b", SMALL, once=True)]
    results = await frame.run(parts, bench, rounds=3, say=lambda _: None)

    assert order == ["a", "b", "a", "a"]
    assert [(one.name, one.met, one.rounds) for one in results] == [
        ("fast", Met.FLOOR, 3),
        ("small", Met.AIM, 1),
    ]


def test_results_are_written_and_those_of_other_runs_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    both = {"small", "fast"}
    frame.write([frame.summarise(SMALL, [Sample("small", 11)], [0.5])], path, both)
    frame.write([frame.summarise(FAST, [Sample("fast", 9, 2)], [0.5])], path, both)

    small, fast = json.loads(path.read_text())

    assert small == {
        "name": "small",
        "value": 11,
        "unit": "kB",
        "peer": None,
        "peer_value": None,
        "ratio": None,
        "floor": 30,
        "aim": 12,
        "by": "value",
        "met": "aim",
        "load": 0.5,
        "rounds": 1,
    }
    assert (fast["peer"], fast["peer_value"], fast["ratio"]) == ("theirs", 2, 4.5)


def test_the_table_shows_each_figure_with_its_goals() -> None:
    results = [
        frame.summarise(FAST, [Sample("fast", 1200, 200)], [0.0]),
        frame.summarise(SMALL, [Sample("small", 99)], [0.0]),
    ]

    head, fast, small = frame.table(results, [FAST, SMALL]).splitlines()

    assert head.split() == ["figure", "value", "peer", "ratio", "floor", "aim", "met"]
    assert fast.split()[:6] == ["fast", "1,200", "/s", "200", "theirs", "6"]
    assert fast.split()[6:] == ["≥", "3x", "≥", "6x", "aim"]
    assert small.split() == ["small", "99", "kB", "≤", "30", "≤", "12", "no"]


def test_no_two_figures_share_a_name() -> None:
    names = [figure.name for part in program.PARTS for figure in part.figures]

    assert len(names) == len(set(names))


def test_a_goal_asks_for_more_than_its_floor() -> None:
    for part in program.PARTS:
        for figure in part.figures:
            assert (figure.aim < figure.floor) is figure.less_is_better, figure.name


def test_who_is_judged_by_a_ratio_has_a_peer() -> None:
    for part in program.PARTS:
        for figure in part.figures:
            assert figure.by is By.VALUE or figure.peer, figure.name


def test_a_figure_that_is_no_more_loses_its_line(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    frame.write([frame.summarise(SMALL, [Sample("small", 11)], [0.5])], path, {"small"})

    frame.write([], path, {"fast"})

    assert json.loads(path.read_text()) == []
