"""The Scorer: every change of what a score is made of is scored, and nothing else."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tests.builders import OWNER
from tests.fix_fabric import (
    RUNTIME,
    Fabric,
    add_server,
    kill_as_it_begins_to_hear,
    only_one_listens,
    until,
)
from trustfabric.actors.intelligence import Scorer
from trustfabric.db import intelligence
from trustfabric.db.intelligence import CapabilityScore, Changes
from trustfabric.db.session import Database
from trustfabric.domain.ids import ServerId
from trustfabric.domain.trust import Signal
from trustfabric.errors import FabricError
from trustfabric.supervision import (
    Address,
    AskError,
    ChildSpec,
    ManualClock,
    Runtime,
    SupervisorSpec,
)

WINDOW = timedelta(seconds=300)
PATH = "fabric/intelligence"
HANG_UP = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE application_name = 'trustfabric scorer' AND datname = current_database()
"""


@dataclass(kw_only=True)
class Scoring(Fabric):
    scorer: Address[Scorer] = field(default_factory=lambda: Address("intelligence"))

    def spec(self) -> SupervisorSpec:
        below = super().spec()
        changes: Callable[[], Awaitable[Changes]] = lambda: Changes.of(  # noqa: E731
            self.database_url
        )
        return SupervisorSpec(
            name=below.name,
            max_restarts=100,
            children=(
                *below.children,
                ChildSpec(
                    address=self.scorer,
                    start=lambda: Scorer(self.database, changes, WINDOW),
                ),
            ),
        )

    async def scores(self, server: ServerId) -> list[CapabilityScore]:
        async with self.database.reading() as conn:
            return await intelligence.list_scores(conn, None, server)

    async def until_score(self, server: ServerId, *lines: str) -> CapabilityScore:
        """Wait until the first score of a server has just these lines."""

        async def look() -> CapabilityScore | None:
            found = await self.scores(server)
            wanted = found and [*found[0].notes] == ["base +85", *lines]
            return found[0] if wanted else None

        return await until(look, f"a score with {lines}")

    async def execute(self, query: str, *values: Any) -> None:
        async with self.database.writing() as conn:
            await conn.execute(query.encode(), values)


@asynccontextmanager
async def scoring_on(database: Database, url: str) -> AsyncIterator[Scoring]:
    clock = ManualClock()
    runtime = Runtime(clock=clock, answers=(FabricError, AskError))
    started = Scoring(
        runtime=runtime, clock=clock, database=database, database_url=url, name=RUNTIME
    )
    await runtime.start(started.spec())
    try:
        yield started
    finally:
        await runtime.stop()


@pytest_asyncio.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Scoring]:
    async with scoring_on(database, database_url) as started:
        yield started


async def test_a_new_server_is_scored_for_each_capability(fabric: Scoring) -> None:
    server = await add_server(fabric.database, OWNER, capabilities=["gpu", "storage"])

    row = await fabric.until_score(server.id)

    scores = await fabric.scores(server.id)
    assert [each.capability for each in scores] == ["gpu", "storage", "runtime"]
    assert (row.score, row.status, row.backend) == (85, "healthy", None)


async def test_every_trust_change_is_scored(fabric: Scoring) -> None:
    server = await add_server(fabric.database)
    instance = await fabric.instance_of(server.id)
    await fabric.until_score(server.id, "lifecycle:suspect -5")

    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    row = await fabric.until_score(server.id)
    assert row.evidence["registry_version"] == 2
    assert row.backend == "libvirt"
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)

    row = await fabric.until_score(
        server.id, "attestation:untrusted -40", "lifecycle:quarantined -25"
    )
    assert (row.score, row.status) == (20, "critical")
    assert len(await fabric.scores(server.id)) == 1


async def test_accelerators_and_certifications_are_scored(fabric: Scoring) -> None:
    server = await add_server(fabric.database)
    instance = await fabric.instance_of(server.id)
    await fabric.until_score(server.id, "lifecycle:suspect -5")
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    await fabric.until_score(server.id)

    await fabric.execute(
        """
        INSERT INTO runtime_vm_accelerator_posture
               (runtime_vm_instance_id, accelerator_id, accelerator_type, posture)
        VALUES (%s, 'gpu-0', 'gpu', 'tampered')
        """,
        instance,
    )
    await fabric.until_score(server.id, "accelerators:gpu-0=tampered -10")
    await fabric.execute("DELETE FROM runtime_vm_accelerator_posture")
    await fabric.until_score(server.id)
    await fabric.execute("UPDATE evaluation_certifications SET status = 'fail'")

    async with fabric.database.reading() as conn:
        row = await (
            await conn.execute("SELECT id FROM evaluation_certifications")
        ).fetchone()
    assert row is not None
    await fabric.until_score(server.id, f"certification:fail:{row[0]} -10")


async def test_other_capabilities_take_the_place_of_the_first(fabric: Scoring) -> None:
    server = await add_server(fabric.database, OWNER, capabilities=["a"])
    await fabric.until_score(server.id)

    config = json.dumps({"capabilities": ["b"]})
    await fabric.execute("UPDATE servers SET config = %s", config)

    async def look() -> bool | None:
        found = [each.capability for each in await fabric.scores(server.id)]
        return sorted(found) == ["b", "runtime"] or None

    await until(look, "the scores of the new config")


async def test_a_deleted_server_has_no_scores(fabric: Scoring) -> None:
    server = await add_server(fabric.database)
    await fabric.until_score(server.id)

    await fabric.execute("UPDATE servers SET deleted_at = now()")

    async def look() -> bool | None:
        async with fabric.database.reading() as conn:
            cursor = await conn.execute("SELECT 1 FROM capability_intelligence_scores")
            return await cursor.fetchone() is None or None

    await until(look, "the scores to be gone")


async def test_a_terminated_instance_counts_only_while_it_is_distrusted(
    fabric: Scoring,
) -> None:
    server = await add_server(fabric.database)
    instance = await fabric.instance_of(server.id)
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)
    distrust = ("attestation:untrusted -40", "lifecycle:quarantined -25")
    await fabric.until_score(server.id, *distrust)

    await fabric.execute(
        "UPDATE runtime_vm_instances SET terminated_at = %s", fabric.clock.now()
    )
    await fabric.runtime.quiet()
    await fabric.until_score(server.id, *distrust)
    released = fabric.clock.now() + timedelta(seconds=1)
    await fabric.execute("UPDATE servers SET released_at = %s", released)

    assert (await fabric.until_score(server.id)).confidence == 0.25


async def test_time_alone_lowers_a_score_at_its_moment(fabric: Scoring) -> None:
    server = await add_server(fabric.database)
    instance = await fabric.instance_of(server.id)
    await fabric.until_score(server.id, "lifecycle:suspect -5")
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    row = await fabric.until_score(server.id)
    expired = f"freshness:expired:{row.evidence['freshness_deadline']} -10"

    await fabric.runtime.quiet()
    fabric.clock.advance(300)
    await fabric.until_score(server.id, expired)
    await fabric.runtime.quiet()
    fabric.clock.advance(300)
    await fabric.until_score(server.id, expired, "freshness:windows-missed:1 -1")


async def test_what_changed_while_nobody_listened_is_made_up_for(
    fabric: Scoring,
) -> None:
    server = await add_server(fabric.database)
    instance = await fabric.instance_of(server.id)
    await fabric.until_score(server.id, "lifecycle:suspect -5")
    fabric.runtime.suspend(PATH)
    await fabric.change(instance, Signal.TRUSTED_VERDICT)

    await fabric.kill(PATH)

    await fabric.until_score(server.id)


async def test_a_lost_connection_is_opened_again(fabric: Scoring) -> None:
    server = await add_server(fabric.database)
    instance = await fabric.instance_of(server.id)
    await fabric.until_score(server.id, "lifecycle:suspect -5")

    await fabric.execute(HANG_UP)
    await fabric.change(instance, Signal.TRUSTED_VERDICT)

    async def look() -> bool | None:
        fabric.clock.advance(0.05)
        found = await fabric.scores(server.id)
        return (found and [*found[0].notes] == ["base +85"]) or None

    await until(look, "the score of a trusted one")


async def test_what_says_the_same_is_not_written_again(fabric: Scoring) -> None:
    server = await add_server(fabric.database)
    await fabric.until_score(server.id)
    (before,) = await fabric.scores(server.id)
    await fabric.runtime.quiet()
    fabric.clock.advance(1)

    await fabric.kill(PATH)
    other = await add_server(fabric.database)
    await fabric.until_score(other.id)

    assert await fabric.scores(server.id) == [before]


async def test_two_scorers_agree(
    fabric: Scoring, database: Database, database_url: str
) -> None:
    async with scoring_on(database, database_url) as second:
        server = await add_server(fabric.database, OWNER, capabilities=["a", "b"])
        instance = await fabric.instance_of(server.id)
        for _ in range(10):
            await fabric.change(instance, Signal.ANNOTATED)
            await fabric.change(instance, Signal.UNKNOWN_VERDICT)

        async def look() -> bool | None:
            found = await fabric.scores(server.id)
            versions = {each.evidence["registry_version"] for each in found}
            return (len(found) == 3 and versions == {21}) or None

        await until(look, "the newest version to be scored")
        await second.runtime.quiet()


@pytest.mark.parametrize("batch", [1, 3])
async def test_a_batch_is_no_end(
    fabric: Scoring, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("trustfabric.actors.intelligence.BATCH", batch)
    fabric.runtime.suspend(PATH)
    servers = [await add_server(fabric.database) for _ in range(7)]

    await fabric.kill(PATH)

    for server in servers:
        await fabric.until_score(server.id)


async def test_scorers_killed_as_they_begin_to_hear_leave_no_connection_behind(
    fabric: Scoring,
) -> None:
    cell = fabric.runtime.find(PATH).cell

    for _ in range(5):
        await kill_as_it_begins_to_hear(fabric, cell)

    await fabric.kill(PATH)
    await only_one_listens(fabric.database, "scorer")
