"""A run's events: numbered without gaps, frozen, read on from any point."""

import asyncio
from datetime import timedelta

import psycopg
import pytest

from tests.db.fix_runs import NOON, add_instance, add_playbook, add_run
from trustfabric.db import placement, run_events, runs
from trustfabric.db.run_writes import tell_breach
from trustfabric.db.session import Database
from trustfabric.domain.accelerators import PASSING_POSTURES
from trustfabric.domain.events import Position
from trustfabric.domain.executors import LogStream, RemediationLogEvent
from trustfabric.domain.placement import decide
from trustfabric.domain.run_events import log_event
from trustfabric.domain.runs import Run


@pytest.fixture
async def run(database: Database) -> Run:
    playbook = await add_playbook(
        database,
        metadata={"script": "true", "tag": "book"},
        owner_id=None,
        sla_duration_s=5,
    )
    instance = await add_instance(database)
    return await add_run(database, instance, playbook, metadata={"tag": "run"})


async def say(database: Database, run: Run, *lines: str) -> None:
    async with database.writing() as conn:
        events = [
            log_event(RemediationLogEvent(LogStream.STDOUT, line), NOON)
            for line in lines
        ]
        await run_events.append(conn, [(await runs.lock_run(conn, run.id), events)])


async def test_numbers_have_no_gaps_under_concurrent_writers(
    database: Database, run: Run
) -> None:
    async def breach() -> None:
        async with database.writing() as conn:
            await tell_breach(conn, run.id, NOON + timedelta(seconds=5))

    await asyncio.gather(
        *(say(database, run, f"{n}a", f"{n}b") for n in range(8)), breach()
    )

    async with database.reading() as conn:
        events = await run_events.events_after(conn, Position.FIRST, limit=100)
    assert sorted(event.seq for event in events) == list(range(1, 19))


async def test_the_log_is_read_on_from_a_number(database: Database, run: Run) -> None:
    await say(database, run, "one", "two", "three")

    async with database.reading() as conn:
        lines = await run_events.list_log(conn, run.owner_id, run.id, after=2, limit=2)
        assert await run_events.count_log(conn, [run.id]) == {run.id: 3}

    assert [(line.seq, line.message) for line in lines] == [(3, "two"), (4, "three")]


async def test_the_payload_is_the_streams_data_as_it_was(
    database: Database, run: Run
) -> None:
    await say(database, run, "hello")

    async with database.reading() as conn:
        queued, line = await run_events.events_after(conn, Position.FIRST, limit=9)

    assert (queued.kind, line.kind) == ("status", "log")
    assert line.payload["manifest_tags"] == ["book", "run"]
    assert line.payload["instance_id"] == run.instance_id
    assert line.payload["event"] == {
        "event": "log",
        "seq": 2,
        "timestamp": "2026-01-01T12:00:00Z",
        "stream": "stdout",
        "message": "hello",
    }
    assert queued.payload["event"]["status"] == "pending"
    assert line.owner_id == run.owner_id


async def test_events_are_read_on_from_a_position(database: Database, run: Run) -> None:
    await say(database, run, "one")
    async with database.reading() as conn:
        first, *_ = await run_events.events_after(conn, Position.FIRST, limit=1)
        rest = await run_events.events_after(conn, first.position, limit=9)
        none = await run_events.events_after(
            conn, Position.FIRST, upto=Position.FIRST, limit=9
        )

    assert [event.message for event in (first, *rest)] == ["queued", "one"]
    assert none == []


async def test_what_was_written_is_never_changed(database: Database, run: Run) -> None:
    with pytest.raises(psycopg.errors.RestrictViolation):
        async with database.writing() as conn:
            await conn.execute("UPDATE runtime_vm_remediation_events SET message = ''")


@pytest.mark.parametrize(
    ("power", "asked", "left_s", "same_boot", "says"),
    [
        ("running", True, 9, True, "attested"),
        ("running", True, 0, True, "stale"),
        ("running", True, 9, False, "stale"),
        ("paused", True, 0, True, "stale"),
        ("stopped", True, 0, True, "attested"),
        ("running", False, 0, False, "attested"),
    ],
)
async def test_an_accelerator_is_to_a_run_what_it_is_to_the_gate(
    database: Database,
    run: Run,
    power: str,
    says: str,
    *,
    asked: bool,
    left_s: int,
    same_boot: bool,
) -> None:
    async with database.writing() as conn:
        await conn.execute(
            """
            UPDATE runtime_vm_instances
               SET power_state = %s, boot_id = gen_random_uuid() WHERE id = %s
            """,
            [power, run.instance_id],
        )
        await conn.execute(
            """
            INSERT INTO runtime_vm_accelerator_posture
                   (runtime_vm_instance_id, accelerator_id, accelerator_type, posture,
                    asked_at, fresh_until, boot_id)
            SELECT id, 'gpu', 'nvidia-gpu', 'attested', %s, %s,
                   CASE WHEN %s THEN boot_id ELSE gen_random_uuid() END
              FROM runtime_vm_instances WHERE id = %s
            """,
            [
                NOON if asked else None,
                NOON + timedelta(seconds=left_s),
                same_boot,
                run.instance_id,
            ],
        )
    await say(database, run, "hello")

    async with database.reading() as conn:
        *_, line = await run_events.events_after(conn, Position.FIRST, limit=9)
        situation = await placement.read_situation(conn, run.server_id, NOON)
    (told,) = line.payload["accelerators"]
    gates = line.payload["policy_gate"]["accelerator_gates"]
    vetoes = [
        note for note in decide(situation, NOON).blocking if "accelerator_gate" in note
    ]
    assert told["posture"] == says
    assert [hook for gate in gates for hook in gate["hooks"]] == vetoes
    assert bool(vetoes) == (says not in PASSING_POSTURES)
