"""Artifacts: the execution log is the run's own rows, as they were at its end."""

import hashlib

from tests.db.fix_runs import ALICE, BOB, NOON, add_instance, add_playbook, add_run
from trustfabric.db import artifacts, run_events, runs
from trustfabric.db.session import Database
from trustfabric.domain.executors import LogStream, RemediationLogEvent
from trustfabric.domain.run_events import log_event
from trustfabric.domain.runs import Run


async def say(database: Database, run: Run, text: str) -> None:
    async with database.writing() as conn:
        line = log_event(RemediationLogEvent(LogStream.STDOUT, text), NOON)
        await run_events.append(conn, await runs.lock_run(conn, run.id), [line])


async def test_the_execution_log_reads_as_it_was_recorded(database: Database) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)
    run = await add_run(database, instance, playbook)
    await say(database, run, "hello")
    async with database.writing() as conn:
        text = await artifacts.execution_log(conn, run.id, recorded_by="run:1")
        made = await artifacts.insert_artifact(conn, text)
    await say(database, run, "later")

    async with database.reading() as conn:
        artifact = await artifacts.get_artifact(conn, ALICE, run.id, made)
        assert artifact is not None
        content = await artifacts.read_artifact(conn, artifact)
        assert await artifacts.list_artifacts(conn, ALICE, run.id) == [artifact]
        assert await artifacts.list_artifacts(conn, BOB, run.id) == []
        assert await artifacts.get_artifact(conn, BOB, run.id, made) is None

    assert content == b"2026-01-01T12:00:00Z stdout hello\n"
    assert artifact.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.size == len(content)
    assert artifact.artifact_type == "execution-log"
