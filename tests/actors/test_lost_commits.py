"""A commit whose answer is lost: looked up in the history, and never made twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fix_fabric import Fabric, a_fabric, held, until, until_waiting
from tests.proxy import Cut, Link, a_link
from trustfabric.actors.trust import LOOK_BACK_S
from trustfabric.db.faults import CommitUnknownError
from trustfabric.db.session import Database
from trustfabric.domain.trust import Lifecycle, Signal
from trustfabric.errors import UnavailableError


@pytest_asyncio.fixture
async def link(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Link]:
    folder = tmp_path_factory.mktemp("pg", numbered=True)
    # What a batch says, also where its statement is prepared and not said again.
    async with a_link(database_url, Path(folder), b'read_version":') as link:
        yield link


@pytest_asyncio.fixture
async def linked(link: Link, database_url: str) -> AsyncIterator[Fabric]:
    """A fabric whose own connections go over the link."""
    database = await Database.open(link.url)
    try:
        async with a_fabric(database, database_url) as fabric:
            yield fabric
    finally:
        await database.close()


async def test_a_commit_that_was_made_is_answered_though_its_answer_was_lost(
    link: Link, linked: Fabric
) -> None:
    instance = await linked.instance()

    link.cut = Cut.AFTER
    after = await linked.change(instance, Signal.TRUSTED_VERDICT)

    assert link.cuts == 1
    assert (after.lifecycle, after.version) == (Lifecycle.RESTORED, 2)
    assert [event.version for event in await linked.history(instance)] == [1, 2]


async def test_a_commit_that_never_arrived_is_refused_and_nothing_of_it_stays(
    link: Link, linked: Fabric
) -> None:
    instance = await linked.instance()

    link.cut = Cut.BEFORE
    with pytest.raises(UnavailableError):
        await linked.change(instance, Signal.TRUSTED_VERDICT)

    assert link.cuts == 1
    assert [event.version for event in await linked.history(instance)] == [1]
    again = await linked.change(instance, Signal.TRUSTED_VERDICT)
    assert again.version == 2


async def test_what_others_were_first_with_is_not_taken_for_made_with_the_rest(
    link: Link, linked: Fabric, second: Fabric
) -> None:
    ours, theirs, busy = await linked.instances(3)
    await linked.change(theirs, Signal.TRUSTED_VERDICT)
    await second.change(theirs, Signal.TRUSTED_VERDICT)

    async with held(second.database, busy):
        first = asyncio.ensure_future(linked.change(busy, Signal.UNKNOWN_VERDICT))
        await until_waiting(second)
        both = [
            asyncio.ensure_future(linked.change(ours, Signal.UNKNOWN_VERDICT)),
            asyncio.ensure_future(linked.change(theirs, Signal.CRASHED)),
        ]
        await linked.runtime.quiet()
        link.cut = Cut.AFTER  # of theirs: the first is with the server already
    await first
    _, crashed = await asyncio.gather(*both)

    assert link.cuts == 1
    assert (crashed.lifecycle, crashed.version) == (Lifecycle.SUSPECT, 4)
    assert await linked.posture(theirs) == crashed


async def test_while_the_database_stays_away_who_asked_is_told_that_nobody_knows(
    link: Link, database_url: str, second: Fabric
) -> None:
    opened = await Database.open(link.url, wait_s=0.1)
    async with a_fabric(opened, database_url) as fabric:
        instances = await fabric.instances(3)

        link.cut, link.goes_away = Cut.AFTER, True
        asked = [fabric.change(one, Signal.UNKNOWN_VERDICT) for one in instances]
        answers = asyncio.gather(*asked, return_exceptions=True)

        async def all_answered() -> bool | None:
            fabric.clock.advance(LOOK_BACK_S)
            return answers.done() or None

        await until(all_answered)
        first, *rest = await answers
        assert isinstance(first, CommitUnknownError)
        assert all(isinstance(one, UnavailableError) for one in rest)
        assert not any(one.restart_count for one in fabric.runtime.report())
    await opened.close()
    assert [event.version for event in await second.history(instances[0])] == [1, 2]
