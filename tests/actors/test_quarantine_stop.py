"""QUARANTINE_ACTION=stop: who is stopped waits for its release, then starts again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fix_fabric import until
from tests.fix_machines import CALLER, Machines, some_machines
from trustfabric.actors.servers import StopServer
from trustfabric.db.session import Database
from trustfabric.domain.power import Hold
from trustfabric.domain.servers import ServerStatus
from trustfabric.domain.trust import Signal
from trustfabric.domain.vms import PowerState
from trustfabric.errors import UnavailableError

pytestmark = [pytest.mark.db, pytest.mark.libvirt]


@pytest_asyncio.fixture
async def machines(
    database: Database, database_url: str, tpm_dir: Path
) -> AsyncIterator[Machines]:
    async with some_machines(
        database, database_url, tpm_dir, quarantine_action=Hold.STOP
    ) as started:
        yield started


async def test_it_waits_though_its_hypervisor_had_to_be_asked_twice(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await machines.restored()
    stop, fails = machines.provisioner.stop, [UnavailableError("away")]

    async def stop_at_last(name: str, *, grace_s: float) -> None:
        if fails:
            raise fails.pop()
        await stop(name, grace_s=grace_s)

    monkeypatch.setattr(machines.provisioner, "stop", stop_at_last)
    await machines.change(instance.id, Signal.QUARANTINED_BY_HAND)

    async def stopped() -> bool | None:
        machines.clock.advance(0.2)
        row = await machines.read(instance.id)
        return row.power_state is PowerState.STOPPED or None

    await until(stopped)
    assert not fails
    await machines.until_server(
        instance.server_id, status=ServerStatus.PENDING_REMEDIATION
    )

    await machines.change(instance.id, Signal.RELEASED)

    await machines.until_instance(instance.id, power_state=PowerState.RUNNING)


async def test_whoever_stops_it_meanwhile_ends_the_waiting(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = await machines.restored()
    stop, begun, go_on = machines.provisioner.stop, asyncio.Event(), asyncio.Event()

    async def stop_slowly(name: str, *, grace_s: float) -> None:
        begun.set()
        await go_on.wait()
        await stop(name, grace_s=grace_s)

    monkeypatch.setattr(machines.provisioner, "stop", stop_slowly)
    await machines.change(instance.id, Signal.QUARANTINED_BY_HAND)
    await begun.wait()
    await machines.ask(StopServer(instance.server_id, CALLER))
    go_on.set()

    await machines.until_instance(instance.id, power_state=PowerState.STOPPED)
    await machines.until_server(instance.server_id, status=ServerStatus.STOPPED)
