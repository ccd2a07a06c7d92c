"""Agents' tokens and nonces: bounded, however many are asked for at once."""

import asyncio
import secrets
import uuid
from datetime import UTC, datetime, timedelta

import pytest_asyncio

from tests.builders import insert_instance
from trustfabric.db import agents, attestations
from trustfabric.db.agents import NewToken
from trustfabric.db.attestations import NewChallenge
from trustfabric.db.session import Connection, Database
from trustfabric.domain.ids import ChallengeId, InstanceId

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
MOST = 4


@pytest_asyncio.fixture
async def instance(database: Database) -> InstanceId:
    async with database.writing() as conn:
        return InstanceId(await insert_instance(conn))


async def issue(
    database: Database,
    instance: InstanceId,
    now: datetime = NOW,
    boot: uuid.UUID | None = None,
) -> agents.AgentToken | None:
    new = NewToken(
        instance_id=instance,
        boot_id=boot,
        secret_sha256=secrets.token_bytes(32),
        issued_by="user:7",
        issued_at=now,
        expires_at=now + timedelta(hours=1),
    )
    async with database.writing() as conn:
        return await agents.add_token(conn, new, most=MOST)


async def a_challenge(database: Database, instance: InstanceId) -> ChallengeId:
    new = NewChallenge(
        instance_id=instance,
        kind="tpm",
        purpose="manual",
        boot_id=None,
        nonce_digest=secrets.token_bytes(32),
        issued_at=NOW,
        expires_at=NOW + timedelta(minutes=1),
    )
    async with database.writing() as conn:
        return (await attestations.issue_challenge(conn, new)).id


async def set_boot(conn: Connection, instance: InstanceId, boot: uuid.UUID) -> None:
    await conn.execute(
        "UPDATE runtime_vm_instances SET boot_id = %s WHERE id = %s", [boot, instance]
    )


async def test_of_many_tellings_at_once_so_many_are_told(
    database: Database, instance: InstanceId
) -> None:
    challenge = await a_challenge(database, instance)
    at_once = asyncio.Barrier(8)

    async def tell() -> bool:
        async with database.writing() as conn:
            await at_once.wait()
            digest = secrets.token_bytes(32)
            return await agents.tell(conn, challenge, digest, NOW, most=MOST)

    told = await asyncio.gather(*(tell() for _ in range(8)))

    assert sum(told) == MOST


async def test_of_many_tokens_at_once_so_many_are_issued(
    database: Database, instance: InstanceId
) -> None:
    made = await asyncio.gather(*(issue(database, instance) for _ in range(8)))

    assert sum(each is not None for each in made) == MOST
    assert await issue(database, instance) is None


async def test_only_good_tokens_count(database: Database, instance: InstanceId) -> None:
    gone, boot = uuid.uuid4(), uuid.uuid4()
    async with database.writing() as conn:
        await set_boot(conn, instance, gone)
    first = await issue(database, instance)
    for _ in range(MOST - 1):
        await issue(database, instance, boot=gone)
    assert first is not None
    assert await issue(database, instance) is None

    async with database.writing() as conn:
        assert await agents.revoke_token(conn, None, first.id, "user:7", NOW)
    revoked = await issue(database, instance)
    async with database.writing() as conn:
        await set_boot(conn, instance, boot)
    rebooted = [await issue(database, instance) for _ in range(MOST)]
    expired = await issue(database, instance, NOW + timedelta(hours=1))

    assert revoked is not None
    assert [each is not None for each in rebooted] == [True] * (MOST - 1) + [False]
    assert expired is not None


async def test_one_instance_s_tokens_are_no_other_s(
    database: Database, instance: InstanceId
) -> None:
    for _ in range(MOST):
        await issue(database, instance)
    async with database.writing() as conn:
        other = InstanceId(await insert_instance(conn))

    assert await issue(database, other) is not None
