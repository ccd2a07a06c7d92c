"""Actors on the loop beside pykka's ThreadingActor and Erlang's, in the same run.

    python -m benchmarks.actors [--rounds N] [--json FILE] [--million] [--only WORD]

Ratios are what to trust: a shared machine changes its pace, but within a round all
sides have the same. Each figure is the median of its rounds. Each part runs in a
process of its own: what others left in memory is nothing that it should pay for.
Nothing is logged: a line written costs more than a restart.
"""

import argparse
import asyncio
import gc
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import structlog

from benchmarks import actors_erlang
from benchmarks.actors_world import (
    Get,
    GetLater,
    Ours,
    Peer,
    Tick,
    Wait,
    Worker,
    resident_bytes,
)
from benchmarks.frame import percentile
from trustfabric.supervision import Address, State

TELLS = 100_000
FLOOD = 20_000
"""Told from a thread without a pause, then waited for; as much as may be on its way."""
BURST = 500
ASKS = 3_000
SPAWNS = 10_000
MANY_SPAWNS = 50_000
PEER_SPAWNS = 3_000
WARM_UP = 1_000
"""Started and stopped before it counts, by either side: code and memory are warm."""
RESTARTS = 500
PEERS = ("pykka", "erlang")


Figures = dict[str, float]


async def tells() -> Figures:
    async with Ours() as ours:
        (worker,) = await ours.spawn(1)
        tick, begun = Tick(), time.perf_counter()
        for _ in range(TELLS):
            worker.tell(tick)
        await worker.ask(Get(), within_s=60.0)
        mine = TELLS / (time.perf_counter() - begun)
    peer, begun = Peer.start(), time.perf_counter()
    for _ in range(TELLS):
        peer.tell("tick")
    peer.ask("get")
    theirs = TELLS / (time.perf_counter() - begun)
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

        def flood(burst: int) -> float:
            return _flood(
                burst,
                partial(worker.tell, Tick()),
                partial(worker.ask, Get(), block=True),
            )

        def one_by_one() -> list[float]:
            sample = []
            for _ in range(ASKS):
                begun = time.perf_counter()
                worker.ask(Get(), block=True)
                sample.append((time.perf_counter() - begun) * 1e6)
            return sample

        rate = await asyncio.to_thread(flood, FLOOD)
        burst_rate = await asyncio.to_thread(flood, BURST)
        sample = await asyncio.to_thread(one_by_one)
    peer = Peer.start()
    figures = {"thread tell/s": rate, "bursts of 500 tell/s": burst_rate}
    for name, burst in (("thread tell/s", FLOOD), ("bursts of 500 tell/s", BURST)):
        tell, ask = partial(peer.tell, "tick"), partial(peer.ask, "get")
        figures[f"{name} pykka"] = _flood(burst, tell, ask)
    peer.stop()
    return {
        **figures,
        "thread ask p50 us": percentile(sample, 0.5),
        "thread ask p99 us": percentile(sample, 0.99),
    }


def _flood(burst: int, tell: Callable[[], object], ask: Callable[[], object]) -> float:
    begun = time.perf_counter()
    for _ in range(TELLS // burst):
        for _ in range(burst):
            tell()
        ask()
    return TELLS / (time.perf_counter() - begun)


async def spawns() -> Figures:
    async with Ours() as ours:
        await ours.spawn(WARM_UP)
    gc.collect()
    async with Ours() as ours:
        begun = time.perf_counter()
        await ours.spawn(SPAWNS)
        mine = SPAWNS / (time.perf_counter() - begun)
        begun = time.perf_counter()
    stops = SPAWNS / (time.perf_counter() - begun)
    async with Ours() as ours:
        await ours.spawn(MANY_SPAWNS)
        begun = time.perf_counter()
    many_stops = MANY_SPAWNS / (time.perf_counter() - begun)
    for peer in [Peer.start() for _ in range(WARM_UP)]:
        peer.stop()
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
        "50k stop/s": many_stops,
        "bytes per idle actor pykka": their_weight,
    }


async def restarts() -> Figures:
    figures: Figures = {}
    async with Ours() as ours:
        workers = await ours.spawn(SPAWNS)
        gc.collect()
        sample = []
        for worker in workers[:RESTARTS]:
            begun = time.perf_counter()
            worker.kill()
            await worker.ask(Get(), within_s=60.0)
            sample.append((time.perf_counter() - begun) * 1e6)
        figures["kill to answer p50 us"] = percentile(sample, 0.5)
        figures["kill to answer p99 us"] = percentile(sample, 0.99)
        sample = []
        for worker in workers[RESTARTS : 2 * RESTARTS]:
            worker.tell(Wait())
            await asyncio.sleep(0)
            begun = time.perf_counter()
            worker.kill()
            await worker.ask(Get(), within_s=60.0)
            sample.append((time.perf_counter() - begun) * 1e6)
        figures["kill in await p50 us"] = percentile(sample, 0.5)
        figures["kill in await p99 us"] = percentile(sample, 0.99)
    return figures


async def storm() -> Figures:
    async with Ours() as ours:
        workers = await ours.spawn(SPAWNS)
        gc.collect()
        begun = time.perf_counter()
        for worker in workers:
            worker.kill()
        assert all(worker.state is State.RUNNING for worker in workers)
        back = time.perf_counter() - begun
        for worker in workers:
            await worker.ask(Get(), within_s=60.0)
        answered = time.perf_counter() - begun
    return {
        "10k killed, all back ms": back * 1e3,
        "10k killed, all answer ms": answered * 1e3,
    }


async def loaded() -> Figures:
    """Kill and ask again and again, while others get 50,000 messages a second."""
    async with Ours() as ours:
        workers = await ours.spawn(SPAWNS)
        gc.collect()
        load = asyncio.create_task(background(workers[SPAWNS // 2 :], 50_000))
        sample = []
        for worker in workers[:RESTARTS]:
            await asyncio.sleep(0.001)
            begun = time.perf_counter()
            worker.kill()
            await worker.ask(Get(), within_s=60.0)
            sample.append((time.perf_counter() - begun) * 1e6)
        load.cancel()
    return {
        "loaded kill to answer p50 us": percentile(sample, 0.5),
        "loaded kill to answer p99 us": percentile(sample, 0.99),
    }


async def background(workers: list[Address[Worker]], rate: int) -> None:
    tick, begun, sent = Tick(), time.perf_counter(), 0
    while True:
        due = int((time.perf_counter() - begun) * rate)
        for number in range(sent, due):
            workers[number % len(workers)].tell(tick)
        sent = due
        await asyncio.sleep(0.0005)


async def lag() -> Figures:
    """How late a timer of 1 ms is, while 1,000 actors work off 300,000 messages."""
    async with Ours() as ours:
        workers = await ours.spawn(1_000)
        gc.collect()
        tick = Tick()
        for _ in range(300):
            for worker in workers:
                worker.tell(tick)
        sample = []
        while any(worker.cell.depth for worker in workers):
            begun = time.perf_counter()
            await asyncio.sleep(0.001)
            sample.append((time.perf_counter() - begun - 0.001) * 1e3)
    return {"flood lag p99 ms": percentile(sample, 0.99)}


async def weight() -> Figures:
    async with Ours() as ours:
        await ours.spawn(1)
        gc.collect()
        before = resident_bytes()
        await ours.spawn(MANY_SPAWNS)
        gc.collect()
        grown = resident_bytes() - before
    return {"bytes per idle actor": grown / MANY_SPAWNS}


async def million() -> Figures:
    """Spawned, told and stopped; with the collector off, as it would walk them all."""
    count = 1_000_000
    gc.collect()
    gc.disable()
    before, begun = resident_bytes(), time.perf_counter()
    async with Ours() as ours:
        workers = await ours.spawn(count)
        spawned = time.perf_counter() - begun
        grown = (resident_bytes() - before) / count
        begun, tick = time.perf_counter(), Tick()
        for worker in workers:
            worker.tell(tick)
        await workers[-1].ask(Get(), within_s=60.0)
        told = time.perf_counter() - begun
        most = resident_bytes()
        begun = time.perf_counter()
    stopped = time.perf_counter() - begun
    return {
        "1M spawned s": spawned,
        "1M told s": told,
        "1M stopped s": stopped,
        "1M in all s": spawned + told + stopped,
        "1M bytes each": grown,
        "1M MB in all": most / 1e6,
    }


async def erlang() -> Figures:
    return await actors_erlang.measure(TELLS, ASKS, SPAWNS, RESTARTS)


Part = Callable[[], Awaitable[Figures]]
PARTS: tuple[Part, ...] = (
    tells,
    asks,
    from_a_thread,
    spawns,
    restarts,
    storm,
    loaded,
    lag,
    erlang,
)
ONCE: tuple[Part, ...] = (weight, million)
"""They take long and vary little."""


def alone(name: str) -> Figures:
    """Measure a part in a process of its own."""
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "figures.json"
        command = (sys.executable, "-m", "benchmarks.actors")
        options = ("--only", name, "--json", str(path))
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
        figures: Figures = json.loads(path.read_text())
        return figures


def measure(names: Sequence[str], rounds: int) -> Figures:
    sample: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name in names:
            for figure, value in alone(name).items():
                sample.setdefault(figure, []).append(value)
    return {name: statistics.median(values) for name, values in sample.items()}


async def _awaited(part: Part) -> Figures:
    return await part()


def table(figures: dict[str, float]) -> str:
    lines = [f"{'':28}{'ours':>12}" + "".join(f"{peer:>22}" for peer in PEERS)]
    for name, value in figures.items():
        if not name.endswith(PEERS):
            beside = (_beside(name, value, figures.get(f"{name} {p}")) for p in PEERS)
            lines.append(f"{name:28}{value:12,.1f}" + "".join(beside))
    return "\n".join(lines)


def _beside(name: str, value: float, peer: float | None) -> str:
    if peer is None:
        return " " * 22
    times = value / peer if name.endswith("/s") else peer / value
    return f"{peer:12,.1f}{times:8.2f} x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--only", default="", help="the part with this name")
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=True,
    )
    known: dict[str, Part] = {part.__name__: part for part in (*PARTS, *ONCE)}
    if options.only:
        figures = asyncio.run(_awaited(known[options.only]))
    else:
        figures = measure([part.__name__ for part in PARTS], options.rounds)
        figures |= alone(weight.__name__)
        if options.million:
            figures |= alone(million.__name__)
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
