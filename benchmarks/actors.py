"""Actors on the loop beside pykka's ThreadingActor, in the same run.

    python -m benchmarks.actors [--rounds N] [--json FILE] [--million]

Ratios are what to trust: a shared machine changes its pace, but within a round both
sides have the same. Each figure is the median of its rounds.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pykka
import structlog

from trustfabric.supervision import (
    Actor,
    Address,
    Backoff,
    DynamicAddress,
    DynamicSpec,
    Notice,
    Request,
    Runtime,
    SupervisorSpec,
)

TELLS = 100_000
ASKS = 3_000
SPAWNS = 10_000
PEER_SPAWNS = 500
RESTARTS = 500


@dataclass(frozen=True, slots=True)
class Tick(Notice["Worker"]):
    pass


@dataclass(frozen=True, slots=True)
class Get(Request["Worker", int]):
    pass


@dataclass(frozen=True, slots=True)
class GetLater(Request["Worker", int]):
    pass


class Worker(Actor):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def handle(self, message: Tick | Get | GetLater) -> Any:
        if isinstance(message, GetLater):
            return self.later()
        self.count += 1
        return self.count

    async def later(self) -> int:
        return self.count


class Peer(pykka.ThreadingActor):
    use_daemon_thread = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: Any) -> int:  # noqa: ARG002
        self.count += 1
        return self.count


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def percentile(sample: list[float], share: float) -> float:
    return sorted(sample)[min(len(sample) - 1, int(len(sample) * share))]


Figures = dict[str, float]


class Ours:
    """A runtime with one dynamic supervisor of workers."""

    def __init__(self) -> None:
        self.runtime = Runtime(watchdog_s=0.0)
        self.book = DynamicAddress[Worker]("many")

    async def __aenter__(self) -> Self:
        many = DynamicSpec(
            address=self.book,
            max_restarts=1_000_000,
            max_restarts_total=10_000_000,
            backoff=Backoff(min_s=0.0, jitter=0.0),
        )
        await self.runtime.start(SupervisorSpec(name="bench", children=(many,)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runtime.stop(60.0)

    async def spawn(self, count: int) -> list[Address[Worker]]:
        start = self.book.start_child
        return [await start(str(n), Worker) for n in range(count)]


async def tells() -> Figures:
    async with Ours() as ours:
        (worker,) = await ours.spawn(1)
        tick, begun = Tick(), time.perf_counter()
        for _ in range(TELLS // 500):
            for _ in range(500):
                worker.tell(tick)
            await worker.ask(Get(), within_s=60.0)
        mine = TELLS / (time.perf_counter() - begun)
    peer, begun = Peer.start(), time.perf_counter()
    for _ in range(TELLS // 5):
        peer.tell("tick")
    peer.ask("get")
    theirs = TELLS / 5 / (time.perf_counter() - begun)
    peer.stop()
    return {"tell/s": mine, "tell/s pykka": theirs}


async def asks() -> Figures:
    figures: Figures = {}
    async with Ours() as ours:
        (worker,) = await ours.spawn(1)
        for name, request in (("ask", Get()), ("ask async", GetLater())):
            sample = []
            for _ in range(ASKS):
                begun = time.perf_counter()
                await worker.ask(request, within_s=60.0)
                sample.append((time.perf_counter() - begun) * 1e6)
            figures[f"{name} p50 us"] = percentile(sample, 0.5)
            figures[f"{name} p99 us"] = percentile(sample, 0.99)
    peer, sample = Peer.start(), []
    for _ in range(ASKS):
        begun = time.perf_counter()
        peer.ask("get")
        sample.append((time.perf_counter() - begun) * 1e6)
    peer.stop()
    figures["ask p50 us pykka"] = percentile(sample, 0.5)
    figures["ask p99 us pykka"] = percentile(sample, 0.99)
    return figures


async def from_a_thread() -> Figures:
    async with Ours() as ours:
        (worker,) = await ours.spawn(1)

        def flood() -> float:
            tick, begun = Tick(), time.perf_counter()
            for _ in range(TELLS // 500):
                for _ in range(500):
                    worker.tell(tick)
                worker.ask(Get(), block=True)
            return TELLS / (time.perf_counter() - begun)

        def one_by_one() -> list[float]:
            sample = []
            for _ in range(ASKS):
                begun = time.perf_counter()
                worker.ask(Get(), block=True)
                sample.append((time.perf_counter() - begun) * 1e6)
            return sample

        rate = await asyncio.to_thread(flood)
        sample = await asyncio.to_thread(one_by_one)
    return {
        "thread tell/s": rate,
        "thread ask p50 us": percentile(sample, 0.5),
        "thread ask p99 us": percentile(sample, 0.99),
    }


async def spawns() -> Figures:
    gc.collect()
    before = resident_bytes()
    async with Ours() as ours:
        begun = time.perf_counter()
        await ours.spawn(SPAWNS)
        mine = SPAWNS / (time.perf_counter() - begun)
        gc.collect()
        weight = (resident_bytes() - before) / SPAWNS
        begun = time.perf_counter()
    stops = SPAWNS / (time.perf_counter() - begun)
    gc.collect()
    before, begun = resident_bytes(), time.perf_counter()
    peers = [Peer.start() for _ in range(PEER_SPAWNS)]
    theirs = PEER_SPAWNS / (time.perf_counter() - begun)
    their_weight = (resident_bytes() - before) / PEER_SPAWNS
    begun = time.perf_counter()
    for peer in peers:
        peer.stop()
    their_stops = PEER_SPAWNS / (time.perf_counter() - begun)
    return {
        "spawn/s": mine,
        "spawn/s pykka": theirs,
        "stop/s": stops,
        "stop/s pykka": their_stops,
        "bytes per idle actor": weight,
        "bytes per idle actor pykka": their_weight,
    }


async def restarts() -> Figures:
    async with Ours() as ours:
        workers = await ours.spawn(SPAWNS)
        sample = []
        for worker in workers[:RESTARTS]:
            begun = time.perf_counter()
            worker.kill()
            await worker.ask(Get(), within_s=60.0)
            sample.append((time.perf_counter() - begun) * 1e6)
        begun = time.perf_counter()
        for worker in workers:
            worker.kill()
        for worker in workers:
            await worker.ask(Get(), within_s=60.0)
        storm = (time.perf_counter() - begun) * 1e3
    return {
        "kill to answer p50 us": percentile(sample, 0.5),
        "kill to answer p99 us": percentile(sample, 0.99),
        "10k killed, all answer ms": storm,
    }


async def million() -> Figures:
    count = 1_000_000
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)  # a full collection walks every actor
    before, begun = resident_bytes(), time.perf_counter()
    async with Ours() as ours:
        workers = await ours.spawn(count)
        spawned = time.perf_counter() - begun
        weight = (resident_bytes() - before) / count
        begun, tick = time.perf_counter(), Tick()
        for worker in workers:
            worker.tell(tick)
        await workers[-1].ask(Get(), within_s=60.0)
        told = time.perf_counter() - begun
        begun = time.perf_counter()
    stopped = time.perf_counter() - begun
    return {
        "1M spawned s": spawned,
        "1M told s": told,
        "1M stopped s": stopped,
        "1M bytes each": weight,
    }


def measure(
    parts: list[Callable[[], Awaitable[Figures]]], rounds: int
) -> dict[str, float]:
    sample: dict[str, list[float]] = {}
    for _ in range(rounds):
        for part in parts:
            for name, value in asyncio.run(_awaited(part)).items():
                sample.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in sample.items()}


async def _awaited(part: Callable[[], Awaitable[Figures]]) -> Figures:
    return await part()


def table(figures: dict[str, float]) -> str:
    lines = []
    for name, value in figures.items():
        if name.endswith(" pykka"):
            continue
        peer = figures.get(f"{name} pykka")
        ratio = ""
        if peer is not None:
            times = value / peer if name.endswith("/s") else peer / value
            ratio = f"{peer:14,.0f}   {times:6.1f} x better"
        lines.append(f"{name:28}{value:14,.1f}{ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--million", action="store_true")
    options = parser.parse_args()
    quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=quiet)
    figures = measure([tells, asks, from_a_thread, spawns, restarts], options.rounds)
    if options.million:
        figures |= measure([million], 1)
    print(f"{'':28}{'ours':>14}{'pykka':>14}")
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
