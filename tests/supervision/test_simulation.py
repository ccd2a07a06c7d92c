import asyncio
import random
from typing import Any

import pytest

from tests.supervision.actors import (
    Bump,
    Count,
    Counter,
    Do,
    TellDo,
    children,
    started,
)
from trustfabric.supervision import Address, AskError, Simulation, simulate
from trustfabric.supervision.simulation import StandstillError


async def restless(simulation: Simulation) -> list[str]:
    """Actors that chat, wait and fall for a virtual hour; return who spoke when."""
    runtime, chance = simulation.runtime, simulation.random
    them = [Address[Counter](f"a{n}") for n in range(5)]
    spoken: list[str] = []
    await started(runtime, *children(*them), max_restarts=1_000)
    await simulation.record()

    async def speak(actor: Counter) -> None:
        await actor.sleep(actor.random.uniform(0.0, 2.0))
        spoken.append(f"{actor.now():%H:%M:%S} {actor.address.path}")
        actor.random.choice(them).tell(TellDo(speak))

    for address in them:
        address.tell(TellDo(speak))
    for _ in range(60):
        await asyncio.sleep(60.0)
        address = chance.choice(them)
        address.kill()
        address.tell(TellDo(speak))
    return spoken


def test_the_same_seed_has_the_same_history() -> None:
    one, again, other = (simulate(restless, seed) for seed in (1, 1, 2))

    assert one == again
    assert one.events > 1_000
    assert one.digest != other.digest


def test_what_ends_with_an_actor_ends_in_the_order_it_was_begun() -> None:
    async def program(simulation: Simulation) -> list[int]:
        runtime, a = simulation.runtime, Address[Counter]("a")
        await started(runtime, *children(a))
        await simulation.record()
        ended: list[int] = []

        async def last_words(n: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(n)
                a.tell(Bump())

        def begin(actor: Counter) -> None:
            for n in range(20):
                _ = actor.run(last_words(n), lambda _: Bump())

        await a.ask(Do(begin), within_s=1.0)
        await asyncio.sleep(1.0)
        await runtime.kill("root/a")
        return ended

    one, again = simulate(program, 1), simulate(program, 1)

    assert one.result == list(range(20))
    assert one.digest == again.digest


def test_a_failing_seed_is_named() -> None:
    async def failing(simulation: Simulation) -> None:
        assert simulation.random.random() > 2.0

    with pytest.raises(AssertionError) as caught:
        simulate(failing, 42)

    assert caught.value.__notes__ == ["simulated with seed 42"]


def test_the_order_of_deliveries_is_the_seeds() -> None:
    async def order(simulation: Simulation) -> list[str]:
        them = [Address[Counter](name) for name in "abcd"]
        await started(simulation.runtime, *children(*them))
        came: list[str] = []
        for address in them:
            address.tell(TellDo(lambda actor: came.append(actor.address.name)))
        await simulation.runtime.quiet()
        return came

    orders = {tuple(simulate(order, seed).result) for seed in range(20)}

    assert len(orders) > 5
    assert {tuple(sorted(one)) for one in orders} == {("a", "b", "c", "d")}


def test_mail_of_one_sender_stays_in_order_under_every_seed() -> None:
    async def order(simulation: Simulation) -> list[int]:
        a, b = Address[Counter]("a"), Address[Counter]("b")
        await started(simulation.runtime, *children(a, b))
        came: list[int] = []
        for n in range(10):
            b.tell(TellDo(lambda _: None))
            a.tell(TellDo(lambda _, n=n: came.append(n)))  # type: ignore[misc]
        await simulation.runtime.quiet()
        return came

    for seed in range(20):
        assert simulate(order, seed).result == list(range(10))


def test_deadlines_are_virtual_too() -> None:
    async def late(simulation: Simulation) -> Any:
        a = Address[Counter]("a")
        await started(simulation.runtime, *children(a))
        a.tell(TellDo(lambda actor: actor.sleep(3_600.0)))
        try:
            return await a.ask(Count(), within_s=1_800.0)
        except AskError as error:
            return str(error)

    assert simulate(late, 1).result == "root/a: 1800.0 s"


def test_waiting_for_nothing_is_a_failure_not_a_hang() -> None:
    async def stuck(_: Simulation) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StandstillError):
        simulate(stuck, 1)


def test_the_worlds_chance_is_not_touched() -> None:
    random.seed(7)
    before = random.getstate()

    simulate(restless, 3)

    assert random.getstate() == before
