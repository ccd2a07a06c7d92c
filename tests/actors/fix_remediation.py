"""The remediation half of the tree on a real database, real streams and programs."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.db.fix_runs import add_instance, read_run
from trustfabric.actors.attestation import Attest
from trustfabric.actors.dispatch import CancelRun, Dispatcher, _Tick
from trustfabric.actors.holds import Holds
from trustfabric.actors.ledger import Ledger
from trustfabric.actors.listener import Listener
from trustfabric.actors.orders import Desk
from trustfabric.actors.playbooks import Playbooks
from trustfabric.actors.runs import RunActor, RunTools
from trustfabric.actors.streams import Broadcaster, Feed, Stream
from trustfabric.actors.trust import ApplyChange, TrustRegistry
from trustfabric.db import hold_events, listen, run_events, runs, trust, trust_events
from trustfabric.db.session import Database
from trustfabric.domain.dispatch import DispatchSettings
from trustfabric.domain.executors import Executor as JobExecutor
from trustfabric.domain.ids import InstanceId, RunId
from trustfabric.domain.runs import RetryPolicy, Run, RunStatus
from trustfabric.domain.specs import ExecutorType
from trustfabric.domain.storms import StormLimits
from trustfabric.domain.trust import Change, Signal, Snapshot
from trustfabric.drivers.secrets import Secrets
from trustfabric.drivers.shell import ShellExecutor
from trustfabric.drivers.subprocesses import marked
from trustfabric.drivers.workplace import ProgramSettings, Workplace
from trustfabric.errors import FabricError, NotFoundError, UnavailableError
from trustfabric.supervision import (
    Actor,
    Address,
    ChildSpec,
    Clock,
    DynamicAddress,
    DynamicSpec,
    Restart,
    Runtime,
    Strategy,
    SupervisorSpec,
)

FEEDS = (
    Feed(Stream.TRUST, listen.TRUST_CHANNEL, trust_events.events_after),
    Feed(Stream.REMEDIATION, listen.REMEDIATION_CHANNEL, run_events.events_after),
    Feed(Stream.HOLDS, hold_events.CHANNEL, hold_events.events_after),
)
SETTINGS = DispatchSettings(runtime_id="here", tick_s=0.2)
CALM = StormLimits(minimum=10_000)
RETRY = RetryPolicy(limit=2, base_s=0.05, longest_s=0.1)


class Challenger(Actor):
    """Stands where attestation does; keeps what it was asked for."""

    def __init__(self, asked: list[Attest]) -> None:
        super().__init__()
        self._asked = asked

    def handle(self, message: Attest) -> None:
        self._asked.append(message)


@dataclass
class Fabric:
    """A running tree, and what a test does with it."""

    database: Database
    runtime: Runtime
    trust: Address[TrustRegistry]
    holds: Address[Holds]
    playbooks: Address[Playbooks]
    dispatcher: Address[Dispatcher]
    runs: DynamicAddress[RunActor]
    executor: ShellExecutor
    asked: list[Attest] = field(default_factory=list)

    async def ask(self, request: Any) -> Any:
        return await self.dispatcher.ask(request, within_s=10)

    async def change(self, instance: InstanceId, signal: Signal) -> Snapshot:
        applied = await self.trust.ask(
            ApplyChange(
                instance_id=instance,
                change=Change(signal=signal, actor="test", reason=f"test: {signal}"),
            ),
            within_s=10,
        )
        return applied.after

    async def quarantined(self) -> InstanceId:
        """Add an instance whose evidence was rejected."""
        instance = await add_instance(self.database)
        await self.change(instance, Signal.UNTRUSTED_VERDICT)
        return instance

    async def posture(self, instance: InstanceId) -> Snapshot:
        async with self.database.reading() as conn:
            found = await trust.get_posture(conn, None, instance)
        assert found is not None
        return found

    async def run_of(
        self, instance: InstanceId, wanted: Callable[[Run], object]
    ) -> Run:
        """Wait until the instance's newest run is as wanted."""
        seen: list[Run] = []

        async def look() -> Run | None:
            async with self.database.reading() as conn:
                found = await runs.list_runs(
                    conn, runs.RunFilter(instance_id=instance), limit=1
                )
            seen[:] = found
            return found[0] if found and wanted(found[0]) else None

        run: Run = await until(look, lambda: seen)
        return run

    async def until_posture(
        self, instance: InstanceId, wanted: Callable[[Snapshot], object]
    ) -> Snapshot:
        seen: list[Snapshot] = []

        async def look() -> Snapshot | None:
            seen[:] = [await self.posture(instance)]
            return seen[0] if wanted(seen[0]) else None

        posture: Snapshot = await until(look, lambda: seen)
        return posture

    async def lines(self, run_id: RunId) -> list[str]:
        """Return what the run's program has printed."""
        async with self.database.reading() as conn:
            lines = await run_events.list_log(conn, None, run_id)
        return [line.message for line in lines if line.stream != "system"]

    async def until_line(self, run_id: RunId, text: str) -> None:
        async def look() -> bool | None:
            return text in await self.lines(run_id) or None

        await until(look, lambda: "no such line")

    async def quiet(self) -> None:
        """Return when all that can happen by itself, now, has happened."""
        nobody = CancelRun(owner=None, run_id=RunId(2**40), by="test")
        for _ in range(3):
            self.dispatcher.tell(_Tick())
            with pytest.raises(NotFoundError):
                await self.ask(nobody)

    async def count_running(self, most: int) -> list[Run]:
        """Follow all runs to their ends; fail where more run at once than `most`."""

        async def look() -> list[Run] | None:
            async with self.database.reading() as conn:
                found = await runs.list_runs(conn, runs.RunFilter())
            assert sum(run.status is RunStatus.RUNNING for run in found) <= most
            return None if any(run.status.active for run in found) else found

        ended: list[Run] = await until(look, lambda: "some are active")
        return ended

    async def until_printed(self, run_id: RunId, lines: int) -> None:
        """Wait until so much of its log is there, or the run is over."""

        async def look() -> bool | None:
            try:
                run = await self.read(run_id)
                printed = len(await self.lines(run_id))
            except UnavailableError:
                return None
            return (not run.status.active or printed >= lines) or None

        await until(look, lambda: "too few lines")

    async def until_gone(self, run_id: RunId) -> None:
        """Wait until no process of the run is left."""
        mark = f"{self.executor._workplace.installation}-{run_id}"

        async def look() -> bool | None:
            return None if marked(mark) else True

        await until(look, lambda: marked(mark))

    async def read_anyway(self, run_id: RunId) -> Run:
        """Read a run while its database's connections keep dying."""
        while True:
            try:
                return await self.read(run_id)
            except UnavailableError:
                await asyncio.sleep(0.01)

    async def read(self, run_id: RunId) -> Run:
        return await read_run(self.database, run_id)


async def until(look: Callable[[], Any], seen: Callable[[], object]) -> Any:
    """Return the first thing that `look` finds; fail with what was `seen`."""
    try:
        async with asyncio.timeout(30):
            while (found := await look()) is None:
                await asyncio.sleep(0.01)
            return found
    except TimeoutError:
        pytest.fail(f"waited in vain; last seen: {seen()}")


@contextmanager
def a_data_dir() -> Iterator[Path]:
    """A place that the account of programs can reach."""
    place = Path(tempfile.mkdtemp(prefix="tf-remediation-"))
    place.chmod(0o711)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def an_executor(data_dir: Path, threads: Executor) -> ShellExecutor:
    settings = ProgramSettings(
        root=data_dir / "runs",
        hidden=data_dir,
        url=lambda: "http://127.0.0.1:1",
        unsandboxed=os.geteuid() != 0,
    )
    return ShellExecutor(Workplace(settings, Secrets(), threads))


@asynccontextmanager
async def a_fabric(
    database: Database,
    database_url: str,
    settings: DispatchSettings = SETTINGS,
    lease_s: float = 30.0,
    *,
    data_dir: Path | None = None,
    limits: StormLimits = CALM,
    clock: Clock | None = None,
    programs: JobExecutor | None = None,
) -> AsyncIterator[Fabric]:
    """Start the tree; whatever ends the block, nothing goes on running.

    `programs` carries out shell playbooks instead of the real thing.
    """
    runtime = Runtime(answers=(FabricError,), clock=clock)
    broadcaster: Address[Broadcaster] = Address("broadcaster")
    challenger: Address[Any] = Address("attestation")
    ledger: Address[Ledger] = Address("ledger")
    with ThreadPoolExecutor(1) as threads, a_data_dir() as fresh:
        executor = an_executor(data_dir or fresh, threads)
        fabric = Fabric(
            database=database,
            runtime=runtime,
            trust=Address("trust"),
            holds=Address("holds"),
            playbooks=Address("playbooks"),
            dispatcher=Address("dispatcher"),
            runs=DynamicAddress("runs"),
            executor=executor,
        )
        tools = RunTools(
            database=database,
            trust=fabric.trust,
            ledger=ledger,
            attestation=challenger,
            executors={ExecutorType.SHELL: programs or executor},
            issue_token=_token,
            retry=RETRY,
            lease_s=lease_s,
        )

        async def open_wakeups(channels: Any) -> listen.Wakeups:
            return await listen.Wakeups.open(database_url, channels)

        def dispatcher() -> Dispatcher:
            desk = Desk(database, fabric.trust)
            return Dispatcher(
                desk, tools, broadcaster, fabric.holds, fabric.runs, settings
            )

        root = SupervisorSpec(
            name="fabric",
            max_restarts=100,
            children=(
                ChildSpec(
                    address=broadcaster,
                    start=lambda: Broadcaster(database, FEEDS, "test"),
                ),
                ChildSpec(
                    name="listener",
                    start=lambda: Listener(
                        database, broadcaster, FEEDS, "test", open_wakeups
                    ),
                ),
                ChildSpec(address=fabric.trust, start=lambda: TrustRegistry(database)),
                ChildSpec(address=ledger, start=lambda: Ledger(database)),
                ChildSpec(
                    address=fabric.holds,
                    start=lambda: Holds(
                        database, limits, settings.runtime_id, tick_s=settings.tick_s
                    ),
                ),
                ChildSpec(address=challenger, start=lambda: Challenger(fabric.asked)),
                SupervisorSpec(
                    name="remediation",
                    strategy=Strategy.REST_FOR_ONE,
                    max_restarts=100,
                    children=(
                        ChildSpec(
                            address=fabric.playbooks,
                            start=lambda: Playbooks(database),
                        ),
                        DynamicSpec(address=fabric.runs, restart=Restart.TEMPORARY),
                        ChildSpec(address=fabric.dispatcher, start=dispatcher),
                    ),
                ),
            ),
        )
        await runtime.start(root)
        try:
            yield fabric
        finally:
            await runtime.stop()


def _token(run: Run, until_at: datetime) -> str:
    assert until_at.tzinfo is not None
    return f"token-of-run-{run.id}-{run.lease_epoch}"
