"""A commit whose answer is lost: looked up in the history, and never made twice."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fix_fabric import Fabric, a_fabric
from tests.proxy import Cut, Link, a_link
from trustfabric.db.session import Database
from trustfabric.domain.trust import Lifecycle, Signal
from trustfabric.errors import UnavailableError


@pytest_asyncio.fixture
async def link(
    database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Link]:
    folder = tmp_path_factory.mktemp("pg", numbered=True)
    async with a_link(
        database_url, Path(folder), b"UPDATE runtime_vm_trust_registry"
    ) as link:
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
