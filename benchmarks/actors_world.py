"""What benchmarks/actors.py runs: a worker, pykka's like it, and a tree of workers."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pykka

from trustfabric.supervision import (
    Actor,
    Address,
    Backoff,
    DynamicAddress,
    DynamicSpec,
    MailboxSpec,
    Notice,
    Request,
    Runtime,
    SupervisorSpec,
)


@dataclass(frozen=True, slots=True)
class Tick(Notice["Worker"]):
    pass


@dataclass(frozen=True, slots=True)
class Get(Request["Worker", int]):
    pass


@dataclass(frozen=True, slots=True)
class GetLater(Request["Worker", int]):
    pass


@dataclass(frozen=True, slots=True)
class Wait(Notice["Worker"]):
    pass


class Worker(Actor):
    mailbox = MailboxSpec(limit=1_000_000)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def handle(self, message: Tick | Get | GetLater | Wait) -> Any:
        match message:
            case Tick() | Get():
                self.count += 1
                return self.count
            case GetLater():
                return self.later()
            case Wait():
                return self.sleep(3600.0)

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
