"""Faults of what an actor's code brings along: each hurts that actor only."""

import asyncio
from typing import Any

import pytest
import structlog

from tests.supervision.actors import (
    AskCrash,
    Bump,
    Count,
    Counter,
    Crash,
    Do,
    Gate,
    Quit,
    TellDo,
    ask_later,
    children,
    epoch,
    one,
    outcome,
    started,
    state,
)
from trustfabric.supervision import (
    ActorCrashedError,
    Address,
    Down,
    ManualClock,
    Notice,
    Restart,
    Runtime,
    State,
    TraceEvent,
)


class WordlessError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


async def test_an_error_that_cannot_be_put_in_words_is_a_crash_like_any_other() -> None:
    runtime, a = await one()

    told = await outcome(
        asyncio.ensure_future(a.ask(AskCrash(WordlessError()), within_s=9.0))
    )

    assert isinstance(told, ActorCrashedError)
    assert isinstance(told.__cause__, WordlessError)
    assert epoch(runtime) == 2
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_of_a_long_text_only_the_beginning_is_kept() -> None:
    runtime, a = await one()

    a.tell(Crash(ValueError("x" * 1_000_000)))
    await runtime.quiet()

    (report,) = [r for r in runtime.report() if r.path == "root/a"]
    assert report.restarts[0].reason.startswith("ValueError: xxx")
    assert len(report.restarts[0].reason) < 1_100
    await runtime.stop()


async def test_an_answer_to_nobody_that_cannot_be_put_in_words_hurts_nobody() -> None:
    a = Address[Counter]("a")
    runtime = await started(
        Runtime(clock=ManualClock(), answers=(WordlessError,)), *children(a)
    )

    a.tell(Crash(WordlessError()))

    assert await a.ask(Count(), within_s=1.0) == 1
    assert epoch(runtime) == 1
    await runtime.stop()


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
async def test_two_faulty_reactions_to_one_end_are_one_fall(
    error: type[BaseException],
) -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(
        Runtime(clock=ManualClock()),
        *children(a),
        *children(b, restart=Restart.TEMPORARY),
    )

    def faulty(_: Down) -> Notice[Counter]:
        raise error

    for _ in range(2):
        await a.ask(Do(lambda actor: actor.watch(b, faulty)), within_s=1.0)
    b.tell(Quit())
    await runtime.quiet()

    (report,) = [r for r in runtime.report() if r.path == "root/a"]
    assert report.restart_count == 1
    assert state(b) is State.DEAD
    await runtime.stop()


async def test_a_faulty_observer_is_removed_and_hurts_nobody(
    events: list[Any],
) -> None:
    runtime, a = await one()

    def faulty(_: TraceEvent) -> None:
        raise ZeroDivisionError

    runtime.observe(faulty)
    trace = runtime.trace("root/a")
    a.tell(TellDo(lambda _: None))
    await runtime.quiet()

    assert await a.ask(Count(), within_s=9.0) == 1
    assert len(trace.events()) == 4
    assert [e["event"] for e in events].count("observer.removed") == 1
    await runtime.stop()


async def test_a_bug_in_the_cleanup_after_a_kill_is_logged(events: list[Any]) -> None:
    runtime, a = await one()
    gate = Gate()

    async def beside() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError("beside")

    async def handler(actor: Counter) -> None:
        _ = actor.run(beside(), lambda _: Bump())
        try:
            await asyncio.sleep(0)
            await gate(actor)
        finally:
            raise ZeroDivisionError("handler")

    held = ask_later(a, handler)
    await gate.begun.wait()
    await runtime.kill("root/a")
    await outcome(held)

    said = [e["error"] for e in events if e["event"] == "actor.cleanup_failed"]
    assert sorted(said) == [
        "ZeroDivisionError: beside",
        "ZeroDivisionError: handler",
    ]
    await runtime.stop()


async def test_a_cleanup_is_not_cut_off_by_the_end_of_another() -> None:
    runtime, a = await one()
    gate, cleaned = Gate(), list[str]()

    async def beside() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.append("beside")

    async def handler(actor: Counter) -> None:
        _ = actor.run(beside(), lambda _: Bump())
        await asyncio.sleep(0)
        try:
            await gate(actor)
        finally:
            await asyncio.sleep(0)
            cleaned.append("handler")

    held = ask_later(a, handler)
    await gate.begun.wait()
    await runtime.kill("root/a")
    await outcome(held)

    assert cleaned == ["handler", "beside"]
    await runtime.stop()


async def test_an_actors_own_notices_end_with_it_and_are_no_dead_letters() -> None:
    clock, gate = ManualClock(), Gate()
    a = Address[Counter]("a")
    runtime = await started(
        Runtime(clock=clock), *children(a, restart=Restart.TEMPORARY)
    )
    await a.ask(Do(lambda actor: actor.after(1.0, Bump())), within_s=1.0)
    held = ask_later(a, gate)
    await gate.begun.wait()
    clock.advance(1.0)
    a.tell(Bump())

    await runtime.kill("root/a")
    await outcome(held)

    assert runtime.dead_letters.total == 1
    await runtime.stop()


async def test_a_log_that_fails_does_not_keep_an_actor_down() -> None:
    runtime, a = await one()

    def broken(*_: Any) -> Any:
        raise BrokenPipeError

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[broken])
    try:
        a.tell(Crash())
        await runtime.quiet()
    finally:
        structlog.configure(processors=before)

    assert state(a) is State.RUNNING
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()
