"""Artifacts: the execution log is the run's own rows, as they were at its end."""

import hashlib
from dataclasses import replace

import pytest

from tests.db.fix_runs import ALICE, BOB, NOON, add_instance, add_playbook, add_run
from trustfabric.db import artifacts, run_events, runs
from trustfabric.db.session import Database
from trustfabric.domain.executors import (
    LogStream,
    ProducedFile,
    RemediationLogEvent,
)
from trustfabric.domain.run_events import log_event
from trustfabric.domain.runs import Run
from trustfabric.errors import ConflictError, NotFoundError


async def say(database: Database, run: Run, text: str) -> None:
    async with database.writing() as conn:
        line = log_event(RemediationLogEvent(LogStream.STDOUT, text), NOON)
        await run_events.append(conn, [(await runs.lock_run(conn, run.id), [line])])


async def test_the_execution_log_reads_as_it_was_recorded(database: Database) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)
    run = await add_run(database, instance, playbook)
    await say(database, run, "hello")
    async with database.writing() as conn:
        logs = await artifacts.digest_logs(conn, [run.id])
        text = artifacts.execution_log(run.id, logs[run.id], recorded_by="run:1")
        (made,) = await artifacts.insert_artifacts(conn, [text])
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


async def test_files_are_kept_once_and_served_as_they_were(database: Database) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)
    run = await add_run(database, instance, playbook)
    files = (
        ProducedFile(name="a.bin", content=b"\0\xff" * 1000),
        ProducedFile(name="empty", content=b""),
    )
    for _ in range(2):  # the answer to the first commit was lost
        async with database.writing() as conn:
            locked = await runs.lock_run(conn, run.id)
            await artifacts.keep_files(conn, locked, files)

    async with database.reading() as conn:
        kept = await artifacts.list_artifacts(conn, ALICE, run.id)
        contents = [await artifacts.read_artifact(conn, one) for one in kept]

    assert contents == [file.content for file in files]
    assert [one.metadata["name"] for one in kept] == ["a.bin", "empty"]
    assert all(one.uri.startswith("large-object:") for one in kept)


async def test_an_address_is_recorded_but_not_served(database: Database) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)
    run = await add_run(database, instance, playbook)
    async with database.writing() as conn:
        await runs.lock_run(conn, run.id)
        made = await artifacts.add_artifact(
            conn,
            artifacts.NewArtifact(
                run_id=run.id,
                artifact_type="image",
                uri="s3://bucket/1",
                media_type="application/octet-stream",
                sha256="a" * 64,
                size=1 << 40,
                recorded_by="user:1",
            ),
        )

    async with database.reading() as conn:
        artifact = await artifacts.get_artifact(conn, ALICE, run.id, made)
        assert artifact is not None
        with pytest.raises(NotFoundError, match="not kept here"):
            await artifacts.read_artifact(conn, artifact)


async def test_a_run_has_room_for_so_many_bytes(database: Database) -> None:
    instance, playbook = await add_instance(database), await add_playbook(database)
    run = await add_run(database, instance, playbook)
    full = artifacts.NewArtifact(
        run_id=run.id,
        artifact_type="evidence",
        uri=artifacts.LARGE_OBJECT,
        media_type="text/plain",
        sha256=hashlib.sha256(b"x").hexdigest(),
        size=artifacts.RUN_BYTES,
        recorded_by="user:1",
        content=b"x",
    )
    async with database.writing() as conn:
        await artifacts.add_artifact(conn, full)

    with pytest.raises(ConflictError, match="artifacts enough"):
        async with database.writing() as conn:
            await artifacts.add_artifact(conn, replace(full, size=1))
