import asyncio

import pytest

from tests.supervision.actors import (
    Bump,
    Count,
    Counter,
    Crash,
    Do,
    Gate,
    Quit,
    started,
    state,
)
from trustfabric.supervision import (
    ActorDeadError,
    DynamicAddress,
    DynamicSpec,
    ManualClock,
    Restart,
    Runtime,
    State,
)


async def keyed(
    clock: ManualClock | None = None, **spec: object
) -> tuple[Runtime, DynamicAddress[Counter]]:
    book = DynamicAddress[Counter]("many")
    runtime = await started(
        Runtime(clock=clock or ManualClock()),
        DynamicSpec(address=book, **spec),  # type: ignore[arg-type]
    )
    return runtime, book


async def test_a_key_has_one_child() -> None:
    runtime, book = await keyed()

    one = await book.start_child("1", Counter)
    again = await book.start_child("1", Counter)

    assert one is again
    assert book.child("1") is one
    assert one.path == "root/many/1"
    assert await one.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_stopped_child_gives_its_key_back() -> None:
    runtime, book = await keyed()
    one = await book.start_child("1", Counter)

    await book.stop_child("1")
    await book.stop_child("1")

    assert state(one) is State.DEAD
    assert dict(book.children()) == {}
    with pytest.raises(KeyError):
        await runtime.kill("root/many/1")
    other = await book.start_child("1", Counter)
    assert await other.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_a_transient_child_returns_from_a_crash_but_not_from_its_end() -> None:
    runtime, book = await keyed()
    one = await book.start_child("1", Counter)

    one.tell(Crash())
    assert await one.ask(Count(), within_s=1.0) == 1
    one.tell(Quit())
    await runtime.quiet()

    assert book.child("1") is None
    await runtime.stop()


async def test_children_come_back_with_a_killed_supervisor_at_the_same_address() -> (
    None
):
    runtime, book = await keyed()
    one = await book.start_child("1", Counter)
    await one.ask(Count(), within_s=1.0)

    await runtime.kill("root/many")

    assert book.child("1") is one
    assert await one.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_temporary_children_fall_for_good_with_their_supervisor() -> None:
    runtime, book = await keyed(restart=Restart.TEMPORARY)
    one = await book.start_child("1", Counter)

    await runtime.kill("root/many")

    assert dict(book.children()) == {}
    with pytest.raises(ActorDeadError):
        await one.ask(Count(), within_s=1.0)
    await runtime.stop()


async def test_one_child_over_its_budget_is_given_up_alone() -> None:
    clock = ManualClock()
    runtime, book = await keyed(clock, max_restarts=2)
    one = await book.start_child("1", Counter)
    two = await book.start_child("2", Counter)

    for _ in range(3):
        one.tell(Crash())
        await runtime.quiet()
        clock.advance(1.0)
        await runtime.quiet()

    assert state(one) is State.DEAD
    assert book.child("1") is None
    assert await two.ask(Count(), within_s=1.0) == 1
    await runtime.stop()


async def test_the_budget_of_all_children_is_the_supervisors() -> None:
    runtime, book = await keyed(max_restarts_total=2)
    them = [await book.start_child(str(n), Counter) for n in range(3)]

    for one in them:
        one.tell(Crash())
    await runtime.quiet()

    (report,) = [r for r in runtime.report() if r.path == "root/many"]
    assert report.restart_count == 1
    assert "more than 2 restarts" in report.restarts[0].reason
    assert {key: a.state for key, a in book.children().items()} == {
        "0": State.RUNNING,
        "1": State.RUNNING,
    }
    await runtime.stop()


async def test_stopping_a_child_in_backoff_ends_the_wait() -> None:
    clock = ManualClock()
    runtime, book = await keyed(clock)
    one = await book.start_child("1", Counter)
    one.tell(Crash())
    one.tell(Crash())
    await runtime.quiet()
    assert state(one) is State.WAITING
    one.tell(Bump())

    await book.stop_child("1")
    clock.advance(60.0)

    assert state(one) is State.DEAD
    assert runtime.dead_letters.by_path() == {"root/many/1": 1}
    await runtime.stop()


async def test_stop_child_waits_for_the_message_in_hand() -> None:
    runtime, book = await keyed()
    gate = Gate()
    one = await book.start_child("1", Counter)
    held = asyncio.ensure_future(one.ask(Do(gate), within_s=9.0))
    await gate.begun.wait()

    stopping = asyncio.ensure_future(book.stop_child("1"))
    await runtime.quiet()
    assert not stopping.done()
    gate.go.set()
    await stopping

    assert await held == "passed"
    await runtime.stop()


async def test_a_child_cannot_be_started_while_its_supervisor_is_down() -> None:
    runtime, book = await keyed()
    await runtime.stop()

    with pytest.raises(ActorDeadError):
        await book.start_child("1", Counter)


@pytest.mark.parametrize("key", ["", "a/b"])
async def test_a_key_is_one_step_of_a_path(key: str) -> None:
    runtime, book = await keyed()

    with pytest.raises(ValueError, match="key"):
        await book.start_child(key, Counter)
    await runtime.stop()


async def test_a_stop_finds_children_up_and_children_in_backoff() -> None:
    clock = ManualClock()
    runtime, book = await keyed(clock)
    one = await book.start_child("1", Counter)
    two = await book.start_child("2", Counter)
    one.tell(Crash())
    one.tell(Crash())
    await runtime.quiet()
    assert (one.state, two.state) == (State.WAITING, State.RUNNING)

    await runtime.stop()
    clock.advance(60.0)

    assert (state(one), state(two)) == (State.DEAD, State.DEAD)


async def test_a_kill_finds_children_in_backoff_and_they_return() -> None:
    runtime, book = await keyed()
    one = await book.start_child("1", Counter)
    one.tell(Crash())
    one.tell(Crash())
    await runtime.quiet()
    assert one.state is State.WAITING

    await runtime.kill("root/many")

    assert await one.ask(Count(), within_s=1.0) == 1
    await runtime.stop()
