import asyncio
import gc
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pykka.messages import _ActorStop

from tests.supervision.actors import (
    AskCrash,
    Bump,
    Count,
    Counter,
    Do,
    Gate,
    TellDo,
    children,
    started,
    state,
)
from trustfabric.supervision import (
    ActorDeadError,
    Address,
    AskTimeoutError,
    ChildSpec,
    MailboxFullError,
    MailboxSpec,
    ManualClock,
    Notice,
    Overflow,
    Runtime,
    State,
)
from trustfabric.supervision.mailbox import Envelope, Mailbox, is_stop


@dataclass(frozen=True, slots=True)
class Note(Notice["Counter"]):
    key: str
    value: int


class Small(Counter):
    mailbox: ClassVar[MailboxSpec] = MailboxSpec(limit=2)


class Waiting(Counter):
    mailbox: ClassVar[MailboxSpec] = MailboxSpec(limit=2, overflow=Overflow.WAIT)


class Dropping(Counter):
    mailbox: ClassVar[MailboxSpec] = MailboxSpec(limit=2, overflow=Overflow.DROP_OLDEST)


class Conflating(Counter):
    mailbox: ClassVar[MailboxSpec] = MailboxSpec(
        limit=3, conflate=lambda m: m.key if isinstance(m, Note) else None
    )

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Note] = []

    def handle(self, message: Any) -> Any:
        if isinstance(message, Note):
            self.notes.append(message)
            return None
        return super().handle(message)


async def busy(
    kind: type[Counter], clock: ManualClock | None = None
) -> tuple[Runtime, Address[Counter], "asyncio.Future[Any]", Gate]:
    """Return a runtime whose one actor holds a message until its gate opens."""
    a, gate = Address[Counter]("a"), Gate()
    runtime = await started(
        Runtime(clock=clock or ManualClock()), ChildSpec(address=a, start=kind)
    )
    held = asyncio.ensure_future(a.ask(Do(gate), within_s=99.0))
    await gate.begun.wait()
    return runtime, a, held, gate


def ask(a: Address[Counter], within_s: float = 99.0) -> "asyncio.Future[int]":
    return asyncio.ensure_future(a.ask(Count(), within_s=within_s))


async def test_a_full_mailbox_bounces_asks_and_makes_dead_letters_of_tells() -> None:
    runtime, a, held, gate = await busy(Small)
    assert a.tell(Bump())
    assert a.tell(Bump())

    assert not a.tell(Bump())
    with pytest.raises(MailboxFullError):
        await a.ask(Count(), within_s=1.0)
    gate.go.set()
    await held

    assert await a.ask(Count(), within_s=1.0) == 3
    assert runtime.dead_letters.by_reason() == {"mailbox full": 1}
    assert [letter.message for letter in runtime.dead_letters.recent("root/a")] == [
        Bump()
    ]
    await runtime.stop()


async def test_askers_wait_for_room_in_their_order() -> None:
    runtime, a, held, gate = await busy(Waiting)
    asked = [ask(a) for _ in range(5)]
    await runtime.quiet()
    assert not any(future.done() for future in asked)

    gate.go.set()

    assert await asyncio.gather(held, *asked) == ["passed", 1, 2, 3, 4, 5]
    await runtime.stop()


async def test_one_who_stops_waiting_for_room_lets_the_next_in() -> None:
    clock = ManualClock()
    runtime, a, held, gate = await busy(Waiting, clock)
    asked = [ask(a, within_s=s) for s in (99.0, 99.0, 1.0, 99.0, 99.0)]
    await runtime.quiet()
    clock.advance(2.0)
    asked[3].cancel()
    with pytest.raises(AskTimeoutError):
        await asked[2]

    gate.go.set()

    assert await held == "passed"
    assert [await asked[n] for n in (0, 1, 4)] == [1, 2, 3]
    await runtime.stop()


async def test_a_newcomer_does_not_overtake_those_who_wait_for_room() -> None:
    runtime, a, held, gate = await busy(Waiting)
    order: list[int] = []

    def ask_noting(n: int) -> "asyncio.Future[Any]":
        return asyncio.ensure_future(
            a.ask(Do(lambda _: order.append(n)), within_s=99.0)
        )

    asked = [ask_noting(n) for n in range(5)]
    await runtime.quiet()
    gate.go.set()
    for n in range(5, 15):
        await asyncio.sleep(0)
        asked.append(ask_noting(n))
    await asyncio.gather(held, *asked)

    assert order == list(range(15))
    await runtime.stop()


async def test_nothing_is_left_of_those_who_gave_up_waiting_for_room() -> None:
    clock = ManualClock()
    runtime, a, held, gate = await busy(Waiting, clock)
    asked = [ask(a) for _ in range(2)]
    await runtime.quiet()
    before = waiting()

    late = [ask(a, within_s=1.0) for _ in range(20)]
    await runtime.quiet()
    clock.advance(2.0)
    for error in await asyncio.gather(*late, return_exceptions=True):
        assert isinstance(error, AskTimeoutError)
    del late, error
    await runtime.quiet()

    assert waiting() == before
    gate.go.set()
    await asyncio.gather(held, *asked)
    await runtime.stop()


def waiting() -> int:
    gc.collect()
    kept = (Envelope, asyncio.Future)
    return sum(isinstance(thing, kept) for thing in gc.get_objects())


async def test_those_who_wait_for_room_hear_of_the_end() -> None:
    runtime, a, held, gate = await busy(Waiting)
    asked = [ask(a) for _ in range(3)]
    await runtime.quiet()

    gate.go.set()
    await runtime.stop()

    assert await held == "passed"
    for error in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(error, ActorDeadError)


async def test_the_oldest_makes_room_where_the_policy_says_so() -> None:
    runtime, a, held, gate = await busy(Dropping)
    oldest = ask(a)
    await runtime.quiet()
    assert all([a.tell(Bump()), a.tell(Bump())])

    with pytest.raises(MailboxFullError):
        await oldest
    assert a.tell(Bump())
    assert runtime.dead_letters.total == 1
    gate.go.set()
    await held
    assert await a.ask(Count(), within_s=1.0) == 3
    await runtime.stop()


async def test_a_stop_is_not_what_makes_room() -> None:
    runtime, a, held, gate = await busy(Dropping)
    stopping = a.stop(block=False)

    assert all(a.tell(Bump()) for _ in range(3))
    gate.go.set()

    assert await stopping is True
    assert await held == "passed"
    assert await a.ask(Count(), within_s=1.0) == 2
    assert runtime.dead_letters.by_reason() == {"mailbox full": 2}
    await runtime.stop()


async def test_every_one_that_makes_room_beyond_the_limit_is_a_dead_letter() -> None:
    runtime, a, held, gate = await busy(Dropping)
    assert all([a.tell(Bump()), a.tell(Bump())])
    stopping = a.stop(block=False)

    assert a.tell(Bump())
    gate.go.set()

    assert await stopping is True
    assert await held == "passed"
    assert await a.ask(Count(), within_s=1.0) == 2
    assert runtime.dead_letters.by_reason() == {"mailbox full": 2}
    await runtime.stop()


async def early(
    kind: type[Counter], *notices: Notice[Counter], asks: int = 0
) -> tuple[Runtime, Address[Counter], "list[asyncio.Future[int]]"]:
    """Return a runtime whose one actor got mail before its first constructor ran."""
    before, a = Address[Counter]("before"), Address[Counter]("a")
    asked: list[asyncio.Future[int]] = []
    gate = Gate()

    class First(Counter):
        async def on_start(self) -> None:  # type: ignore[override]
            asked.extend(ask(a) for _ in range(asks))
            for notice in notices:
                assert a.tell(notice)
            await gate(self)

    runtime = Runtime(clock=ManualClock())
    starting = asyncio.ensure_future(
        started(
            runtime,
            ChildSpec(address=before, start=First),
            ChildSpec(address=a, start=kind),
        )
    )
    await gate.begun.wait()
    await runtime.quiet()
    gate.go.set()
    await starting
    await runtime.quiet()
    return runtime, a, asked


@pytest.mark.parametrize("kind", [Small, Dropping, Waiting])
async def test_the_bound_holds_for_notices_from_before_the_first_incarnation(
    kind: type[Counter],
) -> None:
    runtime, a, _ = await early(kind, *([Bump()] * 10))

    assert await a.ask(Count(), within_s=1.0) == 3
    assert runtime.dead_letters.by_reason() == {"mailbox full": 8}
    await runtime.stop()


async def test_a_bound_above_the_usual_holds_before_the_first_incarnation() -> None:
    class Large(Counter):
        mailbox: ClassVar[MailboxSpec] = MailboxSpec(limit=3_000)

    runtime, a, _ = await early(Large, *([Bump()] * 3_001))

    assert await a.ask(Count(), within_s=1.0) == 3_001
    assert runtime.dead_letters.by_reason() == {"mailbox full": 1}
    await runtime.stop()


async def test_requests_from_before_the_first_incarnation_wait_for_room_too() -> None:
    runtime, _, asked = await early(Waiting, asks=5)

    assert await asyncio.gather(*asked) == [1, 2, 3, 4, 5]
    await runtime.stop()


async def test_requests_from_before_the_first_incarnation_bounce_too() -> None:
    runtime, _, asked = await early(Small, asks=4)

    outcomes = await asyncio.gather(*asked, return_exceptions=True)

    assert outcomes[:2] == [1, 2]
    assert [type(error) for error in outcomes[2:]] == [MailboxFullError] * 2
    await runtime.stop()


async def test_notices_from_before_the_first_incarnation_replace_one_another() -> None:
    runtime, a, _ = await early(Conflating, Note("x", 1), Note("y", 1), Note("x", 2))

    actor = await a.ask(Do(lambda actor: actor), within_s=1.0)
    assert actor.notes == [Note("x", 2), Note("y", 1)]
    assert runtime.dead_letters.total == 0
    await runtime.stop()


def test_a_mailbox_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps none"):
        MailboxSpec(limit=0)


async def test_a_newer_notice_takes_the_place_of_the_older_with_its_key() -> None:
    runtime, a, held, gate = await busy(Conflating)

    for note in (Note("x", 1), Note("y", 1), Note("x", 2), Note("x", 3), Note("z", 1)):
        assert a.tell(note)
    gate.go.set()
    await held

    actor = await a.ask(Do(lambda actor: actor), within_s=1.0)
    assert actor.notes == [Note("x", 3), Note("y", 1), Note("z", 1)]
    a.tell(Note("x", 4))
    await runtime.quiet()
    assert actor.notes[-1] == Note("x", 4)
    await runtime.stop()


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
async def test_a_faulty_key_is_the_receivers_bug_not_the_senders(
    error: type[BaseException],
) -> None:
    def no_key(_: Any) -> Any:
        raise error

    class Faulty(Counter):
        mailbox: ClassVar[MailboxSpec] = MailboxSpec(conflate=no_key)

    a = Address[Counter]("a")
    runtime = await started(
        Runtime(clock=ManualClock()), ChildSpec(address=a, start=Faulty)
    )

    assert not a.tell(Bump())

    assert await a.ask(Count(), within_s=1.0) == 1
    (report,) = [r for r in runtime.report() if r.path == "root/a"]
    assert report.epoch == 2
    await runtime.stop()


async def test_a_handler_that_tells_a_full_or_dead_actor_is_not_hurt() -> None:
    a, b = Address[Counter]("a"), Address[Counter]("b")
    gate = Gate()
    runtime = await started(
        Runtime(clock=ManualClock()),
        ChildSpec(address=a, start=Small),
        *children(b),
    )
    held = asyncio.ensure_future(a.ask(Do(gate), within_s=99.0))
    await gate.begun.wait()
    nobody = Address[Counter]("nobody")

    sent = await b.ask(
        Do(lambda _: [x.tell(Bump()) for x in (a, a, a, nobody)]), within_s=1.0
    )

    assert sent == [True, True, False, False]
    assert state(b) is State.RUNNING
    gate.go.set()
    await held
    await runtime.stop()


async def test_timers_and_stops_pass_before_user_mail() -> None:
    clock = ManualClock()
    runtime, a, held, gate = await busy(Counter, clock)
    order: list[str] = []
    runs = TellDo(lambda _: order.append("user"))
    first = TellDo(lambda _: order.append("timer"))
    actor: Any = runtime.find("root/a").cell.actor
    actor.after(1.0, first)

    a.tell(runs)
    clock.advance(1.0)
    gate.go.set()
    await held
    await runtime.quiet()

    assert order == ["timer", "user"]
    await runtime.stop()


async def test_mail_is_refused_at_an_address_outside_any_tree() -> None:
    nobody = Address[Counter]("nobody")

    assert not nobody.tell(Bump())
    with pytest.raises(ActorDeadError):
        await nobody.ask(Count(), within_s=1.0)
    with pytest.raises(ActorDeadError):
        nobody.ask(AskCrash(), block=True, timeout=1.0)
    assert not nobody.is_alive()


@given(
    st.sampled_from([Overflow.REJECT, Overflow.DROP_OLDEST]),
    st.integers(1, 4),
    st.lists(
        st.one_of(st.integers(0, 3), st.none(), st.just(_ActorStop())), max_size=30
    ),
)
def test_a_mailbox_never_exceeds_its_bound_and_loses_nothing(
    overflow: Overflow, limit: int, actions: list[int | _ActorStop | None]
) -> None:
    """None takes; a number puts that key, of which 0 is not conflated."""
    spec = MailboxSpec(limit=limit, overflow=overflow, conflate=lambda m: m[0] or None)
    mailbox = Mailbox(spec)
    put = out = replaced = stops = 0
    for action in actions:
        if action is None:
            taken = mailbox.take()
            out += taken is not None
            stops -= taken is not None and is_stop(taken)
        elif isinstance(action, _ActorStop):
            mailbox.keep_beyond_limit(Envelope(action))
            put += 1
            stops += 1
        else:
            before = mailbox.depth
            mail = Envelope((action, put))
            kept = mailbox.keep(mail)
            put += 1
            replaced += kept and mailbox.depth == before
            while not kept and (dropped := mailbox.make_room()) is not None:
                assert not is_stop(dropped)
                out += 1
                kept = mailbox.keep(mail)
            out += not kept
        assert mailbox.depth <= limit + stops
    left = mailbox.drain()
    assert put == out + replaced + len(left)
    assert sum(map(is_stop, left)) == stops
