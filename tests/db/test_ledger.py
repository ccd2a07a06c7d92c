"""What many runs write in one transaction: each only under its own lease."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from tests.db.fix_runs import ALICE, NOON, add_instance, add_playbook, add_run, snapshot
from tests.db.test_runs import LATER, a_claim, an_end
from trustfabric.db import trust
from trustfabric.db.artifacts import digest_logs
from trustfabric.db.claims import ClaimRun
from trustfabric.db.holds import place_hold
from trustfabric.db.ledger import Entered, Entry, enter
from trustfabric.db.run_writes import FinishRun
from trustfabric.db.runs import lock_run
from trustfabric.db.session import Database
from trustfabric.domain.executors import LogStream, RemediationLogEvent
from trustfabric.domain.failures import FailureReason
from trustfabric.domain.holds import HoldOrder, HoldScope
from trustfabric.domain.ids import RunId
from trustfabric.domain.run_events import RunEvent, log_event
from trustfabric.domain.runs import Run, RunStatus
from trustfabric.errors import ConflictError, FabricError, HeldError, InvalidError

UNTIL = NOON + timedelta(seconds=60)


async def some_runs(database: Database, count: int, **playbook: Any) -> list[Run]:
    book = await add_playbook(database, **playbook)
    return [
        await add_run(database, await add_instance(database), book)
        for _ in range(count)
    ]


async def claim(
    database: Database, runs: Sequence[Run], **changes: Any
) -> Sequence[int | FabricError]:
    """Claim together, as the registry does."""
    async with database.writing() as conn:
        rows = await trust.lock(conn, [run.instance_id for run in runs])
        batch = [(a_claim(run, **changes), rows[run.instance_id][0]) for run in runs]
        return await ClaimRun.write_all(conn, batch)


async def claimed(database: Database, count: int, **playbook: Any) -> list[Run]:
    runs = await some_runs(database, count, **playbook)
    assert await claim(database, runs) == [1] * count
    return [await reread(database, run) for run in runs]


async def reread(database: Database, run: Run) -> Run:
    async with database.writing() as conn:
        return await lock_run(conn, run.id)


async def make(database: Database, *entries: Entry) -> dict[RunId, Entered]:
    async with database.writing() as conn:
        return await enter(conn, entries)


def an_entry(run: Run, *lines: str, **changes: Any) -> Entry:
    return Entry(
        **{
            "run_id": run.id,
            "epoch": run.lease_epoch,
            "now": NOON,
            "lines": said(*lines),
            **changes,
        }
    )


def said(*lines: str) -> list[RunEvent]:
    return [
        log_event(RemediationLogEvent(LogStream.STDOUT, line), NOON) for line in lines
    ]


async def log(database: Database, run: Run) -> list[tuple[int, str]]:
    async with database.reading() as conn:
        cursor = await conn.execute(
            "SELECT seq, message FROM runtime_vm_remediation_events"
            " WHERE run_id = %s ORDER BY seq",
            [run.id],
        )
        return [(row[0], row[1]) for row in await cursor.fetchall()]


# --- entries -----------------------------------------------------------------------


async def test_each_run_has_its_own_numbers(database: Database) -> None:
    first, second = await claimed(database, 2)

    made = await make(
        database, an_entry(first, "a", "b"), an_entry(second, begins=True)
    )

    assert await log(database, first) == [
        (1, "queued"),
        (2, "started"),
        (3, "a"),
        (4, "b"),
    ]
    assert await log(database, second) == [
        (1, "queued"),
        (2, "started"),
        (3, "attempt 1 begins"),
    ]
    assert (made[first.id].in_store, made[first.id].through_seq) == (2, 4)
    assert (made[second.id].in_store, made[second.id].through_seq) == (1, 3)


async def test_one_lost_lease_among_many_writes_nothing(database: Database) -> None:
    first, lost, last = await claimed(database, 3)

    made = await make(
        database,
        an_entry(first, "a"),
        an_entry(lost, "b", epoch=lost.lease_epoch - 1, until=UNTIL),
        an_entry(last, until=UNTIL),
    )

    assert [made[run.id].held for run in (first, lost, last)] == [True, False, True]
    assert [text for _, text in await log(database, lost)] == ["queued", "started"]
    assert [text for _, text in await log(database, first)][2:] == ["a"]
    expiries = [(await reread(database, run)).lease_expires_at for run in (lost, last)]
    assert expiries == [lost.lease_expires_at, UNTIL]


async def test_a_lease_that_ran_out_is_not_renewed_beside_one_that_is(
    database: Database,
) -> None:
    late, early = await claimed(database, 2)
    over = NOON + timedelta(seconds=30)

    made = await make(
        database,
        an_entry(late, now=over, until=UNTIL),
        an_entry(early, now=over - timedelta(microseconds=1), until=UNTIL),
    )

    assert (made[late.id].held, made[early.id].held) == (False, True)


async def test_who_is_locked_by_others_is_left_out_and_not_waited_for(
    database: Database,
) -> None:
    busy, free = await claimed(database, 2)

    async with database.writing() as other:
        await lock_run(other, busy.id)
        made = await make(database, an_entry(busy, "a"), an_entry(free, "b"))

    assert made.keys() == {free.id}
    assert [text for _, text in await log(database, free)][2:] == ["b"]


async def test_what_a_lost_answer_left_is_not_written_again(
    database: Database,
) -> None:
    whole, half = await claimed(database, 2)
    await make(database, an_entry(whole, "a", "b"), an_entry(half, "a"))

    made = await make(
        database,
        an_entry(whole, "a", "b", is_unsure=True),
        an_entry(half, "a", "b", is_unsure=True),
    )

    for run in (whole, half):
        assert [text for _, text in await log(database, run)][2:] == ["a", "b"]
        assert (made[run.id].in_store, made[run.id].through_seq) == (2, 4)


@pytest.mark.parametrize("poison", ["nul \0", "half a character \ud800"])
async def test_a_line_that_cant_be_stored_is_an_error(
    database: Database, poison: str
) -> None:
    first, second = await claimed(database, 2)

    with pytest.raises(InvalidError):
        await make(database, an_entry(first, "a"), an_entry(second, poison))

    assert [text for _, text in await log(database, first)] == ["queued", "started"]


async def test_an_attempt_begins_with_the_log_of_those_before(
    database: Database,
) -> None:
    again, fresh = await claimed(database, 2)
    await make(database, an_entry(again, begins=True))
    await make(database, an_entry(again, "a"))

    made = await make(
        database, an_entry(again, begins=True), an_entry(fresh, begins=True)
    )

    async with database.reading() as conn:
        read = await digest_logs(conn, [again.id, fresh.id])
    for run in (again, fresh):
        digest = made[run.id].log
        assert digest is not None
        assert (digest.sha256, digest.lines, digest.size, digest.through_seq) == (
            read[run.id].sha256,
            read[run.id].lines,
            read[run.id].size,
            read[run.id].through_seq,
        )
    assert read[again.id].lines == 3


# --- claims ------------------------------------------------------------------------


async def test_one_that_is_taken_among_many_is_refused_alone(
    database: Database,
) -> None:
    first, taken, last = await some_runs(database, 3)
    assert await claim(database, [taken]) == [1]

    made = await claim(database, [first, taken, last], now=LATER)

    assert [made[0], made[2]] == [1, 1]
    assert isinstance(made[1], ConflictError)
    assert [text for _, text in await log(database, taken)] == ["queued", "started"]


async def test_one_that_is_held_among_many_is_refused_alone(
    database: Database,
) -> None:
    first, held = await some_runs(database, 2)
    async with database.writing() as conn:
        order = HoldOrder(
            scope=HoldScope.INSTANCE,
            instance_id=held.instance_id,
            reason="wait",
            by="user:7",
            caller=ALICE,
        )
        await place_hold(conn, order, None, NOON)

    made = await claim(database, [held, first], now=LATER)

    assert isinstance(made[0], HeldError)
    assert made[1] == 1
    assert (await reread(database, held)).status is RunStatus.PENDING


async def test_an_owners_limit_counts_those_claimed_together(
    database: Database,
) -> None:
    runs = await some_runs(database, 4)
    assert await claim(database, runs[:1], owner_limit=3) == [1]

    made = await claim(database, runs[1:], owner_limit=3)

    assert made[:2] == [1, 1]
    assert isinstance(made[2], ConflictError)
    assert (await reread(database, runs[3])).status is RunStatus.PENDING


# --- ends --------------------------------------------------------------------------


async def test_one_that_moved_on_among_many_is_refused_alone(
    database: Database,
) -> None:
    done, moved, tried = await claimed(database, 3, sla_duration_s=5)
    ends = [
        an_end(done, None),
        an_end(moved, None, lease_epoch=moved.lease_epoch - 1),
        an_end(tried, FailureReason.TIMEOUT),
    ]

    async with database.writing() as conn:
        batch = [
            (end, await snapshot(conn, run.instance_id))
            for end, run in zip(ends, (done, moved, tried), strict=True)
        ]
        made = await FinishRun.write_all(conn, batch)

    assert [made[0], made[2]] == [done.id, tried.id]
    assert isinstance(made[1], ConflictError)
    after = [await reread(database, run) for run in (done, moved, tried)]
    assert [run.status for run in after] == ["completed", "running", "pending"]
    assert [run.sla_breached_at is not None for run in after] == [True, False, False]
    assert [text for _, text in await log(database, done)][2:] == [
        "sla-breached",
        "it ended",
    ]
    assert [text for _, text in await log(database, tried)][2:] == [
        "will be tried again: it ended"
    ]
