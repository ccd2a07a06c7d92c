"""What the gate reads: the newest instance's rows, and nothing that is over."""

from datetime import timedelta
from typing import Any

import pytest

from tests.builders import OWNER, insert_run
from tests.fix_fabric import Fabric
from trustfabric.db import placement, servers, vms
from trustfabric.domain.ids import InstanceId, ServerId
from trustfabric.domain.placement import Accelerator, Failure, Situation
from trustfabric.domain.trust import AttestationStatus, Lifecycle, Signal
from trustfabric.domain.vms import PowerState
from trustfabric.errors import NotFoundError, UnavailableError


async def situation(fabric: Fabric, server: ServerId) -> Situation:
    async with fabric.database.reading() as conn:
        return await placement.read_situation(conn, server, fabric.clock.now())


async def of(fabric: Fabric, instance: InstanceId) -> Situation:
    return await situation(fabric, (await fabric.posture(instance)).server_id)


async def execute(fabric: Fabric, query: str, *values: Any) -> None:
    async with fabric.database.writing() as conn:
        await conn.execute(query.encode(), values)


async def power(fabric: Fabric, instance: InstanceId, state: PowerState) -> None:
    async with fabric.database.writing() as conn:
        await vms.set_power(conn, instance, state, fabric.clock.now())


async def a_run(fabric: Fabric, instance: InstanceId) -> int:
    async with fabric.database.writing() as conn:
        return await insert_run(conn, instance)


async def failed_run(
    fabric: Fabric, instance: InstanceId, reason: str | None = "execution-failure"
) -> None:
    run = await a_run(fabric, instance)
    await execute(
        fabric,
        """
        UPDATE runtime_vm_remediation_runs
           SET status = %s, failure_reason = %s, completed_at = %s WHERE id = %s
        """,
        "completed" if reason is None else "failed",
        reason,
        fabric.clock.now(),
        run,
    )
    fabric.clock.advance(1)


async def verdict(
    fabric: Fabric, instance: InstanceId, signal: Signal, status: str
) -> None:
    """Record a verdict with the row of its evidence."""
    async with fabric.database.writing() as conn:
        cursor = await conn.execute(
            """
            INSERT INTO runtime_vm_attestations (
                   runtime_vm_instance_id, attestation_kind, verification_status)
            VALUES (%s, 'tpm', %s) RETURNING id
            """,
            [instance, status],
        )
        row = await cursor.fetchone()
    assert row is not None
    await fabric.change(instance, signal, attestation_id=row[0])
    fabric.clock.advance(1)


async def test_an_unknown_or_deleted_server_is_not_there(fabric: Fabric) -> None:
    instance = await fabric.instance()
    server = (await fabric.posture(instance)).server_id
    async with fabric.database.writing() as conn:
        await servers.delete_server(conn, server, fabric.clock.now())

    for each in (ServerId(999), server):
        with pytest.raises(NotFoundError):
            await situation(fabric, each)


async def test_the_newest_instance_counts(fabric: Fabric) -> None:
    old = await fabric.instance()
    await fabric.change(old, Signal.UNTRUSTED_VERDICT)
    server = (await fabric.posture(old)).server_id
    assert (await of(fabric, old)).trust is not None

    await fabric.instance_of(server, "newer")

    trust = (await situation(fabric, server)).trust
    assert trust is not None
    assert trust.lifecycle is Lifecycle.SUSPECT
    assert trust.previous_lifecycle is None
    assert trust.reason == "provisioned"


async def test_the_row_is_read_with_the_event_that_made_it(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await fabric.change(
        instance, Signal.TRUSTED_VERDICT, provenance_ref="attestation:tpm:1"
    )

    trust = (await of(fabric, instance)).trust

    event = (await fabric.history(instance))[-1]
    assert trust is not None
    assert trust.event_id == event.history_id
    assert trust.status is AttestationStatus.TRUSTED
    assert trust.previous_lifecycle is Lifecycle.SUSPECT
    assert trust.freshness_deadline == event.freshness_deadline
    assert trust.provenance_ref == "attestation:tpm:1"


@pytest.mark.parametrize("state", PowerState)
async def test_what_has_power_is_running(fabric: Fabric, state: PowerState) -> None:
    instance = await fabric.instance()

    await power(fabric, instance, state)

    assert (await of(fabric, instance)).running is state.active


async def test_an_active_run_is_seen(fabric: Fabric) -> None:
    instance = await fabric.instance()
    run = await a_run(fabric, instance)
    await execute(
        fabric,
        "UPDATE runtime_vm_remediation_runs SET approval_state = 'pending'",
    )

    active = (await of(fabric, instance)).active_run

    assert active is not None
    assert (active.id, active.status, active.awaits_approval) == (run, "pending", True)


# --- failures ----------------------------------------------------------------------


async def test_the_newest_ended_run_s_failure_is_seen(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await failed_run(fabric, instance, "timeout")
    at = fabric.clock.now()
    await failed_run(fabric, instance, "playbook-bug")

    assert (await of(fabric, instance)).failure == Failure("playbook-bug", at)


@pytest.mark.parametrize("reason", ["cancelled", "approval-expired", "queue-expired"])
async def test_a_later_run_that_was_called_off_does_not_end_it(
    fabric: Fabric, reason: str
) -> None:
    instance = await fabric.instance()
    await failed_run(fabric, instance, "playbook-bug")
    await failed_run(fabric, instance, reason)

    failure = (await of(fabric, instance)).failure

    assert failure is not None
    assert failure.reason == "playbook-bug"


async def test_a_run_that_was_called_off_is_seen_where_there_is_no_other(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    await failed_run(fabric, instance, "cancelled")

    failure = (await of(fabric, instance)).failure

    assert failure is not None
    assert failure.reason == "cancelled"


async def test_an_instance_without_its_row_of_trust_can_t_be_decided_on(
    fabric: Fabric,
) -> None:
    instance = await fabric.instance()
    server = (await fabric.posture(instance)).server_id
    await execute(
        fabric,
        "DELETE FROM runtime_vm_trust_registry WHERE runtime_vm_instance_id = %s",
        instance,
    )

    with pytest.raises(UnavailableError):
        await situation(fabric, server)


async def test_a_later_success_ends_it(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await failed_run(fabric, instance)
    await failed_run(fabric, instance, None)

    assert (await of(fabric, instance)).failure is None


async def test_a_later_trusted_verdict_ends_it(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await verdict(fabric, instance, Signal.TRUSTED_VERDICT, "trusted")
    await failed_run(fabric, instance)
    assert (await of(fabric, instance)).failure is not None

    await verdict(fabric, instance, Signal.TRUSTED_VERDICT, "trusted")

    assert (await of(fabric, instance)).failure is None


async def test_silence_does_not_end_it(fabric: Fabric) -> None:
    """Although the status that stands beside an unknown verdict may be trusted."""
    instance = await fabric.instance()
    await verdict(fabric, instance, Signal.TRUSTED_VERDICT, "trusted")
    await failed_run(fabric, instance)

    await verdict(fabric, instance, Signal.UNKNOWN_VERDICT, "unknown")

    row = await fabric.posture(instance)
    assert row.attestation_status is AttestationStatus.TRUSTED
    assert (await of(fabric, instance)).failure is not None


async def test_an_override_does_not_end_it(fabric: Fabric) -> None:
    instance = await fabric.instance()
    await failed_run(fabric, instance)

    deadline = fabric.clock.now() + timedelta(hours=1)
    await fabric.change(instance, Signal.OVERRIDDEN, deadline=deadline)

    assert (await of(fabric, instance)).failure is not None


# --- holds and accelerators --------------------------------------------------------


async def hold(fabric: Fabric, scope: str, **parts: Any) -> None:
    values = {
        "runtime_vm_instance_id": None,
        "owner_id": None,
        "until": None,
        "released_at": None,
        **parts,
    }
    await execute(
        fabric,
        """
        INSERT INTO trust_holds (
               scope, reason, by, runtime_vm_instance_id, owner_id, until, released_at)
        VALUES (%s, 'why', 'user:1', %s, %s, %s, %s)
        """,
        scope,
        *values.values(),
    )


async def test_holds_in_force_are_seen_by_their_scope(fabric: Fabric) -> None:
    mine, foreign = await fabric.instance(), await fabric.instance(OWNER + 1)
    now = fabric.clock.now()
    await hold(fabric, "all", until=now + timedelta(seconds=1))
    await hold(fabric, "owner", owner_id=OWNER)
    await hold(fabric, "owner", owner_id=OWNER)
    await hold(fabric, "instance", runtime_vm_instance_id=mine)

    assert (await of(fabric, mine)).holds == ["all", "instance", "owner"]
    assert (await of(fabric, foreign)).holds == ["all"]
    fabric.clock.advance(1)
    assert (await of(fabric, foreign)).holds == []


async def test_released_holds_are_over(fabric: Fabric) -> None:
    instance = await fabric.instance()

    await hold(fabric, "all", released_at=fabric.clock.now())

    assert (await of(fabric, instance)).holds == []


async def test_accelerators_are_those_of_the_living_instance(fabric: Fabric) -> None:
    instance = await fabric.instance()
    for name, posture in (("gpu1", "untrusted"), ("gpu0", "trusted")):
        await execute(
            fabric,
            """
            INSERT INTO runtime_vm_accelerator_posture (
                   runtime_vm_instance_id, accelerator_id, accelerator_type, posture,
                   policy_feedback)
            VALUES (%s, %s, 'gpu', %s, '{old,odd}')
            """,
            instance,
            name,
            posture,
        )

    assert (await of(fabric, instance)).accelerators == [
        Accelerator("gpu0", "trusted", ("old", "odd")),
        Accelerator("gpu1", "untrusted", ("old", "odd")),
    ]

    async with fabric.database.writing() as conn:
        await vms.set_power(
            conn, instance, PowerState.STOPPED, fabric.clock.now(), terminated=True
        )
    gone = await of(fabric, instance)
    assert gone.accelerators == []
    assert gone.terminated_at == fabric.clock.now()


async def test_a_release_is_seen(fabric: Fabric) -> None:
    instance = await fabric.instance()
    server = (await fabric.posture(instance)).server_id
    async with fabric.database.writing() as conn:
        await servers.release_server(
            conn, server, by="user:7", reason="seen", now=fabric.clock.now()
        )

    assert (await of(fabric, instance)).released_at == fabric.clock.now()


async def test_of_old_decisions_so_many_are_kept(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trustfabric.db.placement.KEPT", 3)
    server, other = await fabric.instance(), await fabric.instance()
    for instance, number in ((server, 5), (other, 2)):
        for tier in range(number):
            async with fabric.database.writing() as conn:
                await placement.record_decision(
                    conn,
                    placement.PolicyDecision(
                        server_id=(await fabric.posture(instance)).server_id,
                        backend="libvirt",
                        tier=str(tier),
                        verb="start",
                        notes=(),
                        blocking=(),
                        inputs={},
                        allowed=True,
                        decided_at=fabric.clock.now(),
                    ),
                )

    async with fabric.database.reading() as conn:
        cursor = await conn.execute(
            "SELECT tier FROM runtime_policy_decisions ORDER BY id"
        )
        assert [row[0] for row in await cursor.fetchall()] == ["2", "3", "4", "0", "1"]
