"""The Ledger: many runs' entries in one commit, and each answered for itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.db.test_ledger import an_entry, claimed, log
from tests.proxy import Cut, Link, a_link
from trustfabric.actors.ledger import Enter, Ledger
from trustfabric.db.ledger import Entered, Entry
from trustfabric.db.runs import lock_run
from trustfabric.db.session import Database
from trustfabric.domain.runs import Run
from trustfabric.errors import FabricError, InvalidError, UnavailableError
from trustfabric.supervision import Address, ChildSpec, Runtime, SupervisorSpec

COMMITS = "SELECT count(DISTINCT xid::text) FROM runtime_vm_remediation_events"


@asynccontextmanager
async def a_ledger(database: Database) -> AsyncIterator[Address[Ledger]]:
    address: Address[Ledger] = Address("ledger")
    runtime = Runtime(answers=(FabricError,))
    spec = ChildSpec(address=address, start=lambda: Ledger(database))
    await runtime.start(SupervisorSpec(name="fabric", children=(spec,)))
    try:
        yield address
    finally:
        await runtime.stop()


@pytest.fixture
async def ledger(database: Database) -> AsyncIterator[Address[Ledger]]:
    async with a_ledger(database) as address:
        yield address


async def ask(ledger: Address[Ledger], *entries: Entry) -> list[Any]:
    asked = (ledger.ask(Enter(entry), within_s=10) for entry in entries)
    outcomes: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
    return outcomes


async def texts(database: Database, run: Run) -> list[str]:
    return [text for _, text in await log(database, run)][2:]


async def commits(database: Database) -> int:
    async with database.reading() as conn:
        row = await (await conn.execute(COMMITS)).fetchone()
    assert row is not None
    return int(row[0])


async def test_what_comes_meanwhile_is_one_commit(
    database: Database, ledger: Address[Ledger]
) -> None:
    first, *rest = await claimed(database, 6)
    before = await commits(database)

    made = await ask(ledger, *(an_entry(run, "a") for run in (first, *rest)))

    assert all(isinstance(one, Entered) and one.held for one in made)
    assert await commits(database) == before + 2  # the first alone, then the rest


async def test_one_poisoned_among_many_is_refused_alone(
    database: Database, ledger: Address[Ledger]
) -> None:
    runs = await claimed(database, 6)
    poisoned = runs[3]

    made = await ask(
        ledger, *(an_entry(run, "\0" if run is poisoned else "a") for run in runs)
    )

    assert isinstance(made[3], InvalidError)
    for run, one in zip(runs, made, strict=True):
        assert await texts(database, run) == ([] if run is poisoned else ["a"])
        assert run is poisoned or one.held


async def test_the_entries_of_one_run_keep_their_order(
    database: Database, ledger: Address[Ledger]
) -> None:
    run, other = await claimed(database, 2)
    entries = [
        an_entry(other, "x"),
        an_entry(run, "a"),
        an_entry(run, "b", in_store=1),
        an_entry(run, "b", "c", in_store=1, is_unsure=True),
    ]

    made = await ask(ledger, *entries)

    assert await texts(database, run) == ["a", "b", "c"]
    assert [one.in_store for one in made] == [1, 1, 2, 3]


async def test_a_run_that_others_change_keeps_nobody_else_waiting(
    database: Database, ledger: Address[Ledger]
) -> None:
    busy, *rest = await claimed(database, 4)

    async with database.writing() as other:
        await lock_run(other, busy.id)
        made = await ask(
            ledger, an_entry(rest[0], "a"), *(an_entry(r, "b") for r in (busy, *rest))
        )
    (after,) = await ask(ledger, an_entry(busy, "c"))

    assert isinstance(made[1], UnavailableError)
    assert all(one.held for one in (made[0], *made[2:]))
    assert after.held
    assert await texts(database, busy) == ["c"]
    assert await texts(database, rest[0]) == ["a", "b"]


@pytest.fixture
async def link(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Link]:
    folder = Path(tmp_path_factory.mktemp("pg", numbered=True))
    marker = b"INSERT INTO runtime_vm_remediation_events"
    async with a_link(database_url, folder, marker) as link:
        yield link


@pytest.mark.parametrize("cut", Cut)
async def test_a_connection_lost_in_the_commit_doubles_and_loses_no_line(
    database: Database, link: Link, cut: Cut
) -> None:
    runs = await claimed(database, 3)
    linked = await Database.open(link.url)
    async with a_ledger(linked) as ledger:
        link.cut = cut
        first = await ask(ledger, *(an_entry(run, "a", "b") for run in runs))
        unsure = [isinstance(one, UnavailableError) for one in first]
        again = await ask(
            ledger,
            *(
                an_entry(run, "a", "b", "c", is_unsure=True)
                for run, lost in zip(runs, unsure, strict=True)
                if lost
            ),
        )
    await linked.close()

    assert link.cuts == 1
    assert any(unsure)
    assert all(one.in_store == 3 for one in again)
    for run, lost in zip(runs, unsure, strict=True):
        assert await texts(database, run) == (["a", "b", "c"] if lost else ["a", "b"])
