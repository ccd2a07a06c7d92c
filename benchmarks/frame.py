"""The frame of every benchmark: a figure beside its peer, in rounds, judged by goals.

A machine that is shared changes its pace. So both sides are measured within each
round, as close together as they can be, and a ratio is the median of the rounds'
ratios, not the ratio of two medians.
"""

import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.bench import Bench


class Met(StrEnum):
    """How far a figure has come."""

    AIM = "aim"
    FLOOR = "floor"
    NO = "no"


class By(StrEnum):
    """What a goal is about."""

    RATIO = "ratio"
    VALUE = "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Something measured, and what it shall reach."""

    name: str
    unit: str
    floor: float
    aim: float
    by: By = By.VALUE
    less_is_better: bool = False
    peer: str | None = None
    """What stands beside it; a ratio is always the value over the peer's."""

    def judge(self, value: float, ratio: float | None) -> Met:
        reached = value if self.by is By.VALUE else ratio
        if reached is None:
            return Met.NO
        if self._passes(reached, self.aim):
            return Met.AIM
        return Met.FLOOR if self._passes(reached, self.floor) else Met.NO

    def _passes(self, reached: float, goal: float) -> bool:
        return reached <= goal if self.less_is_better else reached >= goal


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round saw of a figure."""

    name: str
    value: float
    peer_value: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What measures some figures, once a round."""

    name: str
    figures: tuple[Figure, ...]
    measure: Callable[[Bench], Awaitable[Sequence[Sample]]]
    once: bool = False
    """Measured in the first round only: it takes long and varies little."""
    quick: bool = True
    """Whether a quick run measures it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of results.json."""

    name: str
    value: float
    unit: str
    peer: str | None
    peer_value: float | None
    ratio: float | None
    floor: float
    aim: float
    by: By
    met: Met
    load: float
    """Of the machine, when the figure was measured."""
    rounds: int


async def run(
    parts: Sequence[Part], bench: Bench, rounds: int, say: Callable[[str], None]
) -> list[Result]:
    """Measure every part in interleaved rounds; figures come in the parts' order."""
    samples: dict[str, list[Sample]] = {}
    loads: dict[str, list[float]] = {}
    for number in range(rounds):
        for part in parts:
            if part.once and number > 0:
                continue
            begun = time.perf_counter()
            measured = await part.measure(bench)
            for one in measured:
                samples.setdefault(one.name, []).append(one)
                loads.setdefault(one.name, []).append(os.getloadavg()[0])
            took = time.perf_counter() - begun
            say(f"round {number + 1}/{rounds}  {part.name}: {took:.1f} s")
    figures = [figure for part in parts for figure in part.figures]
    return [summarise(one, samples[one.name], loads[one.name]) for one in figures]


def summarise(
    figure: Figure, samples: Sequence[Sample], loads: Sequence[float]
) -> Result:
    """Return the medians of a figure's rounds, judged."""
    value = statistics.median(one.value for one in samples)
    beside = [one.peer_value for one in samples if one.peer_value is not None]
    ratios = [one.value / one.peer_value for one in samples if one.peer_value]
    ratio = statistics.median(ratios) if ratios else None
    return Result(
        name=figure.name,
        value=_rounded(value),
        unit=figure.unit,
        peer=figure.peer,
        peer_value=_rounded(statistics.median(beside)) if beside else None,
        ratio=None if ratio is None else _rounded(ratio),
        floor=figure.floor,
        aim=figure.aim,
        by=figure.by,
        met=figure.judge(value, ratio),
        load=_rounded(statistics.median(loads)),
        rounds=len(samples),
    )


def write(results: Iterable[Result], path: Path, known: Collection[str]) -> None:
    """Write results.json; figures that were not measured this time keep their lines.

    Those that are not `known` any more lose theirs.
    """
    lines = {one["name"]: one for one in _read(path) if one["name"] in known}
    lines |= {one.name: asdict(one) for one in results}
    path.write_text(json.dumps(list(lines.values()), indent=2) + "\n")


def _read(path: Path) -> list[Mapping[str, object]]:
    return json.loads(path.read_text()) if path.exists() else []


def table(results: Sequence[Result], figures: Iterable[Figure]) -> str:
    """Return the results as people read them."""
    less = {one.name for one in figures if one.less_is_better}
    head = ("figure", "value", "peer", "", "ratio", "floor", "aim", "met")
    rows = [head, *(_row(one, "≤" if one.name in less else "≥") for one in results)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    left = {0, 3, 7}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _row(one: Result, sign: str) -> tuple[str, ...]:
    unit = "x" if one.by is By.RATIO else ""
    return (
        one.name,
        f"{one.value:,g} {one.unit}",
        "" if one.peer_value is None else f"{one.peer_value:,g}",
        one.peer or "",
        "" if one.ratio is None else f"{one.ratio:g}",
        f"{sign} {one.floor:,g}{unit}",
        f"{sign} {one.aim:,g}{unit}",
        one.met,
    )


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def percentile(sample: Iterable[float], share: float) -> float:
    """Return the value that this share of the sample does not exceed."""
    ordered = sorted(sample)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
