import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from trustfabric.supervision.mailbox import Envelope, Mailbox


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


async def test_a_faulty_key_is_the_receivers_bug_not_the_senders() -> None:
    class Faulty(Counter):
        mailbox: ClassVar[MailboxSpec] = MailboxSpec(conflate=lambda m: m.nothing)

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
    st.lists(st.one_of(st.integers(0, 3), st.none()), max_size=30),
)
def test_a_mailbox_never_exceeds_its_bound_and_loses_nothing(
    overflow: Overflow, limit: int, actions: list[int | None]
) -> None:
    """None takes; a number puts that key, of which 0 is not conflated."""
    spec = MailboxSpec(limit=limit, overflow=overflow, conflate=lambda m: m[0] or None)
    mailbox = Mailbox(spec)
    put = out = replaced = 0
    for action in actions:
        if action is None:
            out += mailbox.take() is not None
        else:
            before = mailbox.depth
            mail = Envelope((action, put))
            kept = mailbox.keep(mail)
            put += 1
            replaced += kept and mailbox.depth == before
            if not kept:
                out += 1  # the oldest, or this one
                if mailbox.make_room() is not None:
                    mailbox.keep_beyond_limit(mail)
        assert mailbox.depth <= limit
    assert put == out + replaced + len(mailbox.drain())
