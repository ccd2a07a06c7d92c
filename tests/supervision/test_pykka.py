"""What pykka documents of actors, refs, proxies, futures and messages, on the loop.

The differences are few and told in the package's README.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import Any, cast

import pykka
import pytest
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr

from tests.supervision.actors import started
from trustfabric.supervision import (
    Actor,
    ActorCrashedError,
    ManualClock,
    Runtime,
    WouldDeadlockError,
)


class Plain(Actor):
    """Written as for pykka: it knows neither requests nor notices."""

    field = "initial"

    def __init__(self, greeting: str = "hello") -> None:
        super().__init__()
        self.greeting = greeting
        self.received: list[Any] = []
        self.inner = pykka.traversable(Inner())
        self.gate = asyncio.Event()

    def on_receive(self, message: Any) -> Any:
        self.received.append(message)
        if isinstance(message, Exception):
            raise message
        return message

    def method(self, argument: str) -> str:
        return f"{self.greeting} {argument}"

    async def patient(self) -> str:
        await self.gate.wait()
        return "done"

    def release(self) -> None:
        self.gate.set()

    def stop_yourself(self) -> None:
        self.stop()


class Inner:
    value = 7

    def double(self) -> int:
        return self.value * 2


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    runtime = await started(Runtime(clock=ManualClock(), answers=(LookupError,)))
    yield runtime
    await runtime.stop()


def a_plain(runtime: Runtime, make: Callable[[], Plain] = Plain) -> pykka.ActorRef[Any]:
    return runtime.spawn(make, "plain")


def inside(runtime: Runtime, ref: pykka.ActorRef[Any]) -> Plain:
    return cast("Plain", runtime.find(str(ref)).cell.actor)


async def from_thread(function: Callable[[], Any]) -> Any:
    """As pykka is used: blocking, and not on the loop."""
    return await asyncio.to_thread(function)


# --- starting and stopping ------------------------------------------------------


async def test_start_passes_arguments_and_returns_a_ref(runtime: Runtime) -> None:
    ref = await from_thread(lambda: _start_in(runtime))

    assert isinstance(ref, pykka.ActorRef)
    assert ref.is_alive()
    assert await from_thread(lambda: ref.proxy().method("you").get()) == "hi you"


def _start_in(runtime: Runtime) -> pykka.ActorRef[Any]:
    return runtime.spawn(lambda: Plain("hi"))


async def test_start_is_pykkas_classmethod_within_a_runtimes_context() -> None:
    runtime = await started(Runtime(clock=ManualClock()))

    ref = Plain.start("good day")

    assert ref.actor_class is Plain
    assert await ref.proxy().method("x") == "good day x"
    assert await ref.stop(block=False) is True
    await runtime.stop()


def test_start_outside_any_runtime_says_so() -> None:
    with pytest.raises(RuntimeError, match="no runtime"):
        Plain.start()


async def test_stop_is_true_once_and_false_for_the_dead(runtime: Runtime) -> None:
    ref = a_plain(runtime)

    assert await from_thread(ref.stop) is True
    assert not ref.is_alive()
    assert ref.actor_stopped.is_set()
    assert await from_thread(ref.stop) is False


async def test_messages_before_a_stop_are_processed_those_after_are_not(
    runtime: Runtime,
) -> None:
    ref = a_plain(runtime)

    before = ref.ask("before", block=False)
    stopping = ref.stop(block=False)
    after = ref.ask("after", block=False)

    assert await before == "before"
    assert await stopping is True
    with pytest.raises(pykka.ActorDeadError):
        await after


async def test_a_second_stop_in_the_inbox_is_answered(runtime: Runtime) -> None:
    ref = a_plain(runtime)

    one, two = ref.stop(block=False), ref.stop(block=False)

    assert (await one, await two) == (True, True)


async def test_an_actor_may_stop_itself(runtime: Runtime) -> None:
    ref = a_plain(runtime)

    await ref.proxy().stop_yourself()
    await runtime.quiet()

    assert not ref.is_alive()


async def test_hooks_are_called_in_order(runtime: Runtime) -> None:
    calls: list[str] = []

    class Hooked(Plain):
        def on_start(self) -> None:
            calls.append("start")

        def on_stop(self) -> None:
            calls.append("stop")

    ref = a_plain(runtime, Hooked)
    await ref.ask("x", block=False)
    await ref.stop(block=False)

    assert calls == ["start", "stop"]


async def test_on_failure_gets_the_error_and_on_stop_is_not_called(
    runtime: Runtime,
) -> None:
    calls: list[Any] = []

    class Hooked(Plain):
        def on_stop(self) -> None:
            calls.append("stop")

        def on_failure(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
        ) -> None:
            calls.extend((kind, error, traceback is not None))

    ref = a_plain(runtime, Hooked)
    fault = ValueError("bad")
    ref.tell(fault)
    await runtime.quiet()

    assert calls == [ValueError, fault, True]
    assert not ref.is_alive()


async def test_a_fault_in_on_failure_is_contained(
    runtime: Runtime, events: list[Any]
) -> None:
    class Hooked(Plain):
        def on_failure(self, *_: Any) -> None:
            raise ZeroDivisionError

    ref = a_plain(runtime, Hooked)
    ref.tell(ValueError("bad"))
    await runtime.quiet()

    assert not ref.is_alive()
    assert [e["event"] for e in events] == ["actor.on_failure", "actor.crashed"]


# --- tell and ask -----------------------------------------------------------------


async def test_any_object_may_be_a_message(runtime: Runtime) -> None:
    ref = a_plain(runtime)

    for message in ("text", {"a": 1}, None, 7):
        ref.tell(message)
        assert await from_thread(partial(ref.ask, message)) == message
        actor: Any = runtime.find(str(ref)).cell.actor
        assert actor.received[-2:] == [message, message]


async def test_a_tell_to_the_dead_raises_in_pykkas_way(runtime: Runtime) -> None:
    ref = a_plain(runtime)
    await ref.stop(block=False)

    with pytest.raises(pykka.ActorDeadError):
        ref.tell("x")
    with pytest.raises(pykka.ActorDeadError):
        await from_thread(lambda: ref.ask("x"))
    with pytest.raises(pykka.ActorDeadError):
        ref.proxy()


async def test_an_answer_raised_is_raised_at_the_asker_and_the_actor_lives(
    runtime: Runtime,
) -> None:
    ref = a_plain(runtime)

    with pytest.raises(LookupError, match="none such"):
        await from_thread(lambda: ref.ask(LookupError("none such")))
    assert await from_thread(lambda: ref.ask("x")) == "x"


async def test_a_bug_is_told_to_a_blocking_asker_too(runtime: Runtime) -> None:
    ref = a_plain(runtime)

    with pytest.raises(ActorCrashedError) as caught:
        await from_thread(lambda: ref.ask(ValueError("bad")))

    assert isinstance(caught.value.__cause__, ValueError)
    assert not ref.is_alive()


async def test_a_blocking_ask_times_out_and_its_work_is_skipped() -> None:
    runtime = await started(Runtime())
    ref = a_plain(runtime)
    waiting = ref.proxy().patient()

    with pytest.raises(pykka.Timeout):
        await from_thread(lambda: ref.ask("late", timeout=0.01))
    actor = inside(runtime, ref)
    actor.gate.set()

    assert await waiting == "done"
    await runtime.quiet()
    assert actor.received == []
    assert runtime.counts().skipped == 1
    await runtime.stop()


async def test_mail_of_many_threads_all_arrives_in_each_ones_order() -> None:
    runtime = await started(Runtime())
    ref = a_plain(runtime)
    actor = inside(runtime, ref)
    threads = [threading.Thread(target=tell_all, args=(ref, t)) for t in range(4)]

    for thread in threads:
        thread.start()
    await from_thread(lambda: join(threads))
    await ref.ask("last", block=False)

    for t in range(4):
        mine = [m for m in actor.received if m[0] == t]
        assert mine == [(t, n) for n in range(200)]
    await runtime.stop()


async def test_mail_racing_with_a_stop_is_always_answered() -> None:
    runtime = await started(Runtime())
    ref = a_plain(runtime)
    outcomes: list[Any] = []

    def asking() -> None:
        while True:
            try:
                outcomes.append(ref.ask("x", timeout=5.0))
            except pykka.ActorDeadError as error:
                outcomes.append(error)
                return

    threads = [threading.Thread(target=asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 20:
        await asyncio.sleep(0)
    await ref.stop(block=False)
    await runtime.stop()
    await from_thread(lambda: join(threads))

    assert not any(thread.is_alive() for thread in threads)
    assert sum(isinstance(o, pykka.ActorDeadError) for o in outcomes) == 4


def tell_all(ref: pykka.ActorRef[Any], sender: int) -> None:
    for n in range(200):
        ref.tell((sender, n))


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(5.0)


# --- futures ----------------------------------------------------------------------


async def test_a_future_gives_its_value_again_and_again(runtime: Runtime) -> None:
    future = a_plain(runtime).ask("x", block=False)

    assert [await future, await future, future.get()] == ["x", "x", "x"]
    assert await from_thread(future.get) == "x"


async def test_awaiting_a_future_leaves_the_loop_running(runtime: Runtime) -> None:
    ref = a_plain(runtime)
    waiting = asyncio.ensure_future(_await(ref.proxy().patient()))
    turns = 0
    while turns < 100:
        await asyncio.sleep(0)
        turns += 1
    assert not waiting.done()

    actor = inside(runtime, ref)
    actor.gate.set()

    assert await waiting == "done"


async def _await(future: Any) -> Any:
    return await future


async def test_a_cancelled_await_withdraws_the_ask(runtime: Runtime) -> None:
    ref = a_plain(runtime)
    patient = ref.proxy().patient()
    waiting = asyncio.ensure_future(_await(ref.ask("x", block=False)))
    await runtime.quiet()

    waiting.cancel()
    await runtime.quiet()
    actor = inside(runtime, ref)
    actor.gate.set()
    await patient
    await runtime.quiet()

    assert actor.received == []


async def test_futures_map_filter_join_and_reduce(runtime: Runtime) -> None:
    ref = a_plain(runtime)
    numbers = ref.ask(range(5), block=False)

    assert await numbers.map(lambda them: len(list(them))) == 5
    assert await numbers.filter(lambda n: n > 2) == [3, 4]
    assert await numbers.reduce(lambda a, b: a + b) == 10
    assert await numbers.join(ref.ask("x", block=False)) == [range(5), "x"]
    assert pykka.get_all([numbers, numbers]) == [range(5), range(5)]


def test_a_future_is_set_once() -> None:
    future = Plain._create_future()
    future.set(1)

    assert future.get() == 1
    with pytest.raises(Exception, match=r".*"):
        future.set(2)
    with pytest.raises(Exception, match=r".*"):
        future.set_get_hook(lambda _: 3)


def test_a_future_takes_the_exception_being_handled() -> None:
    future = Plain._create_future()
    try:
        raise KeyError("x")
    except KeyError:
        future.set_exception()

    with pytest.raises(KeyError):
        future.get()
    other = Plain._create_future()
    other.set_exception((ValueError, ValueError("y"), None))
    with pytest.raises(ValueError, match="y"):
        other.get()


def test_a_future_with_a_hook_takes_no_value() -> None:
    future = Plain._create_future()
    future.set_get_hook(lambda timeout: timeout)

    assert future.get(timeout=3) == 3
    with pytest.raises(Exception, match="hook"):
        future.set(1)
    with pytest.raises(Exception, match="hook"):
        future.set_exception()


def test_get_times_out() -> None:
    with pytest.raises(pykka.Timeout, match="0 seconds"):
        Plain._create_future().get(timeout=0)


def test_a_timeout_error_that_is_the_answer_is_not_a_timeout() -> None:
    future = Plain._create_future()
    future.set_exception((TimeoutError, TimeoutError("of theirs"), None))

    with pytest.raises(TimeoutError, match="of theirs"):
        future.get(timeout=0)


# --- proxies and pykka's own messages -----------------------------------------------


async def test_a_proxy_reads_writes_and_calls(runtime: Runtime) -> None:
    proxy = a_plain(runtime).proxy()

    def use() -> list[Any]:
        proxy.field = "changed"
        return [
            proxy.field.get(),
            proxy.method("x").get(),
            proxy.inner.value.get(),
            proxy.inner.double().get(),
        ]

    assert await from_thread(use) == ["changed", "hello x", 7, 14]


async def test_a_proxy_sets_on_the_loop_only_without_waiting(runtime: Runtime) -> None:
    proxy = a_plain(runtime).proxy()

    with pytest.raises(WouldDeadlockError):
        proxy.field = "x"


async def test_a_proxy_has_what_the_actor_has(runtime: Runtime) -> None:
    proxy = a_plain(runtime).proxy()

    assert {"method", "patient", "field"} <= set(dir(proxy))
    with pytest.raises(AttributeError):
        _ = proxy.nothing
    assert proxy == runtime.find(str(proxy.actor_ref)).proxy()


async def test_a_deferred_call_has_no_answer(runtime: Runtime) -> None:
    ref = a_plain(runtime)
    proxy = ref.proxy()
    waiting = proxy.patient()
    actor = inside(runtime, ref)

    assert proxy.release.defer() is None
    actor.gate.set()

    assert await waiting == "done"


async def test_proxy_messages_can_be_sent_by_hand(runtime: Runtime) -> None:
    ref = a_plain(runtime)

    assert await ref.ask(ProxySetAttr(("field",), "set"), block=False) is None
    assert await ref.ask(ProxyGetAttr(("field",)), block=False) == "set"
    assert await ref.ask(ProxyCall(("method",), ("x",), {}), block=False) == "hello x"


async def test_refs_show_who_they_are(runtime: Runtime) -> None:
    ref = a_plain(runtime)

    assert str(ref) == "plain-1"
    assert repr(ref) == "<Address plain-1 running>"
    assert ref.actor_urn == "urn:actor:plain-1"
    assert ref.actor_class is Plain
