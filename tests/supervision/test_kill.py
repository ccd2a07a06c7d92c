"""Kill in every state an actor can be in."""

import asyncio
import threading
from typing import Any

import pytest

from tests.supervision.actors import (
    Count,
    Counter,
    Gate,
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
    ActorKilledError,
    Address,
    ChildSpec,
    ManualClock,
    Runtime,
    State,
    exits,
)


async def test_an_idle_actor_is_back_at_once() -> None:
    runtime, a = await one()
    await a.ask(Count(), within_s=1.0)

    assert a.kill()

    assert await a.ask(Count(), within_s=1.0) == 1
    assert epoch(runtime) == 2
    await runtime.stop()


async def test_a_kill_from_a_thread_is_the_loops_to_do() -> None:
    runtime, _ = await one()
    threads: list[int] = []

    class Noting(Counter):
        def on_failure(self, *_: Any) -> None: ...

        def on_death(self, exit_: Any) -> None:
            super().on_death(exit_)
            threads.append(threading.get_ident())

    loner = runtime.spawn(Noting)

    assert await asyncio.to_thread(loner.kill)
    await runtime.quiet()

    assert state(loner) is State.DEAD
    assert threads == [threading.get_ident()]
    assert not await asyncio.to_thread(loner.kill)
    assert not await asyncio.to_thread(Address[Counter]("nobody").kill)
    await runtime.stop()


async def test_a_kill_from_a_thread_is_of_the_incarnation_it_saw() -> None:
    runtime, a = await one()
    thread = threading.Thread(target=a.kill)

    thread.start()
    thread.join()  # the loop stands still meanwhile
    a.kill()

    assert await a.ask(Count(), within_s=1.0) == 1
    assert epoch(runtime) == 2
    await runtime.stop()


async def test_a_sync_handler_is_let_finish_but_its_answer_is_not_given() -> None:
    runtime, a = await one()
    ran = []

    def handler(actor: Counter) -> str:
        actor.address.kill()
        ran.append("to its end")
        return "answer"

    assert isinstance(await outcome(ask_later(a, handler)), ActorKilledError)
    assert ran == ["to its end"]
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_suspended_handler_is_cancelled_where_it_waits() -> None:
    runtime, a = await one()
    gate, cleaned = Gate(), []

    async def handler(actor: Counter) -> None:
        try:
            await gate(actor)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    held = ask_later(a, handler)
    await gate.begun.wait()
    await runtime.kill("root/a")

    assert isinstance(await outcome(held), ActorKilledError)
    assert cleaned == [True]
    assert runtime.counts().zombies == 0
    await runtime.stop()


async def test_the_asker_hears_before_the_cleanup_ends() -> None:
    runtime, a = await one()
    gate, cleanup = Gate(), Gate()

    async def handler(actor: Counter) -> None:
        try:
            await gate(actor)
        finally:
            await cleanup(actor)

    held = ask_later(a, handler)
    await gate.begun.wait()
    a.kill()

    assert isinstance(await outcome(held), ActorKilledError)
    await cleanup.begun.wait()
    assert (a.state, epoch(runtime)) == (State.DYING, 1)
    cleanup.go.set()
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_swallowed_cancel_ends_by_force_after_the_grace() -> None:
    clock = ManualClock()
    runtime, a = await one(clock)
    gate, spoke = Gate(), []

    async def handler(actor: Counter) -> None:
        try:
            await gate(actor)
        except asyncio.CancelledError:
            await asyncio.Event().wait()
        finally:
            spoke.append("finally")

    held = ask_later(a, handler)
    await gate.begun.wait()
    a.kill()
    assert isinstance(await outcome(held), ActorKilledError)
    await runtime.quiet()
    assert state(a) is State.DYING
    clock.advance(5.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    assert spoke == ["finally"]
    assert runtime.counts().zombies == 0
    await runtime.stop()


async def test_a_coroutine_that_never_ends_is_a_zombie_and_is_fenced() -> None:
    clock = ManualClock()
    runtime, a = await one(clock)
    gate, free = Gate(), asyncio.Event()

    async def handler(actor: Counter) -> None:
        gate.begun.set()
        while not free.is_set():
            try:
                await free.wait()
            except BaseException:  # noqa: BLE001
                continue
        actor.count = 1_000

    held = ask_later(a, handler)
    await gate.begun.wait()
    a.kill()
    assert isinstance(await outcome(held), ActorKilledError)
    clock.advance(5.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    assert runtime.counts().zombies == 1
    free.set()
    await runtime.quiet()
    assert await a.ask(Count(), within_s=1.0) == 2
    await runtime.stop()


async def test_a_kill_while_starting_starts_anew() -> None:
    a, gate = Address[Counter]("a"), Gate()
    starts: list[int] = []

    class Slow(Counter):
        async def on_start(self) -> None:  # type: ignore[override]
            starts.append(len(starts))
            if len(starts) == 1:
                await gate(self)

    runtime = Runtime(clock=ManualClock())
    starting = asyncio.ensure_future(started(runtime, ChildSpec(address=a, start=Slow)))
    await gate.begun.wait()
    await runtime.kill("root/a")
    await starting

    assert starts == [0, 1]
    await runtime.stop()


async def test_a_kill_while_stopping_ends_it() -> None:
    a, gate = Address[Counter]("a"), Gate()

    class Slow(Counter):
        async def on_stop(self) -> None:
            await gate(self)

    runtime = await started(
        Runtime(clock=ManualClock()), ChildSpec(address=a, start=Slow)
    )
    stopping = asyncio.ensure_future(runtime.stop())
    await gate.begun.wait()
    await runtime.kill("root/a")
    await stopping

    assert state(a) is State.DEAD


async def test_a_second_kill_and_a_kill_in_backoff_do_nothing() -> None:
    clock = ManualClock()
    runtime, a = await one(clock)
    gate = Gate()

    held = ask_later(a, gate)
    await gate.begun.wait()
    assert a.kill()
    assert not a.kill()
    assert isinstance(await outcome(held), ActorKilledError)
    await runtime.quiet()
    a.kill()
    await runtime.quiet()
    assert state(a) is State.WAITING
    assert not a.kill()
    await runtime.kill("root/a")
    clock.advance(1.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    assert epoch(runtime) == 3
    await runtime.stop()


async def test_a_handler_that_is_done_is_not_killed_any_more() -> None:
    runtime, a = await one()
    gate = Gate()
    answer = ask_later(a, gate)
    await gate.begun.wait()

    gate.go.set()
    await asyncio.sleep(0)  # it takes its last step; the loop has yet to tell

    assert a.kill()
    assert await answer == "passed"
    assert await a.ask(Count(), within_s=1.0) == 1
    assert epoch(runtime) == 2
    await runtime.stop()


async def test_one_that_has_crashed_is_not_killed_any_more() -> None:
    runtime, a = await one()
    gate = Gate()

    async def crash(actor: Counter) -> None:
        await gate(actor)
        raise ZeroDivisionError

    answer = ask_later(a, crash)
    await gate.begun.wait()

    gate.go.set()
    await asyncio.sleep(0)

    assert not a.kill()
    assert isinstance(await outcome(answer), ActorCrashedError)
    assert await a.ask(Count(), within_s=1.0) == 1
    assert epoch(runtime) == 2
    await runtime.stop()


async def test_a_handler_may_kill_itself_and_go_on_to_its_next_await() -> None:
    runtime, a = await one()
    reached = []

    async def handler(actor: Counter) -> None:
        actor.address.kill()
        reached.append("next line")
        await asyncio.sleep(0)
        reached.append("after the await")

    assert isinstance(await outcome(ask_later(a, handler)), ActorKilledError)
    assert await a.ask(Count(), within_s=1.0) == 1
    assert reached == ["next line"]
    await runtime.stop()


async def test_a_handler_killed_before_its_first_step_never_runs() -> None:
    runtime, a = await one()
    ran = []

    async def handler(_: Counter) -> None:
        ran.append(True)

    def begin(actor: Counter) -> Any:
        asyncio.get_running_loop().call_soon(actor.address.kill)
        return handler(actor)

    assert isinstance(await outcome(ask_later(a, begin)), ActorKilledError | None)
    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt()]
)
@pytest.mark.parametrize("in_coroutine", [True, False])
async def test_no_exception_ends_more_than_its_actor(
    error: BaseException, *, in_coroutine: bool
) -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b))

    def handler(_: Counter) -> None:
        raise error

    async def coroutine(_: Counter) -> None:
        await asyncio.sleep(0)
        raise error

    a.tell(TellDo(coroutine if in_coroutine else handler))

    assert await a.ask(Count(), within_s=1.0) == 1
    assert await b.ask(Count(), within_s=1.0) == 1
    assert (epoch(runtime, "root/a"), epoch(runtime, "root/b")) == (2, 1)
    await runtime.stop()


async def test_a_handler_that_kills_itself_before_its_coroutine_runs() -> None:
    runtime, a = await one()
    ran = []

    async def coroutine() -> None:
        ran.append(True)

    def handler(actor: Counter) -> Any:
        actor.address.kill()
        return coroutine()

    assert isinstance(await outcome(ask_later(a, handler)), ActorKilledError)
    assert await a.ask(Count(), within_s=1.0) == 1
    assert ran == []
    await runtime.stop()


async def test_a_handler_that_kills_itself_by_force_gets_to_its_next_await() -> None:
    runtime, a = await one()
    reached = []

    async def handler(actor: Counter) -> None:
        cell = actor.address.cell
        cell.kill(exits.killed("itself"))
        cell.kill(exits.killed("itself"), 0.0)
        reached.append("next line")
        await asyncio.Event().wait()

    assert isinstance(await outcome(ask_later(a, handler)), ActorKilledError)
    assert await a.ask(Count(), within_s=1.0) == 1
    assert reached == ["next line"]
    await runtime.stop()


async def test_a_kill_by_force_in_the_first_step_takes_effect_at_the_first_await() -> (
    None
):
    runtime, a = await one()

    async def stubborn(actor: Counter) -> None:
        actor.address.cell.kill(exits.killed("test"), 0.0)
        while True:
            try:
                await asyncio.sleep(3600.0)
            except asyncio.CancelledError:
                continue

    assert isinstance(await outcome(ask_later(a, stubborn)), ActorKilledError)
    assert await a.ask(Count(), within_s=5.0) == 1
    await runtime.stop()
