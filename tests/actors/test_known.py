"""Rows that the registry remembers: never believed past what the database has."""

from typing import Any

import pytest

from tests.fix_fabric import Fabric, count
from trustfabric.actors.changes import ApplyChange
from trustfabric.actors.known import Known
from trustfabric.db import trust
from trustfabric.domain.ids import InstanceId, OwnerId
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Signal, Snapshot
from trustfabric.errors import IllegalTransitionError, NotFoundError


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what is read without a lock from here on."""
    seen: list[Any] = []
    read = trust.read

    async def noted(conn: Any, ids: Any) -> Any:
        seen.append(set(ids))
        return await read(conn, ids)

    monkeypatch.setattr(trust, "read", noted)
    return seen


async def test_what_it_wrote_is_not_read_again(
    fabric: Fabric, reads: list[Any]
) -> None:
    instance = await fabric.instance()

    rows = [await fabric.change(instance, Signal.ANNOTATED) for _ in range(3)]

    assert [row.version for row in rows] == [2, 3, 4]
    assert reads == [{instance}]
    assert await fabric.posture(instance) == rows[-1]


async def test_another_runtime_s_change_is_found_before_it_is_written_over(
    fabric: Fabric, second: Fabric
) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.ANNOTATED)
    await second.change(instance, Signal.UNTRUSTED_VERDICT)

    after = await fabric.change(instance, Signal.TRUSTED_VERDICT)

    assert (after.lifecycle, after.version) == (Lifecycle.QUARANTINED, 4)
    assert [event.version for event in await fabric.history(instance)] == [1, 2, 3, 4]


async def test_a_quarantine_written_by_hand_is_found_though_its_version_is_the_same(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    async with fabric.database.writing() as conn:
        await conn.execute(
            """
            UPDATE runtime_vm_trust_registry
               SET lifecycle_state = 'quarantined', attestation_status = 'untrusted'
            """
        )

    after = await fabric.change(instance, Signal.TRUSTED_VERDICT)

    assert after.lifecycle is Lifecycle.QUARANTINED


async def test_what_is_refused_by_a_remembered_row_is_asked_of_the_row_itself(
    fabric: Fabric, second: Fabric
) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.TRUSTED_VERDICT)
    with pytest.raises(IllegalTransitionError):
        await fabric.change(instance, Signal.RUN_COMPLETED)
    await second.change(instance, Signal.UNTRUSTED_VERDICT)
    await second.change(instance, Signal.RUN_STARTED)

    after = await fabric.change(instance, Signal.RUN_COMPLETED)

    assert after.lifecycle is Lifecycle.REMEDIATING


async def test_an_instance_that_is_gone_is_not_found_although_it_is_remembered(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.ANNOTATED)
    async with fabric.database.writing() as conn:
        for table in ("runtime_vm_trust_history", "runtime_vm_trust_registry"):
            await conn.execute(f"DELETE FROM {table}".encode())

    with pytest.raises(NotFoundError):
        await fabric.change(instance, Signal.ANNOTATED)

    assert await count(fabric.database, "SELECT count(*) FROM servers") == 1


async def test_repairs_and_decay_are_decided_on_what_is_read(
    fabric: Fabric, reads: list[Any]
) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.UNTRUSTED_VERDICT)
    await fabric.change(instance, Signal.RUN_STARTED)
    before = len(reads)

    await fabric.change(instance, Signal.ANNOTATED)
    await fabric.change(instance, Signal.EXPIRED)

    assert len(reads) == before + 2


async def test_of_another_owner_s_it_knows_nothing(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await fabric.change(instance, Signal.ANNOTATED)

    with pytest.raises(NotFoundError):
        await fabric.apply(
            instance, fabric.a_change(Signal.ANNOTATED), owner_id=OwnerId(999)
        )


async def test_it_keeps_those_written_last(fabric: Fabric) -> None:
    rows = [await fabric.posture(await fabric.instance()) for _ in range(3)]
    known = Known(limit=2)

    known.keep(rows[:2])
    known.keep([rows[0], rows[2]])

    assert _known(known, fabric, rows) == {rows[0].instance_id, rows[2].instance_id}
    known.forget([rows[0].instance_id, rows[1].instance_id])
    assert _known(known, fabric, rows) == {rows[2].instance_id}
    assert {row.attestation_status for row in rows} == {AttestationStatus.PENDING}


def _known(known: Known, fabric: Fabric, rows: list[Snapshot]) -> set[InstanceId]:
    change = fabric.a_change(Signal.ANNOTATED)
    return {
        *known.rows_for(
            ApplyChange(instance_id=row.instance_id, change=change) for row in rows
        )
    }
