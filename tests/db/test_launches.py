"""What a launch makes expected, and that it is what evidence is compared with."""

from datetime import UTC, datetime

import pytest

from tests.builders import insert_instance
from trustfabric.db.launches import set_launch
from trustfabric.db.memory import get_memory
from trustfabric.db.session import Database
from trustfabric.domain.attestation.launch import Launch, LaunchDigest
from trustfabric.domain.attestation.memory import NOTHING
from trustfabric.domain.ids import InstanceId

pytestmark = pytest.mark.db

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DIGEST = LaunchDigest(
    measurement=b"\x4d" * 48, boots_kernel=True, guest_policy=0x8000_0000_0003_0000
)


async def test_the_newest_launch_is_what_is_expected(database: Database) -> None:
    async with database.writing() as conn:
        instance = InstanceId(await insert_instance(conn))
        before = await get_memory(conn, instance)
        derived = Launch(digest=DIGEST, inputs={"vcpus": 4, "cpu_model": "EPYC-v4"})
        await set_launch(conn, instance, derived, NOW)
        expected = await get_memory(conn, instance)
        gone = Launch(digest=None, why_none="no firmware named")
        await set_launch(conn, instance, gone, NOW)
        after = await get_memory(conn, instance)

    assert before == after == NOTHING
    assert expected.launch == DIGEST


async def test_an_instance_that_is_not_there_left_nothing(database: Database) -> None:
    async with database.reading() as conn:
        assert await get_memory(conn, InstanceId(2**40)) == NOTHING
