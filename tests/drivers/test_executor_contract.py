"""What every executor has to be: one suite, run against each."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.drivers.executor_benches import (
    SECRET,
    AnsibleBench,
    Bench,
    ShellBench,
    a_cloud,
    a_workplace,
    run,
)
from tests.drivers.test_shell import TOKEN, Log, a_job
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.ids import RunId

pytestmark = pytest.mark.slow  # ansible takes a second to say anything

KINDS = ("shell", "ansible", "cloud_api")


@pytest_asyncio.fixture(params=KINDS)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    match request.param:
        case "shell":
            with a_workplace() as workplace:
                yield ShellBench(workplace)
        case "ansible":
            with a_workplace() as workplace:
                yield AnsibleBench(workplace)
        case _:
            async with a_cloud() as cloud:
                yield cloud


async def test_lines_come_while_the_program_runs(bench: Bench) -> None:
    log = Log()
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(
            bench.executor.execute(a_job(**bench.gated()), log.emit, asyncio.Event())
        )
        while not any("first" in line for line in log.lines()):
            log.grew.clear()
            await log.grew.wait()
        assert not work.done()
        bench.open_gate()

    assert work.result().failure_reason is None, log.events
    assert any("second" in line for line in log.lines())
    assert bench.left() == []


async def test_a_cancel_ends_it_and_all_of_it(bench: Bench) -> None:
    log, cancelled = Log(), asyncio.Event()
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(
            bench.executor.execute(a_job(**bench.endless()), log.emit, cancelled)
        )
        while not any("on" in line for line in log.lines()):
            log.grew.clear()
            await log.grew.wait()
        cancelled.set()

    status = work.result()
    assert status.failure_reason is FailureReason.CANCELLED
    assert "stopped on request" in status.message
    assert "could not be proven" not in status.message
    assert bench.left() == []


async def test_when_the_execution_itself_is_cancelled_nothing_is_left(
    bench: Bench,
) -> None:
    log = Log()
    work = asyncio.ensure_future(
        bench.executor.execute(a_job(**bench.endless()), log.emit, asyncio.Event())
    )
    async with asyncio.timeout(50):
        while not log.events:
            log.grew.clear()
            await log.grew.wait()

    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work

    assert bench.left() == []
    assert await bench.executor.reap(RunId(1)) == 0


async def test_what_is_no_text_is_shown_all_the_same(bench: Bench) -> None:
    status, log = await run(bench, bench.odd_bytes())

    for event in log.events:
        event.message.encode()
        assert "\0" not in event.message
    status.message.encode()


async def test_a_flood_is_bounded_and_says_so(bench: Bench) -> None:
    status, log = await run(bench, bench.flood())

    said = "\n".join([*log.lines(), status.message])
    assert len(said) < 50_000
    assert "limit" in said or "larger than" in said
    assert sum(len(file.content) for file in status.files) < 1 << 20


async def test_s17_secrets_are_masked_everywhere(bench: Bench) -> None:
    status, log = await run(bench, bench.leak())

    assert status.failure_reason is FailureReason.EXECUTION_FAILURE
    shown = repr(log.events) + repr(status) + repr([f.content for f in status.files])
    for form in ("hunter2", SECRET, TOKEN, "aHVudGVyMi", "dXNlcjpodW50ZXI"):
        assert form not in shown.replace("***", ""), form


async def test_the_runs_data_is_there_and_is_only_data(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", "of-the-runtime-itself")
    status, log = await run(bench, bench.tell_run())

    assert status.failure_reason is None, log.events
    said = repr(log.events) + repr(status.detail)
    assert "{{7*7}} $(id)" in said
    assert TOKEN not in said
    assert "of-the-runtime-itself" not in said


async def test_every_failure_is_told_by_its_reason(bench: Bench) -> None:
    for reason, spec in bench.failing().items():
        status, log = await run(bench, spec)

        assert status.failure_reason == reason, (spec, status, log.events)
        assert status.message
        assert bench.left() == []


async def test_a_playbook_that_can_not_be_read_is_a_bug(bench: Bench) -> None:
    status, _ = await run(bench, {"neither": "this"})

    assert status.failure_reason is FailureReason.PLAYBOOK_BUG


async def test_what_an_earlier_runtime_left_is_ended_by_the_next(bench: Bench) -> None:
    log, cancelled = Log(), asyncio.Event()
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(
            bench.executor.execute(a_job(**bench.endless()), log.emit, cancelled)
        )
        while not any("on" in line for line in log.lines()):
            log.grew.clear()
            await log.grew.wait()
        while not bench.is_endless():
            await asyncio.sleep(0.01)
        alive = len(bench.left())

        killed = await bench.successor().reap(RunId(1))

        # How many is open: a sandbox that is killed takes others along.
        assert bool(killed) == bool(alive)
        assert bench.left() == []
        cancelled.set()

    assert work.result().failure_reason is not None


async def test_reaping_what_is_not_there_is_nothing(bench: Bench) -> None:
    assert await bench.executor.reap(RunId(99)) == 0
