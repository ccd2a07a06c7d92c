import asyncio
from collections.abc import Callable
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
    children,
    started,
    state,
)
from trustfabric.supervision import (
    ActorCrashedError,
    Address,
    AskError,
    AutoShutdown,
    Backoff,
    ChildSpec,
    DynamicAddress,
    DynamicSpec,
    ManualClock,
    Restart,
    Runtime,
    State,
    Strategy,
    SupervisorSpec,
    exits,
)

NO_WAIT = Backoff(min_s=0.0, jitter=0.0)


def three() -> tuple[Address[Counter], Address[Counter], Address[Counter]]:
    return Address("a"), Address("b"), Address("c")


async def test_children_start_in_order_and_stop_in_reverse() -> None:
    log: list[str] = []
    runtime = await started(Runtime(clock=ManualClock()), *children(*three(), log=log))

    await runtime.stop()

    assert log == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Strategy.ONE_FOR_ONE, ["start b"]),
        (
            Strategy.ONE_FOR_ALL,
            ["stop c", "stop a", "start a", "start b", "start c"],
        ),
        (Strategy.REST_FOR_ONE, ["stop c", "start b", "start c"]),
    ],
)
async def test_a_strategy_restarts_its_set(
    strategy: Strategy, expected: list[str]
) -> None:
    a, b, c = three()
    log: list[str] = []
    runtime = await started(
        Runtime(clock=ManualClock()), *children(a, b, c, log=log), strategy=strategy
    )
    log.clear()

    b.tell(Crash())
    await runtime.quiet()

    assert log == expected
    assert {x.state for x in (a, b, c)} == {State.RUNNING}
    await runtime.stop()


def quit_(runtime: Runtime, a: Address[Counter]) -> Any:
    a.tell(Quit())


def crash(runtime: Runtime, a: Address[Counter]) -> Any:
    a.tell(Crash())


def kill(runtime: Runtime, a: Address[Counter]) -> Any:
    a.kill()


def shut_down(runtime: Runtime, a: Address[Counter]) -> Any:
    """As its supervisor ends it, though it is not leaving."""
    a.cell.request_stop(exits.shutdown())


def crash_while_shut_down(runtime: Runtime, a: Address[Counter]) -> Any:
    async def fail() -> None:
        raise ZeroDivisionError

    setattr(a.cell.actor, "on_stop", fail)  # noqa: B010
    a.cell.request_stop(exits.shutdown())


@pytest.mark.parametrize(
    ("restart", "fall", "returns"),
    [
        (Restart.PERMANENT, quit_, True),
        (Restart.PERMANENT, crash, True),
        (Restart.PERMANENT, kill, True),
        (Restart.PERMANENT, shut_down, True),
        (Restart.PERMANENT, crash_while_shut_down, True),
        (Restart.TRANSIENT, crash_while_shut_down, True),
        (Restart.TEMPORARY, crash_while_shut_down, False),
        (Restart.TRANSIENT, quit_, False),
        (Restart.TRANSIENT, crash, True),
        (Restart.TRANSIENT, kill, True),
        (Restart.TRANSIENT, shut_down, False),
        (Restart.TEMPORARY, quit_, False),
        (Restart.TEMPORARY, crash, False),
        (Restart.TEMPORARY, kill, False),
        (Restart.TEMPORARY, shut_down, False),
    ],
)
async def test_the_restart_matrix(
    restart: Restart, fall: Callable[[Runtime, Address[Counter]], Any], *, returns: bool
) -> None:
    a, b, _ = three()
    runtime = await started(
        Runtime(clock=ManualClock()), *children(a, b, restart=restart)
    )

    fall(runtime, a)
    await runtime.quiet()

    assert a.state is (State.RUNNING if returns else State.DEAD)
    assert state(b) is State.RUNNING
    await runtime.stop()


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
async def test_a_temporary_sibling_is_not_restarted_with_the_group(
    strategy: Strategy,
) -> None:
    a, b, _ = three()
    runtime = await started(
        Runtime(clock=ManualClock()),
        *children(a),
        *children(b, restart=Restart.TEMPORARY),
        strategy=strategy,
    )

    a.tell(Crash())
    await runtime.quiet()

    assert (a.state, b.state) == (State.RUNNING, State.DEAD)
    await runtime.stop()


async def test_mail_survives_the_restart_with_a_sibling() -> None:
    a, b, _ = three()
    gate = Gate()
    runtime = await started(
        Runtime(clock=ManualClock()), *children(a, b), strategy=Strategy.ONE_FOR_ALL
    )

    held = asyncio.ensure_future(b.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()
    waiting = asyncio.ensure_future(b.ask(Count(), within_s=9.0))
    await runtime.quiet()
    a.tell(Crash())
    await runtime.quiet()
    assert state(b) is State.RUNNING  # it is let finish what it has in hand
    gate.go.set()

    assert await held == "passed"
    assert await waiting == 1
    await runtime.stop()


async def test_too_many_restarts_end_the_runtime_with_the_reason() -> None:
    a, b, _ = three()
    log: list[str] = []
    runtime = await started(
        Runtime(clock=ManualClock()),
        *children(a, b, log=log, backoff=NO_WAIT),
        max_restarts=2,
    )

    for _ in range(3):
        a.tell(Crash())

    assert "more than 2 restarts in 60 s, the last of root/a" in await runtime.wait()
    assert log[-1] == "stop b"
    assert (a.state, b.state) == (State.DEAD, State.DEAD)


async def test_restarts_far_apart_never_escalate() -> None:
    a, _, _ = three()
    clock = ManualClock()
    runtime = await started(Runtime(clock=clock), *children(a), max_restarts=1)

    for _ in range(10):
        a.tell(Crash())
        await runtime.quiet()
        clock.advance(61.0)

    assert state(a) is State.RUNNING
    await runtime.stop()


async def test_a_supervisor_that_gives_up_is_restarted_by_its_parent() -> None:
    a, b, c = three()
    inner = SupervisorSpec(
        name="inner", max_restarts=1, children=children(b, c, backoff=NO_WAIT)
    )
    runtime = await started(Runtime(clock=ManualClock()), *children(a), inner)

    b.tell(Crash())
    b.tell(Crash())
    await runtime.quiet()

    report = {r.path: r for r in runtime.report()}
    assert report["root/inner"].epoch == 2
    assert report["root/a"].epoch == 1
    assert report["root/inner/c"].epoch == 2
    assert await b.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_killed_supervisor_takes_its_children_along() -> None:
    a, b, c = three()
    gate = Gate()
    inner = SupervisorSpec(name="inner", children=children(b, c))
    runtime = await started(Runtime(clock=ManualClock()), *children(a), inner)
    held = asyncio.ensure_future(b.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()
    b.tell(Bump())

    await runtime.kill("root/inner")

    assert isinstance(
        (await asyncio.gather(held, return_exceptions=True))[0], Exception
    )
    assert await b.ask(Count(), within_s=1.0) == 1
    assert runtime.dead_letters.by_path() == {"root/inner/b": 1}
    assert {r.epoch for r in runtime.report() if "inner" in r.path} == {2}
    await runtime.stop()


class Fragile(Counter):
    """Fails in its first attempts, in the constructor or in on_start."""

    def __init__(self, fails: list[str], log: list[str]) -> None:
        super().__init__(log, "fragile")
        self.fails = fails
        if fails and fails[0] == "constructor":
            raise RuntimeError(fails.pop(0))

    async def on_start(self) -> None:  # type: ignore[override]
        if self.fails:
            raise RuntimeError(self.fails.pop(0))
        super().on_start()


async def test_a_failing_start_is_retried_by_timer_and_holds_up_the_next() -> None:
    a, b, _ = three()
    clock, log = ManualClock(), list[str]()
    fails = ["constructor", "on_start", "constructor"]
    runtime = Runtime(clock=clock)
    starting = asyncio.ensure_future(
        started(
            runtime,
            ChildSpec(address=a, start=lambda: Fragile(fails, log)),
            *children(b, log=log),
        )
    )

    for _ in range(2):
        await asyncio.sleep(0.01)
        assert (a.state, b.state) == (State.WAITING, State.WAITING)
        assert log == []
        clock.advance(0.3)
    await starting

    assert log == ["start fragile", "start b"]
    await runtime.stop()


async def test_a_tree_that_cannot_start_says_why() -> None:
    a, _, _ = three()

    def bad() -> Counter:
        raise RuntimeError("no such file")

    with pytest.raises(ActorCrashedError, match="more than 0 restarts"):
        await started(
            Runtime(clock=ManualClock()),
            ChildSpec(address=a, start=bad),
            max_restarts=0,
        )
    assert state(a) is State.DEAD


async def test_mail_for_a_child_whose_turn_has_not_come_is_kept() -> None:
    a, b, _ = three()
    gate = Gate()

    class Slow(Counter):
        async def on_start(self) -> None:  # type: ignore[override]
            await gate(self)

    runtime = Runtime(clock=ManualClock())
    starting = asyncio.ensure_future(
        started(runtime, ChildSpec(address=a, start=Slow), *children(b))
    )
    await gate.begun.wait()
    assert b.tell(Bump())
    asked = asyncio.ensure_future(b.ask(Count(), within_s=1.0))
    gate.go.set()

    await starting
    assert await asked == 2
    await runtime.stop()


async def test_a_child_that_does_not_stop_in_time_is_stopped_by_force() -> None:
    a, b, _ = three()
    clock, gate = ManualClock(), Gate()
    runtime = await started(Runtime(clock=clock), *children(a, b, shutdown_s=2.0))
    held = asyncio.ensure_future(b.ask(Do(gate), within_s=99.0))
    await gate.begun.wait()

    stopping = asyncio.ensure_future(runtime.stop())
    await runtime.quiet()
    assert state(b) is State.RUNNING
    clock.advance(2.0)
    await stopping

    assert held.done()
    assert isinstance(held.exception(), Exception)
    assert state(a) is State.DEAD


async def test_a_second_fall_beside_a_leaver_leaves_no_patience_behind() -> None:
    a, b, c = three()
    clock, gate, incarnations = ManualClock(), Gate(), list[Counter]()

    class SlowOnce(Counter):
        def __init__(self) -> None:
            super().__init__()
            incarnations.append(self)

        async def on_stop(self) -> None:
            if len(incarnations) == 1:
                await gate(self)

    runtime = await started(
        Runtime(clock=clock),
        *children(a, b),
        ChildSpec(address=c, start=SlowOnce),
        strategy=Strategy.REST_FOR_ONE,
    )
    a.tell(Crash())
    await runtime.quiet()
    b.tell(Crash())
    await runtime.quiet()
    clock.advance(1.0)
    gate.go.set()
    await runtime.quiet()
    assert len(incarnations) == 2

    clock.advance(60.0)
    await runtime.quiet()

    assert len(incarnations) == 2
    await runtime.stop()


async def test_the_runtimes_stop_has_a_bound_of_its_own() -> None:
    a, _, _ = three()
    clock, gate = ManualClock(), Gate()
    runtime = await started(Runtime(clock=clock), *children(a, shutdown_s=1e9))
    held = asyncio.ensure_future(a.ask(Do(gate), within_s=99.0))
    await gate.begun.wait()

    stopping = asyncio.ensure_future(runtime.stop(within_s=3.0))
    await runtime.quiet()
    clock.advance(3.0)
    await stopping

    assert isinstance(
        (await asyncio.gather(held, return_exceptions=True))[0], Exception
    )


@pytest.mark.parametrize("inner_starts", [True, False])
async def test_nobody_is_started_again_once_the_runtimes_stop_is_over_its_bound(
    *, inner_starts: bool
) -> None:
    clock, gate, never = ManualClock(), Gate(), asyncio.Event()
    starts: list[str] = []
    stopping: asyncio.Future[None] | None = None

    class Endless(Counter):
        """Once the stop has begun, a new incarnation of it would not end."""

        async def on_start(self) -> None:  # type: ignore[override]
            starts.append("a")
            while stopping is not None and not never.is_set():
                try:
                    await never.wait()
                except asyncio.CancelledError:
                    continue

    class SlowAgain(Counter):
        async def on_start(self) -> None:  # type: ignore[override]
            starts.append("b")
            if inner_starts and starts.count("b") > 1:
                await never.wait()

    class Hanging(Counter):
        async def on_stop(self) -> None:
            await gate(self)

    inner = SupervisorSpec(
        name="inner",
        children=(
            ChildSpec(name="a", start=Endless, shutdown_s=1e9),
            ChildSpec(name="b", start=SlowAgain),
        ),
    )
    runtime = await started(
        Runtime(clock=clock), inner, ChildSpec(name="c", start=Hanging, shutdown_s=1e9)
    )
    runtime.find("root/inner").kill()
    await runtime.quiet()
    assert runtime.find("root/inner").state is (
        State.STARTING if inner_starts else State.RUNNING
    )

    stopping = asyncio.ensure_future(runtime.stop(within_s=0.5))
    await gate.begun.wait()
    clock.advance(0.5)
    await runtime.quiet()
    in_time = stopping.done()
    never.set()

    assert in_time
    assert starts == ["a", "b"] * 2
    assert {r.state for r in runtime.report()} == {"dead"}


async def test_a_stop_while_a_child_waits_for_its_restart() -> None:
    a, _, _ = three()
    clock = ManualClock()
    runtime = await started(Runtime(clock=clock), *children(a))
    a.tell(Crash())
    a.tell(Crash())
    await runtime.quiet()
    assert state(a) is State.WAITING

    await runtime.stop()
    clock.advance(99.0)

    assert state(a) is State.DEAD


@pytest.mark.parametrize(
    ("auto", "ends"),
    [
        (AutoShutdown.NEVER, [False, False]),
        (AutoShutdown.ANY, [True, True]),
        (AutoShutdown.ALL, [False, True]),
    ],
)
async def test_a_supervisor_ends_with_its_significant_children(
    auto: AutoShutdown, ends: list[bool]
) -> None:
    a, b, c = three()
    inner = SupervisorSpec(
        name="inner",
        restart=Restart.TRANSIENT,
        auto_shutdown=auto,
        children=(
            *children(a, b, significant=True, restart=Restart.TRANSIENT),
            *children(c),
        ),
    )
    runtime = await started(Runtime(clock=ManualClock()), inner)

    for address, ended in zip((a, b), ends, strict=True):
        address.tell(Quit())
        await runtime.quiet()
        assert (c.state is State.DEAD) is ended
    await runtime.stop()


async def test_backoff_starts_afresh_after_a_quiet_time() -> None:
    a, _, _ = three()
    clock = ManualClock()
    backoff = Backoff(min_s=1.0, jitter=0.0, reset_after_s=10.0)
    runtime = await started(Runtime(clock=clock), *children(a, backoff=backoff))
    a.tell(Crash())
    a.tell(Crash())
    await runtime.quiet()
    assert state(a) is State.WAITING
    clock.advance(1.0)
    await runtime.quiet()

    clock.advance(10.0)
    a.tell(Crash())
    await runtime.quiet()

    assert state(a) is State.RUNNING
    await runtime.stop()


def test_faulty_specs_are_named() -> None:
    with pytest.raises(ValueError, match="a name or an address"):
        ChildSpec(start=Counter)
    with pytest.raises(ValueError, match="slash"):
        ChildSpec(name="a/b", start=Counter)
    with pytest.raises(ValueError, match="one name"):
        SupervisorSpec(
            name="s", children=(*children(Address("a")), *children(Address("a")))
        )
    with pytest.raises(ValueError, match="negative"):
        SupervisorSpec(name="s", max_restarts=-1)
    with pytest.raises(ValueError, match="negative"):
        Backoff(min_s=-0.1)
    with pytest.raises(ValueError, match="shrinks"):
        Backoff(factor=0.5)
    with pytest.raises(ValueError, match="significant"):
        ChildSpec(name="a", start=Counter, significant=True)
    with pytest.raises(ValueError, match="a name or an address"):
        DynamicSpec(name="x", address=DynamicAddress[Counter]("y"))


async def test_a_tree_can_be_stopped_while_it_starts() -> None:
    a, b, c = three()
    log, gate = list[str](), Gate()

    class Slow(Counter):
        async def on_start(self) -> None:  # type: ignore[override]
            await gate(self)

    inner = SupervisorSpec(
        name="inner",
        children=(*children(b, log=log), ChildSpec(address=c, start=Slow)),
    )
    runtime = Runtime(clock=ManualClock())
    starting = asyncio.ensure_future(started(runtime, *children(a, log=log), inner))
    await gate.begun.wait()

    await runtime.stop()

    with pytest.raises(ActorCrashedError, match="did not start"):
        await starting
    assert log == ["start a", "start b", "stop b", "stop a"]
    assert {x.state for x in (a, b, c)} == {State.DEAD}


async def test_a_start_that_always_fails_lets_others_run_even_without_backoff() -> None:
    clock = ManualClock()
    a, _, _ = three()
    fails = 0

    def fail() -> Counter:
        nonlocal fails
        fails += 1
        raise RuntimeError("always")

    book = DynamicAddress[Counter]("many")
    runtime = await started(
        Runtime(clock=clock),
        *children(a),
        DynamicSpec(address=book, backoff=NO_WAIT, max_restarts=50),
    )
    await book.start_child("1", fail)
    assert fails == 2

    assert await a.ask(Count(), within_s=1.0) == 1
    while book.child("1") is not None:
        await runtime.quiet()
    assert fails == 51
    await runtime.stop()


async def test_a_stop_finds_room_in_a_full_mailbox() -> None:
    a, _, _ = three()
    gate = Gate()
    runtime = await started(
        Runtime(clock=ManualClock()), *children(a, restart=Restart.TRANSIENT)
    )
    held = asyncio.ensure_future(a.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()
    while a.tell(Bump()):
        pass

    stopping = a.stop(block=False)
    gate.go.set()

    assert await stopping is True
    assert await held == "passed"
    assert state(a) is State.DEAD
    await runtime.stop()


async def test_the_runtimes_stop_waits_for_actors_without_a_supervisor() -> None:
    log: list[str] = []
    runtime = await started(Runtime(clock=ManualClock()))
    loner = runtime.spawn(lambda: Counter(log, "loner"))

    await runtime.stop()

    assert log == ["start loner", "stop loner"]
    assert state(loner) is State.DEAD


async def test_an_address_is_not_placed_twice() -> None:
    a, _, _ = three()
    runtime = await started(Runtime(clock=ManualClock()), *children(a))

    with pytest.raises(RuntimeError, match="runs already"):
        await started(Runtime(clock=ManualClock()), *children(a))
    await runtime.stop()


async def test_an_address_may_be_placed_anew_after_its_runtime() -> None:
    a, _, _ = three()
    runtime = await started(Runtime(clock=ManualClock()), *children(a))
    await runtime.stop()

    again = await started(Runtime(clock=ManualClock()), *children(a))

    assert await a.ask(Count(), within_s=1.0) == 1
    await again.stop()


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
async def test_a_sibling_that_asks_the_fallen_one_does_not_hold_up_the_restart(
    strategy: Strategy,
) -> None:
    a, b, _ = three()
    gate, told = Gate(), list[str]()
    runtime = await started(
        Runtime(clock=ManualClock()), *children(a, b), strategy=strategy
    )

    async def asks_twice(_: Counter) -> None:
        for request in (Count(), Do(gate), Count()):
            try:
                await a.ask(request, within_s=9.0)
            except AskError as error:
                told.append(type(error).__name__)

    held = asyncio.ensure_future(a.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()
    asking = asyncio.ensure_future(b.ask(Do(asks_twice), within_s=9.0))
    await runtime.quiet()
    a.kill()
    await asyncio.gather(held, asking, return_exceptions=True)

    assert told == ["ActorDeadError"] * 3
    assert await b.ask(Count(), within_s=1.0) == 1
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()
