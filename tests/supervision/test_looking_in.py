"""Watch, suspend, trace, report, and the watchdog."""

import asyncio
import threading
import time
from typing import Any

import pytest

from tests.supervision.actors import (
    Bump,
    Count,
    Counter,
    Crash,
    Do,
    Gate,
    Quit,
    TellDo,
    children,
    started,
    state,
)
from trustfabric.supervision import (
    Address,
    Down,
    Event,
    ExitKind,
    ManualClock,
    Notice,
    Restart,
    Runtime,
    State,
    SupervisorSpec,
    WouldDeadlockError,
)


def down_notice(downs: list[Down], down: Down) -> Notice[Counter]:
    return TellDo(lambda _: downs.append(down))


async def watched(
    restart: Restart,
) -> tuple[Runtime, Address[Counter], Address[Counter], list[Down]]:
    a, b, downs = Address[Counter]("a"), Address[Counter]("b"), list[Down]()
    runtime = await started(
        Runtime(clock=ManualClock()), *children(a), *children(b, restart=restart)
    )
    await a.ask(
        Do(lambda actor: actor.watch(b, lambda d: down_notice(downs, d))), within_s=1.0
    )
    return runtime, a, b, downs


async def test_a_watcher_hears_exactly_once_that_an_actor_is_gone() -> None:
    runtime, _, b, downs = await watched(Restart.TEMPORARY)

    b.tell(Crash())
    await runtime.quiet()

    (down,) = downs
    assert (down.path, down.exit.kind) == ("root/b", ExitKind.CRASHED)
    await runtime.stop()
    assert len(downs) == 1


async def test_a_restart_is_not_down() -> None:
    runtime, _, b, downs = await watched(Restart.PERMANENT)

    b.tell(Crash())
    await runtime.quiet()

    assert (state(b), downs) == (State.RUNNING, [])
    await runtime.stop()


async def test_a_watch_of_the_dead_is_answered_at_once() -> None:
    runtime, a, b, downs = await watched(Restart.TEMPORARY)
    b.tell(Quit())
    await runtime.quiet()

    await a.ask(
        Do(lambda actor: actor.watch(b, lambda d: down_notice(downs, d))), within_s=1.0
    )
    await runtime.quiet()

    assert len(downs) == 2
    assert downs[1].exit.reason == "not running"
    await runtime.stop()


async def test_a_cancelled_watch_and_one_of_a_dead_watcher_are_silent() -> None:
    runtime, a, b, downs = await watched(Restart.TEMPORARY)
    watch = await a.ask(
        Do(lambda actor: actor.watch(b, lambda d: down_notice(downs, d))), within_s=1.0
    )
    watch.cancel()

    a.kill()
    await runtime.quiet()
    b.tell(Quit())
    await runtime.quiet()

    assert downs == []
    await runtime.stop()


async def test_a_fault_in_a_watchers_reaction_is_the_watchers() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(
        Runtime(clock=ManualClock()),
        *children(a),
        *children(b, restart=Restart.TEMPORARY),
    )

    def faulty(_: Down) -> Any:
        raise ZeroDivisionError

    await a.ask(Do(lambda actor: actor.watch(b, faulty)), within_s=1.0)

    b.tell(Quit())
    await runtime.quiet()

    assert {r.path: r.epoch for r in runtime.report()}["root/a"] == 2
    assert state(b) is State.DEAD
    await runtime.stop()


async def test_a_suspended_actor_handles_system_mail_only() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    runtime.suspend("root/a")
    asked = asyncio.ensure_future(a.ask(Count(), within_s=9.0))
    await runtime.quiet()
    assert not asked.done()
    (report,) = [r for r in runtime.report() if r.path == "root/a"]
    assert (report.state, report.depth) == ("suspended", 1)
    runtime.resume("root/a")

    assert await asked == 1
    runtime.suspend("root/a")
    await runtime.stop()
    assert state(a) is State.DEAD


async def test_a_trace_shows_what_one_actor_did() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b))
    trace = runtime.trace("root/a")

    await b.ask(Count(), within_s=1.0)
    await a.ask(Count(), within_s=1.0)
    a.tell(Crash())
    await runtime.quiet()
    trace.stop()
    await a.ask(Count(), within_s=1.0)

    assert [(e.event, e.detail) for e in trace.events()] == [
        (Event.HANDLING, "Count"),
        (Event.HANDLED, "Count"),
        (Event.HANDLING, "Crash"),
        (Event.HANDLED, "Crash ZeroDivisionError"),
        (Event.DOWN, "ZeroDivisionError: bug"),
        (Event.STARTED, "Counter"),
    ]
    await runtime.stop()


async def test_the_report_shows_the_tree_and_who_waits_for_whom() -> None:
    a, b, clock, gate = (
        Address[Counter]("a"),
        Address[Counter]("b"),
        ManualClock(),
        Gate(),
    )
    inner = SupervisorSpec(name="inner", children=children(b))
    runtime = await started(Runtime(clock=clock), *children(a), inner)

    async def asks(_: Counter) -> Any:
        return await b.ask(Do(gate), within_s=9.0)

    asked = asyncio.ensure_future(a.ask(Do(asks), within_s=9.0))
    await gate.begun.wait()
    b.tell(Bump())
    clock.advance(1.5)
    report = {r.path: r for r in runtime.report()}

    assert list(report) == ["root", "root/a", "root/inner", "root/inner/b"]
    assert [r.kind for r in report.values()] == [
        "Supervisor",
        "Counter",
        "Supervisor",
        "Counter",
    ]
    assert report["root/a"].waiting_on == ("root/inner/b",)
    assert (report["root/a"].current, report["root/a"].current_age_s) == ("Do", 1.5)
    assert report["root/inner/b"].depth == 1
    gate.go.set()
    await asked
    assert runtime.report()[1].waiting_on == ()
    await runtime.stop()


async def test_a_crash_is_logged_once_with_its_traceback(events: list[Any]) -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    a.tell(Crash())
    await runtime.quiet()
    await runtime.stop()

    (event,) = events
    assert (event["event"], event["path"], event["epoch"], event["message"]) == (
        "actor.crashed",
        "root/a",
        1,
        "Crash",
    )
    assert isinstance(event["exc_info"], ZeroDivisionError)
    assert (event["then"], event["restart_in_s"]) == ("restarts", 0.0)


async def test_a_notice_refused_on_purpose_is_logged_and_the_actor_lives(
    events: list[Any],
) -> None:
    a = Address[Counter]("a")
    runtime = await started(
        Runtime(clock=ManualClock(), answers=(ZeroDivisionError,)), *children(a)
    )

    a.tell(Crash())
    await runtime.quiet()

    assert [e["event"] for e in events] == ["actor.notice_refused"]
    assert {r.epoch for r in runtime.report()} == {1}
    await runtime.stop()


# --- blocking ------------------------------------------------------------------


async def test_blocking_on_the_loop_is_refused_at_once() -> None:
    a = Address[Counter]("a")
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    with pytest.raises(WouldDeadlockError):
        a.ask(Count(), block=True)
    with pytest.raises(WouldDeadlockError):
        a.stop()
    future = a.ask(Count(), block=False)
    with pytest.raises(WouldDeadlockError):
        future.get()

    assert await future == 1
    assert future.get() == 1
    await runtime.stop()


# --- a hog ----------------------------------------------------------------------


def hold_until(seen: threading.Event) -> None:
    """Hold the thread as a computation would, until the watchdog has seen it."""
    seen.wait(30.0)


@pytest.mark.parametrize("in_coroutine", [True, False])
async def test_an_actor_that_holds_the_loop_is_named_with_its_stack(
    events: list[Any], monkeypatch: pytest.MonkeyPatch, *, in_coroutine: bool
) -> None:
    a, seen = Address[Counter]("a"), threading.Event()
    runtime = await started(Runtime(watchdog_s=0.02), *children(a))

    async def coroutine(_: Counter) -> None:
        await asyncio.sleep(0)
        hold_until(seen)

    watchdog = runtime._watchdog
    assert watchdog is not None
    blame = watchdog._blame

    def blame_and_tell() -> None:
        blame()
        if "hold_until" in "".join(runtime.holds[-1].stack):
            seen.set()  # a busy machine may have held the loop before

    monkeypatch.setattr(watchdog, "_blame", blame_and_tell)
    await a.ask(
        Do(coroutine if in_coroutine else lambda _: hold_until(seen)), within_s=99.0
    )
    await runtime.stop()

    (path,) = {h.path for h in runtime.holds if "hold_until" in "".join(h.stack)}
    assert path == "root/a"
    assert events[0]["event"] == "loop.held"


async def test_what_is_counted_follows_what_happens() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    specs = (*children(a), *children(b, restart=Restart.TEMPORARY))
    runtime = await started(Runtime(clock=ManualClock()), *specs)
    before = runtime.counts()

    a.tell(Crash())
    b.kill("by hand")
    await runtime.quiet()
    b.tell(Bump())

    counts = runtime.counts()
    assert before.up == {"Supervisor": 1, "Counter": 2}
    assert counts.up == {"Supervisor": 1, "Counter": 1}
    assert counts.started == before.started + 1
    assert counts.restarts == {ExitKind.CRASHED: 1}
    assert counts.dead_letters == {"not running": 1}
    await runtime.stop()
    assert runtime.counts().up == {}


async def test_the_watchdog_samples_how_late_the_loop_is() -> None:
    runtime = await started(Runtime(watchdog_s=0.02))

    def late() -> int:
        lag = runtime.counts().lag
        by_bound = zip((*lag.bounds, 2.0), lag.counts, strict=True)
        return sum(count for bound, count in by_bound if bound > 0.05)

    # On a busy machine its thread may sleep through one hold, or note it later.
    while not (late() and runtime.counts().held):
        time.sleep(0.1)  # the very thing it watches for
        await asyncio.sleep(0.01)
    await runtime.stop()
