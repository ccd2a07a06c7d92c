"""The catalogue: whose playbook a key means, versions, and what may be deleted."""

import math
import random
import struct

import pytest
from psycopg.types.json import Jsonb

from tests.builders import insert_owner
from tests.db.fix_runs import ALICE, BOB, a_draft, add_instance, add_playbook, add_run
from trustfabric.db import playbooks
from trustfabric.db.session import Database
from trustfabric.domain.playbooks import PlaybookEdit, content_sha256, edited
from trustfabric.errors import DuplicateKeyError


@pytest.fixture(autouse=True)
async def _owners(database: Database) -> None:
    async with database.writing() as conn:
        await insert_owner(conn, ALICE)
        await insert_owner(conn, BOB)


async def test_a_playbook_comes_back_as_it_was_written(database: Database) -> None:
    made = await add_playbook(database, sla_duration_s=60, description="how")

    async with database.reading() as conn:
        assert await playbooks.get_playbook(conn, ALICE, made.id) == made
    assert (made.version, made.sla_duration_s, made.metadata) == (
        1,
        60,
        {"script": "echo fixed"},
    )


async def test_a_digest_is_the_same_of_what_was_kept_as_jsonb(
    database: Database,
) -> None:
    random_ = random.Random(7)
    floats = [
        value
        for _ in range(2000)
        for (value,) in struct.iter_unpack("<d", random_.randbytes(8))
        if math.isfinite(value)
    ]
    special = [0.0, -0.0, 1.0, -1.0, 1e16, 1e22, 1.5e300, 5e-324, 0.1, 2**63 - 1, 2**53]
    documents = [
        {"metadata": {"b": [value, {"a": value}]}} for value in [*special, *floats]
    ]

    async with database.reading() as conn:
        cursor = await conn.execute("SELECT %s::jsonb", [Jsonb(documents)])
        ((kept,),) = await cursor.fetchall()

    assert len(kept) == len(documents)
    for ours, theirs in zip(documents, kept, strict=True):
        assert content_sha256(ours, None) == content_sha256(theirs, None), ours


async def test_an_owner_has_one_playbook_of_a_key(database: Database) -> None:
    await add_playbook(database)
    await add_playbook(database, owner_id=None)
    await add_playbook(database, owner_id=BOB)

    with pytest.raises(DuplicateKeyError):
        await add_playbook(database)
    with pytest.raises(DuplicateKeyError):
        await add_playbook(database, owner_id=None)


async def test_a_key_means_the_owners_own_first_then_the_shared_one(
    database: Database,
) -> None:
    own = await add_playbook(database)
    shared = await add_playbook(database, owner_id=None)

    async with database.reading() as conn:
        assert await playbooks.find_playbook(conn, ALICE, own.key) == own
        assert await playbooks.find_playbook(conn, BOB, own.key) == shared
        assert await playbooks.find_playbook(conn, BOB, "other") is None


async def test_s6_others_playbooks_are_not_there(database: Database) -> None:
    own = await add_playbook(database)
    shared = await add_playbook(database, owner_id=None)

    async with database.reading() as conn:
        assert await playbooks.get_playbook(conn, BOB, own.id) is None
        assert await playbooks.list_playbooks(conn, BOB) == [shared]
        assert await playbooks.list_playbooks(conn, None) == [own, shared]
        assert await playbooks.list_playbooks(conn, ALICE, after=own.id) == [shared]


async def test_an_edit_over_another_edit_is_not_saved(database: Database) -> None:
    made = await add_playbook(database)
    after = edited(made, PlaybookEdit(display_name="Other"))

    async with database.writing() as conn:
        first = await playbooks.save_playbook(conn, after)
        second = await playbooks.save_playbook(conn, after)

    assert first is not None
    assert (first.version, first.display_name) == (2, "Other")
    assert second is None


async def test_an_active_run_is_found_and_a_past_one_outlives_the_playbook(
    database: Database,
) -> None:
    made = await add_playbook(database)
    run = await add_run(database, await add_instance(database), made)

    async with database.writing() as conn:
        assert await playbooks.active_run_of(conn, made.id) == run.id
        await playbooks.delete_playbook(conn, made.id)
        assert not await playbooks.keep_playbook(conn, made.id)
    assert a_draft().key == run.playbook
