"""Races for one run, between runtimes: many connections, and always one winner."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random

import pytest

from tests.actors.fix_remediation import SETTINGS, Fabric, a_fabric
from tests.builders import insert_owner
from tests.db.fix_runs import ALICE, BOB, KEY, add_instance, add_playbook
from trustfabric.actors.dispatch import CancelRun, DecideApproval, EnqueueRun
from trustfabric.db import runs
from trustfabric.db.session import Database
from trustfabric.domain.approvals import Ruling
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.runs import ApprovalState, Run, RunStatus
from trustfabric.domain.trust import Lifecycle, Tag
from trustfabric.errors import ConflictError, RunActiveError

CAROL = OwnerId(9)
NOBODY = replace(SETTINGS, concurrency=0)
"""What is approved stays in the queue, so that a race ends where it was decided."""


@pytest.fixture
async def fabrics(database: Database, database_url: str) -> AsyncIterator[list[Fabric]]:
    """Three runtimes on one database, with connections of their own."""
    async with database.writing() as conn:
        for user in (ALICE, BOB, CAROL):
            await insert_owner(conn, user)
    async with AsyncExitStack() as stack:
        started = []
        for name in ("one", "two", "three"):
            own = await Database.open(database_url, pool_size=8)
            stack.push_async_callback(own.close)
            settings = replace(NOBODY, runtime_id=name)
            fabric = a_fabric(own, database_url, settings)
            started.append(await stack.enter_async_context(fabric))
        yield started


def an_enqueue(instance: InstanceId) -> EnqueueRun:
    return EnqueueRun(owner=ALICE, by=ALICE, instance_id=instance, playbook=KEY)


def a_decision(run: Run, by: OwnerId, *, approve: bool) -> DecideApproval:
    ruling = Ruling(approve=approve, by=by, expected_version=run.version)
    return DecideApproval(owner=None, run_id=run.id, ruling=ruling)


async def race(fabrics: Sequence[Fabric], *orders: object) -> list[object]:
    """Give the orders to the runtimes in turn, all at once."""
    outcomes: list[object] = await asyncio.gather(
        *(fabrics[at % 3].ask(order) for at, order in enumerate(orders)),
        return_exceptions=True,
    )
    return outcomes


async def test_of_50_racing_enqueues_one_is_made_and_49_are_refused(
    fabrics: list[Fabric],
) -> None:
    database = fabrics[0].database
    await add_playbook(database, approval_required=True)
    instance = await add_instance(database)

    outcomes = await race(fabrics, *[an_enqueue(instance)] * 50)

    kinds = Counter(type(outcome) for outcome in outcomes)
    assert kinds == {Run: 1, RunActiveError: 49}
    async with database.reading() as conn:
        assert len(await runs.list_runs(conn, runs.RunFilter())) == 1


@pytest.mark.slow
async def test_s9_of_approve_reject_and_cancel_one_wins(fabrics: list[Fabric]) -> None:
    database, random = fabrics[0].database, Random(1)
    await add_playbook(database, approval_required=True)
    seen: Counter[str] = Counter()
    for _ in range(20):
        instance = await add_instance(database)
        run = await fabrics[0].ask(an_enqueue(instance))
        orders = {
            "approve": a_decision(run, BOB, approve=True),
            "reject": a_decision(run, CAROL, approve=False),
            "cancel": CancelRun(owner=None, run_id=run.id, by="user:8"),
        }
        names = random.sample(sorted(orders), 3)

        outcomes = await race(fabrics, *(orders[name] for name in names))

        done = dict(zip(names, outcomes, strict=True))
        assert all(isinstance(each, Run | ConflictError) for each in outcomes), done
        won = {name for name, each in done.items() if isinstance(each, Run)}
        after = await fabrics[0].read(run.id)
        assert after.status is RunStatus.CANCELLED
        # What was approved may be cancelled afterwards; nothing else comes second.
        assert won in ({"approve", "cancel"}, {"reject"}, {"cancel"})
        assert (after.approval_state is ApprovalState.REJECTED) == (won == {"reject"})
        assert (after.approval_state is ApprovalState.APPROVED) == ("approve" in won)
        seen[min(won)] += 1
    assert sum(seen.values()) == 20


async def test_the_last_of_two_consents_is_given_once(fabrics: list[Fabric]) -> None:
    database = fabrics[0].database
    metadata = {"script": "true", "approvals_required": 2}
    await add_playbook(database, approval_required=True, metadata=metadata)
    instance = await fabrics[0].quarantined()
    run = await fabrics[0].run_of(instance, lambda _: True)

    orders = [a_decision(run, by, approve=True) for by in (ALICE, BOB, CAROL)]
    first = await race(fabrics, *orders)
    half = await fabrics[0].read(run.id)
    waiting = (await fabrics[0].posture(instance)).remediation_state
    again = [a_decision(half, by, approve=True) for by in (ALICE, BOB, CAROL)]
    second = await race(fabrics, *again)
    whole = await fabrics[0].read(run.id)

    assert sum(isinstance(each, Run) for each in first) == 1
    assert (half.approval_state, half.approvals_given) == (ApprovalState.PENDING, 1)
    assert waiting is Tag.PENDING_APPROVAL
    assert sum(isinstance(each, Run) for each in second) == 1
    assert (whole.approval_state, whole.approvals_given) == (ApprovalState.APPROVED, 2)
    posture = await fabrics[0].posture(instance)
    assert (posture.lifecycle, posture.remediation_state) == (
        Lifecycle.REMEDIATING,
        Tag.AWAITING_EXECUTOR,
    )
