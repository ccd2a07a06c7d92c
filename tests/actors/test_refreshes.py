"""Certifications: refreshed with evidence of their own, once, unless distrusted."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from tests.actors.fix_refreshes import CADENCE, Refreshing, refreshing_on
from tests.builders import OWNER, insert_run
from tests.db.test_placement import hold
from tests.fix_fabric import add_server, count
from trustfabric.db import holds
from trustfabric.db.session import Database
from trustfabric.domain.evaluations import CertificationStatus
from trustfabric.domain.holds import HoldOrder, HoldScope
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.trust import AttestationStatus, Signal
from trustfabric.errors import (
    NotFoundError,
    PlacementBlockedError,
    VersionConflictError,
)

TRUSTED, UNTRUSTED = AttestationStatus.TRUSTED, AttestationStatus.UNTRUSTED
UNKNOWN = AttestationStatus.UNKNOWN
PASS, FAIL = CertificationStatus.PASS, CertificationStatus.FAIL
LIVE = """
    SELECT coalesce(max(n), 0) FROM (
        SELECT count(*) AS n FROM evaluation_refresh_jobs
         WHERE status IN ('queued', 'claimed') GROUP BY certification_id) live
"""


@pytest_asyncio.fixture
async def fabric(database: Database, database_url: str) -> AsyncIterator[Refreshing]:
    async with refreshing_on(database, database_url) as started:
        yield started


async def refreshed(fabric: Refreshing) -> InstanceId:
    """Add a machine whose certification has passed once."""
    instance = await fabric.machine()
    await fabric.tick()
    await fabric.answer(instance, TRUSTED)
    await fabric.until_certification(instance, lambda row: row.status is PASS)
    return instance


@pytest.mark.parametrize("status", ["queued", "claimed"])
async def test_a_hold_cancels_what_is_queued_and_what_is_claimed(
    fabric: Refreshing, status: str
) -> None:
    if status == "queued":
        instance = await refreshed(fabric)
    else:
        instance = await fabric.machine()
    await fabric.tick()
    assert await fabric.jobs(status) == 1

    await hold(fabric, "all")
    await fabric.tick()

    row = await fabric.until_certification(
        instance, lambda row: row.blocked_reason is not None
    )
    assert row.fallback_launched_at is not None
    assert await fabric.jobs("cancelled") == 1
    assert await fabric.jobs(status) == 0


async def test_a_hold_that_is_told_of_is_heeded_without_a_tick(
    fabric: Refreshing,
) -> None:
    instance = await fabric.machine()
    await fabric.tick()
    order = HoldOrder(
        scope=HoldScope.ALL,
        reason="why",
        by="user:1",
        caller=OwnerId(OWNER),
        is_admin=True,
    )
    async with fabric.database.writing() as conn:
        await holds.place_hold(conn, order, None, fabric.clock.now())

    await fabric.until_certification(
        instance, lambda row: row.blocked_reason is not None
    )


async def test_a_new_certification_is_refreshed_with_evidence(
    fabric: Refreshing,
) -> None:
    instance = await fabric.machine()

    await fabric.tick()
    assert fabric.asked == [instance]
    assert await fabric.jobs("claimed") == 1
    await fabric.answer(instance, TRUSTED)

    row = await fabric.until_certification(instance, lambda row: row.status is PASS)
    now = fabric.clock.now()
    assert await fabric.jobs("done") == 1
    assert row.last_attestation_status is TRUSTED
    assert row.evidence["status"] == "trusted"
    lineage = row.evidence_lineage["attestation"]
    assert lineage["vm_instance_id"] == instance
    assert lineage["attestation_id"] == row.evidence["attestation_id"]
    assert lineage["provenance_ref"] == f"attestation:tpm:{lineage['attestation_id']}"
    assert row.valid_from == now
    assert row.next_refresh_at is not None
    assert now + 0.9 * CADENCE <= row.next_refresh_at <= now + CADENCE


async def test_a_refresh_waits_for_its_time_and_then_asks_again(
    fabric: Refreshing,
) -> None:
    instance = await refreshed(fabric)
    await fabric.tick()
    assert await fabric.jobs("queued") == 1  # within the look-ahead, and not yet due
    assert fabric.asked == [instance]

    await fabric.tick(1700)
    await fabric.tick()

    assert len(fabric.asked) == 2


async def test_evidence_older_than_the_claim_does_not_do(fabric: Refreshing) -> None:
    fabric.runtime.suspend("fabric/refreshes")
    instance = await fabric.machine()
    await fabric.answer(instance, TRUSTED)

    fabric.runtime.resume("fabric/refreshes")
    await fabric.tick()

    assert (await fabric.certification(instance)).status == "pending"
    assert await fabric.jobs("claimed") == 1


async def test_without_a_vm_the_refresh_waits_for_one(fabric: Refreshing) -> None:
    await add_server(fabric.database)

    await fabric.tick()
    await fabric.tick()

    assert await fabric.jobs("queued") == 1
    assert fabric.asked == []


async def test_a_vm_of_another_runtime_is_left_to_it(fabric: Refreshing) -> None:
    await fabric.machine(owner_runtime="there")

    await fabric.tick()

    assert await fabric.jobs("queued") == 1
    assert fabric.asked == []


@pytest.mark.parametrize("claimed", [True, False])
async def test_distrust_cancels_what_is_on_its_way(
    fabric: Refreshing, *, claimed: bool
) -> None:
    instance = await fabric.machine() if claimed else await refreshed(fabric)
    await fabric.tick()
    assert await fabric.jobs("claimed" if claimed else "queued") == 1

    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)

    row = await fabric.until_certification(instance, lambda row: row.blocked_reason)
    assert await fabric.jobs("cancelled") == 1
    assert await count(fabric.database, LIVE) == 0
    assert row.status is FAIL
    assert row.fallback_launched_at == fabric.clock.now()
    assert row.next_refresh_at == fabric.clock.now() + CADENCE


async def test_an_untrusted_verdict_of_its_own_fails_and_blocks_it(
    fabric: Refreshing,
) -> None:
    instance = await fabric.machine()
    await fabric.tick()

    await fabric.answer(instance, UNTRUSTED)

    row = await fabric.until_certification(instance, lambda row: row.blocked_reason)
    assert (await fabric.jobs("done"), await fabric.jobs("cancelled")) == (1, 0)
    assert row.status is FAIL
    assert row.evidence["status"] == "untrusted"
    assert row.fallback_launched_at is not None


async def test_a_block_is_noted_once_and_its_start_is_kept(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)
    first = await fabric.until_certification(instance, lambda row: row.blocked_reason)

    for _ in range(40):
        await fabric.tick()

    row = await fabric.certification(instance)
    assert row.governance_notes == first.governance_notes
    assert row.fallback_launched_at == first.fallback_launched_at
    assert row.next_refresh_at is not None
    assert first.next_refresh_at is not None
    assert row.next_refresh_at >= first.next_refresh_at + CADENCE
    assert row.version == first.version + 1  # its check moved once in 40 minutes


async def test_another_reason_is_another_note(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)
    await fabric.until_certification(instance, lambda row: row.blocked_reason)
    async with fabric.database.writing() as conn:
        run = await insert_run(conn, instance)

    await fabric.change(instance, Signal.RUN_STAGED)
    await fabric.tick(CADENCE.total_seconds())
    await fabric.tick()

    row = await fabric.certification(instance)
    hook = f"policy_hook:remediation_gate=active-run:{run}:pending"
    assert row.blocked_reason == hook
    notes = (row.governance_notes or "").splitlines()
    assert len(notes) == 2
    assert notes[1].endswith(f"refresh blocked: {hook}")


async def test_restoration_resumes_at_once(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)
    await fabric.until_certification(instance, lambda row: row.blocked_reason)
    asked = len(fabric.asked)
    await fabric.tick()
    await fabric.change(instance, Signal.RELEASED)

    await fabric.answer(instance, TRUSTED)

    row = await fabric.until_certification(instance, lambda r: not r.blocked_reason)
    now = fabric.clock.now()
    assert row.fallback_launched_at is None
    assert (row.governance_notes or "").endswith("refresh resumed")
    assert (row.status, row.valid_from) == (PASS, now)
    assert row.next_refresh_at is not None
    assert row.next_refresh_at > now
    assert len(fabric.asked) == asked  # the verdict that restored it is its evidence


async def test_restoration_without_a_verdict_asks_for_one(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)
    await fabric.change(instance, Signal.QUARANTINED_BY_HAND)
    await fabric.until_certification(instance, lambda row: row.blocked_reason)
    asked = len(fabric.asked)

    deadline = fabric.clock.now() + CADENCE
    await fabric.change(instance, Signal.OVERRIDDEN, deadline=deadline)

    await fabric.until_certification(instance, lambda row: not row.blocked_reason)
    await fabric.until_asked(asked + 1)


async def test_a_verdict_since_it_was_due_spares_the_challenge(
    fabric: Refreshing,
) -> None:
    server = await add_server(fabric.database)
    await fabric.tick()
    assert await fabric.jobs("queued") == 1
    instance = await fabric.instance_of(server.id)
    await fabric.tick()

    await fabric.answer(instance, TRUSTED)

    await fabric.until_certification(instance, lambda row: row.status is PASS)
    assert fabric.asked == []


async def test_restoration_that_nobody_heard_of_is_found(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)
    await fabric.change(instance, Signal.QUARANTINED_BY_HAND)
    await fabric.until_certification(instance, lambda row: row.blocked_reason)
    fabric.runtime.suspend("fabric/refreshes")
    await fabric.change(instance, Signal.RELEASED)
    await fabric.answer(instance, TRUSTED)

    await fabric.kill("fabric/refreshes")

    await fabric.until_certification(instance, lambda row: not row.blocked_reason)


async def test_a_lost_challenge_is_asked_anew_and_then_given_up(
    fabric: Refreshing,
) -> None:
    instance = await fabric.machine()
    await fabric.tick()

    for _ in range(12):
        await fabric.tick()

    row = await fabric.certification(instance)
    assert fabric.asked == [instance] * 3
    assert await fabric.jobs("failed") == 1
    assert row.next_refresh_at is not None
    assert row.next_refresh_at > fabric.clock.now()
    assert row.status == "pending"


async def test_no_verdict_is_tried_again_soon(fabric: Refreshing) -> None:
    instance = await fabric.machine()
    await fabric.tick()

    await fabric.answer(instance, UNKNOWN)
    await fabric.until_jobs("queued", 1)
    await fabric.tick()

    assert fabric.asked == [instance] * 2
    await fabric.answer(instance, TRUSTED)
    await fabric.until_certification(instance, lambda row: row.status is PASS)


async def test_what_a_dead_refresher_claimed_is_concluded_by_the_next(
    fabric: Refreshing,
) -> None:
    instance = await fabric.machine()
    await fabric.tick()
    fabric.runtime.suspend("fabric/refreshes")
    await fabric.answer(instance, TRUSTED)

    await fabric.kill("fabric/refreshes")

    await fabric.until_certification(instance, lambda row: row.status is PASS)
    assert await fabric.jobs("done") == 1


async def test_a_deleted_server_is_not_refreshed(fabric: Refreshing) -> None:
    instance = await fabric.machine()
    await fabric.tick()
    async with fabric.database.writing() as conn:
        await conn.execute("UPDATE servers SET deleted_at = now()")

    await fabric.tick()

    assert await fabric.jobs("cancelled") == 1
    assert await fabric.jobs("claimed") == 0
    assert fabric.asked == [instance]


async def test_a_page_is_no_end(
    fabric: Refreshing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trustfabric.actors.refreshes.PAGE", 3)
    machines = {await fabric.machine() for _ in range(10)}

    await fabric.tick()
    await fabric.until_asked(10)

    assert set(fabric.asked) == machines


async def test_edits_move_what_is_queued(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)
    await fabric.tick()
    asked = len(fabric.asked)

    await fabric.edit(
        instance, next_refresh_at=fabric.clock.now(), governance_notes="x"
    )

    await fabric.until_asked(asked + 1)
    row = await fabric.certification(instance)
    assert row.governance_notes == "x"
    assert await fabric.jobs("claimed") == 1


async def test_what_is_cleared_is_not_refreshed_by_the_clock(
    fabric: Refreshing,
) -> None:
    instance = await refreshed(fabric)
    await fabric.tick()

    await fabric.edit(instance, next_refresh_at=None)
    for _ in range(3):
        await fabric.tick(3600)

    assert len(fabric.asked) == 1
    assert await fabric.jobs("cancelled") == 1
    assert (await fabric.certification(instance)).next_refresh_at is None


async def test_a_shorter_cadence_counts_from_now(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)

    await fabric.edit(instance, cadence_s=60)

    row = await fabric.certification(instance)
    assert row.next_refresh_at == fabric.clock.now() + timedelta(seconds=60)


async def test_an_edit_is_based_on_the_version_it_names(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)
    version = (await fabric.certification(instance)).version
    await fabric.edit(instance, governance_notes="x", expected_version=version)

    with pytest.raises(VersionConflictError):
        await fabric.edit(instance, governance_notes="y", expected_version=version)

    await fabric.edit(instance, governance_notes=None)
    row = await fabric.certification(instance)
    assert (row.governance_notes, row.version) == (None, version + 2)


async def test_a_retry_comes_now(fabric: Refreshing) -> None:
    instance = await refreshed(fabric)

    await fabric.retry(instance)
    await fabric.retry(instance)

    await fabric.until_asked(2)
    await fabric.settled()
    assert len(fabric.asked) == 2
    assert await count(fabric.database, LIVE) == 1


async def test_a_retry_of_a_blocked_one_is_refused(fabric: Refreshing) -> None:
    instance = await fabric.machine()
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)

    with pytest.raises(PlacementBlockedError) as refused:
        await fabric.retry(instance)

    assert "trust:attestation:untrusted" in refused.value.facts["notes"]  # type: ignore[operator]


async def test_others_certifications_are_not_there(fabric: Refreshing) -> None:
    instance = await fabric.machine()

    with pytest.raises(NotFoundError):
        await fabric.retry(instance, owner=OWNER + 1)


async def test_two_runtimes_on_one_database_do_nothing_twice(
    fabric: Refreshing, database_url: str
) -> None:
    opened = await Database.open(database_url)
    async with refreshing_on(opened, database_url, "there") as second:
        mine = [await fabric.machine() for _ in range(5)]
        theirs = [await second.machine() for _ in range(5)]

        await asyncio.gather(fabric.tick(), second.tick())
        await asyncio.gather(fabric.until_asked(5), second.until_asked(5))
        assert sorted(fabric.asked) == mine
        assert sorted(second.asked) == theirs
        for instance in (*mine, *theirs):
            await fabric.answer(instance, UNTRUSTED)
        for instance in (*mine, *theirs):
            await fabric.until_certification(instance, lambda row: row.blocked_reason)
        await asyncio.gather(fabric.tick(), second.tick())

        for instance in (*mine, *theirs):
            row = await fabric.certification(instance)
            assert len((row.governance_notes or "").splitlines()) == 1
        assert await fabric.jobs("done") == 10
        assert await count(fabric.database, LIVE) == 0
        total = "SELECT count(*) FROM evaluation_refresh_jobs"
        assert await count(fabric.database, total) == 10
    await opened.close()
