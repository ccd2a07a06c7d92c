"""What benchmarks/actors.py measures, as figures: each round in a fresh process."""

import asyncio
import json
import sys

from benchmarks.bench import Bench
from benchmarks.frame import By, Figure, Part, Sample

PEER = "pykka.ThreadingActor"


def _ratio(name: str, unit: str, floor: float, aim: float) -> Figure:
    return Figure(
        name=f"actor: {name}", unit=unit, peer=PEER, by=By.RATIO, floor=floor, aim=aim
    )


def _at_most(name: str, unit: str, floor: float, aim: float) -> Figure:
    return Figure(
        name=f"actor: {name}", unit=unit, less_is_better=True, floor=floor, aim=aim
    )


FIGURES = {
    "tell/s": _ratio("tell/s", "/s", 5, 10),
    "thread tell/s": _ratio("tell/s from a thread", "/s", 3, 6),
    "ask p50 us": _at_most("ask p50", "µs", 20, 4),
    "ask p99 us": _at_most("ask p99", "µs", 80, 10),
    "spawn/s": _ratio("spawn/s supervised, 10k", "/s", 40, 100),
    "stop/s": _ratio("stop/s, 10k", "/s", 20, 70),
    "bytes per idle actor": _at_most("bytes per idle actor", "B", 1_200, 650),
    "kill to answer p50 us": _at_most("kill → restarted p50, 10k", "µs", 60, 15),
    "kill to answer p99 us": _at_most("kill → restarted p99, 10k", "µs", 400, 60),
    "kill in await p50 us": _at_most(
        "killed in an await → restarted p50", "µs", 150, 40
    ),
    "10k killed, all back ms": _at_most("10 000 killed, all back", "ms", 250, 60),
}
"""By the names that benchmarks/actors.py gives them."""

MILLION = {
    "1M in all s": _at_most("1 000 000 spawned, told, stopped", "s", 10, 5),
    "1M MB in all": _at_most("1 000 000 of them, memory in all", "MB", 1_200, 650),
}


async def measure(bench: Bench) -> list[Sample]:
    return _samples(FIGURES, await _run(bench))


async def measure_million(bench: Bench) -> list[Sample]:
    return _samples(MILLION, await _run(bench, "--million"))


PARTS = (
    Part("actors", tuple(FIGURES.values()), measure),
    Part(
        "actors: a million",
        tuple(MILLION.values()),
        measure_million,
        once=True,
        quick=False,
    ),
)


def _samples(figures: dict[str, Figure], told: dict[str, float]) -> list[Sample]:
    return [
        Sample(figure.name, told[name], told.get(f"{name} pykka"))
        for name, figure in figures.items()
    ]


async def _run(bench: Bench, *options: str) -> dict[str, float]:
    path = bench.folder() / "figures.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.actors"),
        *("--rounds", "1", "--json", str(path), *options),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
    figures: dict[str, float] = json.loads(path.read_text())
    return figures
