"""What a dead incarnation left behind is never heard by the next."""

import asyncio
import threading
from typing import Any

from tests.supervision.actors import (
    Bump,
    Count,
    Counter,
    Do,
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
    ActorKilledError,
    Address,
    ChildSpec,
    ManualClock,
    Notice,
    Runtime,
    State,
    exits,
)


async def test_timers_of_an_incarnation_die_with_it() -> None:
    clock = ManualClock()
    runtime, a = await one(clock)
    await a.ask(Do(lambda actor: actor.after(1.0, Bump())), within_s=1.0)

    a.kill()
    clock.advance(2.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_timers_notice_that_is_already_mail_dies_with_its_incarnation() -> None:
    clock = ManualClock()
    runtime, a = await one(clock)
    gate = Gate()
    await a.ask(Do(lambda actor: actor.after(1.0, Bump())), within_s=1.0)
    held = ask_later(a, gate)
    await gate.begun.wait()

    clock.advance(1.0)
    a.kill()

    assert isinstance(await outcome(held), ActorKilledError)
    assert await a.ask(Count(), within_s=1.0) == 1
    assert runtime.counts().skipped == 1
    await runtime.stop()


def say_all(actor: Counter, ran: list[object]) -> None:
    """Say whatever an actor may say of itself."""

    async def beside() -> None:
        ran.append("task")

    actor.after(0.0, Bump())
    _ = actor.run(beside(), lambda _: Bump())
    actor.watch(Address[Counter]("nobody"), lambda _: Bump())
    actor.stop()
    ran.extend(actor.take(Count, 9))


async def test_code_of_an_incarnation_that_has_ended_says_nothing() -> None:
    clock = ManualClock()
    runtime, a = await one(clock)
    ran: list[object] = []
    past = await a.ask(Do(lambda actor: actor), within_s=1.0)
    await runtime.kill("root/a")
    runtime.suspend("root/a")
    waiting = asyncio.ensure_future(a.ask(Count(), within_s=9.0))
    await runtime.quiet()

    say_all(past, ran)
    clock.advance(1.0)
    runtime.resume("root/a")

    assert await waiting == 1
    await runtime.quiet()
    assert epoch(runtime) == 2
    assert ran == []
    await runtime.stop()


async def test_a_zombies_words_are_not_the_next_incarnations() -> None:
    clock = ManualClock()
    runtime, a = await one(clock)
    gate, free, ran = Gate(), asyncio.Event(), list[object]()

    async def endless(actor: Counter) -> None:
        gate.begun.set()
        while not free.is_set():
            try:
                await free.wait()
            except BaseException:  # noqa: BLE001
                continue
        say_all(actor, ran)

    def begin(actor: Counter) -> None:
        _ = actor.run(endless(actor), lambda _: Bump())

    await a.ask(Do(begin), within_s=1.0)
    await gate.begun.wait()
    a.kill()
    await runtime.quiet()
    clock.advance(5.0)
    await runtime.quiet()
    assert (epoch(runtime), runtime.counts().zombies) == (2, 1)

    free.set()
    await runtime.quiet()
    clock.advance(1.0)
    await runtime.quiet()

    assert await a.ask(Count(), within_s=1.0) == 1
    assert ran == []
    assert epoch(runtime) == 2
    await runtime.stop()


async def test_a_failing_word_of_a_dead_incarnations_watch_kills_nobody() -> None:
    runtime, a = await one()

    def fail(_: object) -> Notice[Counter]:
        raise ZeroDivisionError

    past = await a.ask(Do(lambda actor: actor), within_s=1.0)
    await runtime.kill("root/a")
    past.watch(Address[Counter]("nobody"), fail)

    assert await a.ask(Count(), within_s=1.0) == 1
    assert epoch(runtime) == 2
    await runtime.stop()


async def test_a_task_begun_while_falling_does_not_hold_up_the_restart() -> None:
    a, gate = Address[Counter]("a"), Gate()
    runtime = await started(
        Runtime(clock=ManualClock()), *children(a, shutdown_s=float("inf"))
    )

    async def beside(actor: Counter) -> None:
        try:
            await gate(actor)
        finally:
            _ = actor.run(asyncio.Event().wait(), lambda _: Bump())

    await a.ask(
        Do(lambda actor: actor.run(beside(actor), lambda _: Bump())), within_s=1.0
    )
    await gate.begun.wait()
    a.kill()
    await runtime.quiet()

    assert (state(a), epoch(runtime)) == (State.RUNNING, 2)
    await runtime.stop()


async def test_tasks_of_an_incarnation_end_before_the_next_begins() -> None:
    runtime, a = await one()
    gate, cleanup = Gate(), Gate()
    reports: list[object] = []

    async def beside() -> None:
        try:
            await gate(Counter.__new__(Counter))
        finally:
            await cleanup(Counter.__new__(Counter))

    def done(result: object) -> Notice[Counter]:
        reports.append(result)
        return Bump()

    await a.ask(Do(lambda actor: actor.run(beside(), done)), within_s=1.0)
    await gate.begun.wait()
    a.kill()
    await cleanup.begun.wait()
    assert (a.state, epoch(runtime)) == (State.DYING, 1)
    cleanup.go.set()

    assert await a.ask(Count(), within_s=1.0) == 1
    assert reports == []
    await runtime.stop()


async def test_a_task_that_will_not_end_is_given_up_after_the_grace() -> None:
    clock = ManualClock()
    runtime, a = await one(clock)
    free = asyncio.Event()
    begun = asyncio.Event()

    async def endless() -> None:
        begun.set()
        while not free.is_set():
            try:
                await free.wait()
            except BaseException:  # noqa: BLE001
                continue

    await a.ask(Do(lambda actor: actor.run(endless(), lambda _: Bump())), within_s=1.0)
    await begun.wait()
    a.kill()
    await runtime.quiet()
    assert state(a) is State.DYING
    clock.advance(5.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    assert runtime.counts().zombies == 1
    free.set()
    await runtime.quiet()
    assert await a.ask(Count(), within_s=1.0) == 2
    await runtime.stop()


async def test_asks_of_a_killed_actor_are_withdrawn() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    runtime = await started(Runtime(clock=ManualClock()), *children(a, b))
    gate = Gate()
    held = ask_later(b, gate)
    await gate.begun.wait()

    async def asks(_: Counter) -> int:
        return await b.ask(Count(), within_s=9.0)

    asking = ask_later(a, asks)
    await runtime.quiet()
    a.kill()
    assert isinstance(await outcome(asking), ActorKilledError)
    gate.go.set()
    await held

    assert await b.ask(Count(), within_s=1.0) == 1
    assert runtime.counts().skipped == 1
    await runtime.stop()


async def test_without_grace_a_task_beside_the_handler_is_closed_by_force() -> None:
    runtime, a = await one()
    begun, never, ended = asyncio.Event(), asyncio.Event(), list[bool]()

    async def stubborn() -> None:
        begun.set()
        try:
            await never.wait()
        finally:
            try:
                await never.wait()
            finally:
                ended.append(True)

    await a.ask(Do(lambda actor: actor.run(stubborn(), lambda _: Bump())), within_s=1.0)
    await begun.wait()
    a.cell.kill(exits.killed("brutal"), 0.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    assert ended == [True]
    assert runtime.counts().zombies == 0
    await runtime.stop()


async def test_a_task_is_closed_by_force_also_before_its_first_step() -> None:
    runtime, a = await one()
    ran = []

    async def beside() -> None:
        ran.append(True)

    await a.ask(Do(lambda actor: actor.run(beside(), lambda _: Bump())), within_s=1.0)
    a.cell.kill(exits.killed("test"))
    a.cell.kill(exits.killed("test"), 0.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    assert ran == []
    assert runtime.counts().zombies == 0
    await runtime.stop()


async def test_what_is_closed_by_force_is_not_the_next_incarnations() -> None:
    clock = ManualClock()
    a, gate, reports = Address[Counter]("a"), Gate(), list[object]()

    def done(result: object) -> Notice[Counter]:
        reports.append(result)
        return Bump()

    class Busy(Counter):
        def on_start(self) -> None:
            _ = self.run(asyncio.sleep(0, "done"), done)

    async def stubborn(actor: Counter) -> None:
        try:
            await gate(actor)
        finally:
            await asyncio.Event().wait()

    runtime = await started(Runtime(clock=clock), ChildSpec(address=a, start=Busy))
    await runtime.quiet()
    held = ask_later(a, stubborn)
    await gate.begun.wait()
    a.kill()
    await runtime.quiet()
    clock.advance(5.0)
    await runtime.quiet()

    assert isinstance(await outcome(held), ActorKilledError)
    assert epoch(runtime) == 2
    assert reports == ["done", "done"]
    assert runtime.counts().zombies == 0
    await runtime.stop()


async def test_without_grace_an_obedient_task_is_no_zombie() -> None:
    runtime, a = await one()
    gate = Gate()

    async def obedient() -> None:
        gate.begun.set()
        await gate.go.wait()

    await a.ask(Do(lambda actor: actor.run(obedient(), lambda _: Bump())), within_s=1.0)
    await gate.begun.wait()
    a.cell.kill(exits.killed("brutal"), 0.0)

    assert await a.ask(Count(), within_s=1.0) == 1
    assert runtime.counts().zombies == 0
    await runtime.stop()


async def test_a_result_that_cannot_be_reported_is_the_actors_bug() -> None:
    runtime, a = await one()

    def faulty(_: object) -> Notice[Counter]:
        raise ZeroDivisionError

    await a.ask(Do(lambda actor: actor.run(asyncio.sleep(0), faulty)), within_s=1.0)
    await runtime.quiet()

    assert epoch(runtime) == 2
    await runtime.stop()


async def test_a_task_cancelled_by_its_actor_still_reports() -> None:
    runtime, a = await one()
    results: list[object] = []

    def report(result: object) -> Notice[Counter]:
        return TellDo(lambda _: results.append(type(result)))

    task = await a.ask(
        Do(lambda actor: actor.run(asyncio.Event().wait(), report)), within_s=1.0
    )
    task.cancel()
    await runtime.quiet()

    assert results == [asyncio.CancelledError]
    await runtime.stop()


async def test_a_threads_late_result_is_not_heard_by_the_next_incarnation() -> None:
    runtime, a = await one()
    release, heard = threading.Event(), []

    def begin(actor: Counter) -> None:
        late = asyncio.to_thread(release.wait)
        _ = actor.run(late, lambda result: TellDo(lambda _: heard.append(result)))

    async def wait(_: Counter) -> None:
        heard.append(await asyncio.to_thread(release.wait))

    await a.ask(Do(begin), within_s=5.0)
    waiting = ask_later(a, wait)
    await asyncio.sleep(0.01)
    await runtime.kill("root/a")
    release.set()

    assert isinstance(await outcome(waiting), ActorKilledError)
    assert await a.ask(Count(), within_s=5.0) == 1
    await asyncio.sleep(0.01)
    assert heard == []
    assert epoch(runtime) == 2
    await runtime.stop()


async def test_a_processs_late_exit_is_not_heard_by_the_next_incarnation() -> None:
    runtime, a = await one()
    process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    heard: list[Any] = []

    def begin(actor: Counter) -> None:
        _ = actor.run(
            process.wait(), lambda result: TellDo(lambda _: heard.append(result))
        )

    await a.ask(Do(begin), within_s=5.0)
    a.kill()
    assert process.stdin is not None
    process.stdin.close()

    assert await process.wait() == 0
    assert await a.ask(Count(), within_s=5.0) == 1
    assert heard == []
    await runtime.stop()
